"""What the verbs share on the screen: a progress bar (plain lines without a terminal) and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qdeploy.sizes import human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(stderr: bool = False) -> Console:
    """Where text goes; as wide as the terminal, or 120 columns where there is none."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, soft_wrap=False)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """A table; columns in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(title=None, box=box.SIMPLE_HEAD, pad_edge=False, caption=None)
    for i, head in enumerate(heads):
        made.add_column(head, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


class Bar:
    """Progress on stderr: a bar on a terminal, else a line per stage and one every ten seconds."""

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar: Any = None
        self._task: Any = None
        self._title, self._unit, self._total, self._done, self._said = "", "", 0, 0, 0.0
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
        self._title, self._unit, self._total, self._done, self._said = title, unit, total, 0, time.monotonic()
        if self._drawn:
            self._draw()
        elif not self._hidden and total:
            print(f"{title}: {self._shown(total)}", file=sys.stderr, flush=True)

    def advance(self, count: int, detail: str = "") -> None:
        """`count` more of it is done."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif not self._hidden and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            done = f"{self._shown(self._done)} of {self._shown(self._total)}"
            print(f"{self._title}: {done}, {detail}", file=sys.stderr, flush=True)

    def _shown(self, count: int) -> str:
        return f"{count} {self._unit}" if self._unit else human(count)

    def _draw(self) -> None:
        """Draws a bar for the stage in place of the last one's."""
        from rich import progress as rich

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
            console=console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._title, total=self._total)
        self._bar.start()
