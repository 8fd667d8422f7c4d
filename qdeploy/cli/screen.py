"""Progress on the screen: a bar, or plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from qdeploy.errors import printable
from qdeploy.sizes import human


class Bar:
    """Progress on stderr with the time that is left: a bar on a terminal, else a line now and every ten seconds."""

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar: Any = None
        self._task: Any = None
        self._title, self._unit, self._total, self._done, self._printed_at = "", "", 0, 0, 0.0
        self._started_at = 0.0
        self._drawn = False

    def __enter__(self) -> Bar:
        self._drawn = not self._hidden and sys.stderr.isatty()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, title: str, total: int, unit: str = "") -> None:
        """A stage begins."""
        self._title, self._unit, self._total, self._done, self._printed_at = title, unit, total, 0, time.monotonic()
        self._started_at = self._printed_at
        if self._drawn:
            self._draw()
        elif not self._hidden and total:
            print(f"{title}: {self._shown(total)}", file=sys.stderr, flush=True)

    def advance(self, count: int, detail: str = "") -> None:
        """`count` more of it is done."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif not self._hidden and time.monotonic() - self._printed_at > 10:
            self._printed_at = time.monotonic()
            done = f"{self._shown(self._done)} of {self._shown(self._total)}"
            print(f"{self._title}: {done}{self._left()}, {printable(detail)}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        """How long the stage will still take if it goes on as it did."""
        if not 0 < self._done < self._total:
            return ""
        seconds = (time.monotonic() - self._started_at) * (self._total - self._done) / self._done
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"

    def _shown(self, count: int) -> str:
        return f"{count} {self._unit}" if self._unit else human(count)

    def _draw(self) -> None:
        """Draws a bar for the stage in place of the last one's."""
        from rich import progress as rich
        from rich.console import Console

        if self._bar is not None:
            self._bar.stop()
        done = (
            [rich.MofNCompleteColumn(), rich.TextColumn(self._unit)]
            if self._unit
            else [rich.DownloadColumn(), rich.TransferSpeedColumn()]
        )
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            *done,
            rich.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self._bar.add_task(self._title, total=self._total)
        self._bar.start()
