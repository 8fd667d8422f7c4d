"""The example in C++ over the shared library: equal byte for byte with the interpreter, without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integer_networks import Net, random_inputs, resnet8

from qdeploy.backends.tvm import BACKEND
from qdeploy.backends.tvm.options import Options
from qdeploy.ir.run import Weights, run
from qdeploy.registry import open_model

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "vm"


@pytest.fixture(scope="module")
def program(tvm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its Makefile against the wheels that are installed."""
    folder = tmp_path_factory.mktemp("vm")
    for name in ("run.cpp", "Makefile"):
        shutil.copy(EXAMPLE / name, folder)
    command = ["make", f"PYTHON={sys.executable}", "CXXFLAGS=-O1 -Wall -Wextra -Werror", "run"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "run"


def test_a_network_of_the_data_folder_gives_the_bytes_of_the_interpreter(program: Path, testdata: Path, tmp_path: Path):
    source = testdata / "mlperf_tiny/pretrainedResnet_quant.tflite"
    model = open_model(source)
    lowered = BACKEND.lower(model, tmp_path, Options(forms=("library",)))
    assert BACKEND.check(model, tmp_path, lowered)
    inputs = random_inputs(lowered.graph.graph)
    [array] = inputs.values()
    array.tofile(tmp_path / "in.bin")
    subprocess.run([program, tmp_path, tmp_path / "in.bin", tmp_path / "out.bin"], check=True, env={})
    [wanted] = run(lowered.graph.graph, inputs, weights=Weights(lowered.graph))[0].values()
    assert (tmp_path / "out.bin").read_bytes() == wanted.tobytes()


def test_several_inputs_and_outputs_keep_their_order(program: Path, compiled: Callable[..., Any], tmp_path: Path):
    net = Net(("batch", 8, 6, 6), "I8")
    net.inputs += Net(("batch", 12), "U8").inputs  # named x as well
    net.inputs[1] = type(net.inputs[1])("y", "U8", ("batch", 12))
    first = net.requantize(net.conv("x", 20, 8), 2**-8, 20, dtype="I16")
    second = net.linear("y", 5, 12)
    model = net.model(second, first)
    compiled(model, axes={"batch": 2})
    inputs = random_inputs(model.graph, 2)
    for name, array in inputs.items():
        array.tofile(tmp_path / name)
    files = [tmp_path / name for name in ("x", "y", "second", "first")]
    subprocess.run([program, tmp_path / "out", *files], check=True)
    wanted, _ = run(model.graph, inputs)
    assert (tmp_path / "second").read_bytes() == wanted[second].tobytes()
    assert (tmp_path / "first").read_bytes() == wanted[first].tobytes()


def test_what_does_not_fit_is_said(program: Path, compiled: Callable[..., Any], tmp_path: Path):
    net = resnet8()
    compiled(net.model(net.last))
    (tmp_path / "short").write_bytes(bytes(7))

    def said(*arguments: object) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    assert "does not hold 3072 bytes" in said(tmp_path / "out", tmp_path / "short", tmp_path / "result")
    assert "1 inputs and 1 outputs" in said(tmp_path / "out", tmp_path / "short")
    assert "tvm.json cannot be read" in said(tmp_path / "nowhere")
