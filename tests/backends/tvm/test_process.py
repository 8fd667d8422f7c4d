"""Whatever happens to the process that runs TVM, one line says why."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from qdeploy.backends.tvm.fork_pool import run_forked
from qdeploy.backends.tvm.process import Child, _reason
from qdeploy.errors import UnsupportedError


def test_the_error_is_named_and_not_the_dump_behind_it():
    message = (
        "Traceback (most recent call last):\n  File x\nValueError: Argument 1 type mismatch\nmodule {\n(... 218)\n"
    )
    assert _reason(1, message) == "ValueError: Argument 1 type mismatch"


def test_a_killed_process_names_its_signal():
    assert _reason(-signal.SIGSEGV, "LLVM ERROR: out of registers\n").startswith("killed by SIGSEGV: LLVM ERROR")
    assert _reason(2, "") == "it gave no message"


def test_a_process_without_a_job_ends_with_its_context():
    with Child() as child:
        result = child._process
    assert result.returncode is not None


def test_nothing_of_the_working_folder_is_imported(tvm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "numpy.py").write_text("raise RuntimeError('taken from the working folder')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match="KeyError"), Child() as child:
        child.run(tmp_path, {"action": "no such action"})


FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@FORKS
def test_parts_of_a_job_are_done_at_once_and_given_back_in_order(tmp_path: Path):
    """Each waits for all others to have begun."""

    def part(number: int) -> list[int]:
        (tmp_path / str(number)).touch()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return [number, os.getpid()]

    result = run_forked([partial(part, n) for n in range(3)])
    assert [number for number, _ in result] == [0, 1, 2]
    assert len({process for _, process in result}) == 3 and result[0][1] == os.getpid()


@FORKS
def test_a_part_that_fails_fails_the_job(capfd: pytest.CaptureFixture[str]):
    def fails() -> None:
        raise ValueError("not this one")

    with pytest.raises(SystemExit):
        run_forked([lambda: 1, fails])
    assert "ValueError: not this one" in capfd.readouterr().err
