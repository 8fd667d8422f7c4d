"""Whatever happens to the process that runs TVM, one line says why."""

from __future__ import annotations

import signal
import subprocess

from qdeploy.backends.tvm.process import _reason


def ended(code: int, said: str) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, "", said)


def test_the_error_is_named_and_not_the_dump_behind_it():
    said = "Traceback (most recent call last):\n  File x\nValueError: Argument 1 type mismatch\nmodule {\n(... 218)\n"
    assert _reason(ended(1, said)) == "ValueError: Argument 1 type mismatch"


def test_a_killed_process_names_its_signal():
    assert _reason(ended(-signal.SIGSEGV, "LLVM ERROR: out of registers\n")).startswith("killed by SIGSEGV: LLVM ERROR")
    assert _reason(ended(2, "")) == "nothing was said"
