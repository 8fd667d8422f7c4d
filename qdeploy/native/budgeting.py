"""The memory budget of a model: what may be held, who moves it, and what it gives."""

from __future__ import annotations

from typing import Any, Literal

from qdeploy.native.arguments import milliseconds
from qdeploy.native.library import byte_count, choice

LEVELS = ("none", "moderate", "low", "critical")
"""How short a system says memory is."""
Level = Literal["none", "moderate", "low", "critical"]


class Budgeted:
    """The part of `Runtime` that its memory is moved by."""

    _ffi: Any
    _lib: Any

    def _open(self) -> Any:
        """The model in C."""
        raise NotImplementedError

    def _call(self, function: Any, *arguments: Any) -> None:
        """Calls the library, and raises what it says."""
        raise NotImplementedError

    def _memory(self) -> Any:
        memory = self._ffi.new("qd_memory *", [self._ffi.sizeof("qd_memory")])
        self._lib.qd_memory_now(self._open(), memory)
        return memory

    @property
    def memory(self) -> int:
        """The budget in bytes; 0: no limit. May be set at any time by any thread, as bytes or as "350MB"."""
        return int(self._memory().budget)

    @memory.setter
    def memory(self, size: int | str) -> None:
        self._call(self._lib.qd_set_budget, self._open(), byte_count(size))

    def wait(self, seconds: float = 10.0) -> None:
        """Waits until the budget has taken effect and what fits is loaded."""
        self._call(self._lib.qd_wait_budget, self._open(), milliseconds(seconds))

    def follow_pressure(self, on: bool = True) -> None:
        """Lets Linux move the budget: the limits of the process's cgroups, what others in them use, and stalls (PSI).

        It never rises above the budget that there was when this began. The environment variable QDEPLOY_CGROUP names
        another folder with the files of a group.
        """
        self._call(self._lib.qd_follow_pressure, self._open(), int(on))

    def pressure(self, level: Level) -> None:
        """Tells the model how short memory is, where the host is told so by its system (Android, Apple).

        Args:
            level: "moderate", "low" and "critical" leave three quarters, half and nothing of what may be held above the
                floor; with "none" the budget counts again. Setting the budget ends it, too.
        """
        self._call(self._lib.qd_pressure, self._open(), choice(level, *LEVELS))

    def set_rung(self, rung: int) -> None:
        """Pins how many blocks of the stack are in use; for replays and measurements."""
        self._call(self._lib.qd_set_rung, self._open(), rung)

    def rungs(self) -> list[tuple[int, float]]:
        """(bytes of the stack, predicted loss) at every rung, from one block to all."""
        rung, points = self._ffi.new("qd_rung *", [self._ffi.sizeof("qd_rung")]), []
        for index in range(1, self._memory().rungs + 1):
            self._lib.qd_rung_at(self._open(), index, rung)
            points.append((int(rung.bytes), float(rung.error)))
        return points
