"""A run that is stopped goes on where it was: finished tensors are not made again, and the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.progress import Silent
from qdeploy.quantize import quantize_model
from qdeploy.quantize.gptq import Gptq
from qdeploy.quantize.ladder.quantizer import Ladder
from qdeploy.store.finished import folder_beside
from tests.quantize.test_bitstack import TINY, text_file

SPECS = {"ladder": "ladder:group=32,effort=best,calibrate={}", "gptq": "gptq:int4,group=32,zeros=group,calibrate={}"}


class Stops(Silent):
    """Progress that is interrupted after some tensors."""

    def __init__(self, after: int) -> None:
        self.left, self.unit = after, ""

    def start(self, title: str, total: int, unit: str = "") -> None:
        self.unit = unit

    def advance(self, count: int, detail: str = "") -> None:
        self.left -= count * (self.unit == "tensors")
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", list(SPECS))
def test_an_interrupted_run_goes_on(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec, folder = SPECS[method].format(text_file(tmp_path)), tmp_path / "finished"
    whole = quantize_model(qdeploy.load(TINY), [spec])
    with pytest.raises(KeyboardInterrupt):
        quantize_model(qdeploy.load(TINY), [spec], Stops(20), folder)
    assert len(list(folder.glob("*.npz"))) == 20
    kind, calls = {"ladder": Ladder, "gptq": Gptq}[method], []
    own = kind.quantize

    def counted(self, weight, statistics, grid):  # type: ignore[no-untyped-def]
        calls.append(weight.name)
        return own(self, weight, statistics, grid)

    monkeypatch.setattr(kind, "quantize", counted)
    again = quantize_model(qdeploy.load(TINY), [spec], folder=folder)
    assert len(calls) == len(set(calls)) == 36 - 20
    for name in whole.tensors:
        np.testing.assert_array_equal(again.tensors[name].decode(), whole.tensors[name].decode())
        assert again.tensors[name].rungs == whole.tensors[name].rungs
    for name, constant in whole.graph.constants.items():
        np.testing.assert_array_equal(again.graph.constants[name].decode(), constant.decode())
    assert again.losses == whole.losses


def test_what_was_finished_for_something_else_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, text = tmp_path / "finished", text_file(tmp_path)
    quantize_model(qdeploy.load(TINY), [SPECS["gptq"].format(text)], folder=folder)
    count = len(list(folder.glob("*.npz")))
    text.write_text("Another text. " * 100)
    quantize_model(qdeploy.load(TINY), [SPECS["gptq"].format(text)], folder=folder)
    quantize_model(qdeploy.load(TINY), [SPECS["gptq"].format(text).replace("int4", "int3")], folder=folder)
    assert count == 36 and len(list(folder.glob("*.npz"))) == 3 * count


def test_a_damaged_file_is_made_again(tmp_path: Path):
    folder, spec = tmp_path / "finished", SPECS["gptq"].format(text_file(tmp_path))
    whole = quantize_model(qdeploy.load(TINY), [spec], folder=folder)
    for place, file in enumerate(sorted(folder.glob("*.npz"))[:6]):
        file.write_bytes((b"", b"PK", file.read_bytes()[: 1000 + place])[place % 3])
    again = quantize_model(qdeploy.load(TINY), [spec], folder=folder)
    for name in whole.tensors:
        np.testing.assert_array_equal(again.tensors[name].decode(), whole.tensors[name].decode())


def test_kill_9_loses_nothing_and_a_finished_output_leaves_nothing(tmp_path: Path):
    spec, output = SPECS["gptq"].format(text_file(tmp_path)), tmp_path / "out"
    script = (
        "import os, signal, sys, qdeploy\n"
        "from tests.quantize.test_resume import Stops\n"
        "try:\n"
        "    qdeploy.convert(sys.argv[1], sys.argv[2], to='ir', quantize=sys.argv[3], progress=Stops(9))\n"
        "except KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", script, str(TINY), str(output), spec]
    run = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(list(folder_beside(output).glob("*.npz"))) == 9
    qdeploy.convert(TINY, output, to="ir", quantize=spec)
    qdeploy.convert(TINY, tmp_path / "whole", to="ir", quantize=spec)
    assert not folder_beside(output).exists()
    one, two = qdeploy.load(output), qdeploy.load(tmp_path / "whole")
    for name in one.tensors:
        np.testing.assert_array_equal(one.tensors[name].decode(), two.tensors[name].decode())
