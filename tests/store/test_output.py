"""Output appears whole or not at all: interrupted, refused, replaced, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdeploy.errors import OutputError
from qdeploy.store.output import json_bytes, staged

OLDER = {k: {} for k in ("qdeploy", "source", "target", "options", "summary", "tensors")}
"""The fields of a report that names no hash of its output."""


def test_nothing_stands_under_the_name_before_the_end(tmp_path: Path):
    target = tmp_path / "out"
    with staged(target, "plan") as stage:
        stage.write("a", [b"123"])
        assert not target.exists()
    assert (target / "a").read_bytes() == b"123"
    assert os.listdir(target) == ["a"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_leaves_only_the_partial_folder_and_the_same_plan_finds_it(tmp_path: Path):
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), staged(target, "plan") as stage:
        stage.write("a", [b"123"])
        raise KeyboardInterrupt
    assert not target.exists()
    with staged(target, "plan") as stage:
        assert stage.resumed
        assert (stage.path / "a").exists()
    assert (target / "a").exists()


def test_another_plan_starts_clean(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out", "plan") as stage:
        stage.write("a", [b"123"])
        raise KeyboardInterrupt
    with staged(tmp_path / "out", "another") as stage:
        assert not stage.resumed
        assert not (stage.path / "a").exists()


def test_an_existing_output_is_refused_and_kept(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(OutputError, match="exists"), staged(tmp_path / "out", "plan"):
        pass
    assert (tmp_path / "out/precious").read_text() == "x"


def test_force_replaces_only_after_the_new_one_stands(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    (tmp_path / "out/report.json").write_text(json.dumps(OLDER))
    with pytest.raises(RuntimeError), staged(tmp_path / "out", "plan", force=True) as stage:
        stage.write("new", [b"1"])
        raise RuntimeError
    assert (tmp_path / "out/old").exists()
    with staged(tmp_path / "out", "plan", force=True) as stage:
        stage.write("new", [b"1"])
    assert os.listdir(tmp_path / "out") == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_force_never_replaces_what_no_conversion_wrote(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("x")
    with pytest.raises(OutputError, match="not written by a conversion"), staged(tmp_path / "home", "p", force=True):
        pass
    assert (tmp_path / "home/precious").exists()


def test_two_writers_do_not_share_a_folder(tmp_path: Path):
    with staged(tmp_path / "out", "plan"):
        second = staged(tmp_path / "out", "plan")
        with pytest.raises(OutputError, match="another process"), second:
            pass


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"), staged(tmp_path / "out", "plan") as stage:
        stage.write("a", [b"123"])
    assert not (tmp_path / "out").exists()


def test_json_is_the_same_for_the_same_content_and_readable_by_line():
    text = json_bytes({"b": {"x": 1, "y": [1, 2]}, "a": [[1], [2]], "c": None}).decode()
    assert text.splitlines()[2] == '  "x": 1,'
    assert json_bytes({"é": 1}).decode("utf-8") == '{\n "é": 1\n}\n'


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.45, 0.6])
def test_killed_at_any_moment_the_next_run_gives_the_same_package(tmp_path: Path, delay: float):
    tiny = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama-gptq"
    command = [sys.executable, "-m", "qdeploy", "convert", str(tiny), str(tmp_path / "out"), "--to", "ir", "-q"]
    run = subprocess.Popen(command)
    time.sleep(delay)
    run.send_signal(signal.SIGKILL)
    run.wait()
    if not (tmp_path / "out").exists():
        subprocess.run(command, check=True)
    import qdeploy

    assert qdeploy.verify(tiny, tmp_path / "out")["equal"]
