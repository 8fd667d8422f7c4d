"""What an attack costs: tried in a child of this process, so that its CPU time and its peak of memory are its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qdeploy.errors import QdeployError

ADDRESSES = 6 << 30
"""Bytes of address space that the child has beyond what this process has."""


@dataclass(frozen=True)
class Outcome:
    """What became of an attack.

    Attributes:
        kind: "read", the class of the error of our family, or "NOT OURS: ..." for any other end.
        text: The error as it is printed, and where it arose where it is none of ours.
        cpu: Seconds of CPU.
        peak: Bytes of memory beyond those before.
    """

    kind: str
    text: str
    cpu: float
    peak: int

    @property
    def ours(self) -> bool:
        """Whether it is an end that the project promises."""
        return not self.kind.startswith("NOT OURS")


def attempt(action: Callable[[], object]) -> Outcome:
    """Runs an action in a fork of this process; a crash, a signal or a foreign exception is an outcome like others."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _limit()
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps(_measured(action)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        return Outcome(f"NOT OURS: the process ended with {status}", "", 0.0, 0)
    return Outcome(*json.loads(text))


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno() if sys.stderr.isatty() else 2)


def _measured(action: Callable[[], object]) -> tuple[str, str, float, int]:
    _reset_peak()
    before, start = _status("VmRSS"), _cpu()
    kind, text = "read", ""
    try:
        action()
    except QdeployError as error:
        kind, text = type(error).__name__, str(error)
    except BaseException as error:  # whatever it is, it is not what the project promises
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, text = f"NOT OURS: {type(error).__name__}: {error}"[:300], f"{last.filename}:{last.lineno}"
    return kind, text, _cpu() - start, max(0, _status("VmHWM") - before)


def _cpu() -> float:
    """Of this process and the ones that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))
