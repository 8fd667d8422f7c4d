"""Text and tables on the screen, without a library: what a verb shows is there as soon as the verb is done."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

import click

from qdeploy.errors import printable

_BESIDES = "   "
_COLOURS = {"bold": "\x1b[1m", "green": "\x1b[32m", "yellow": "\x1b[33m", "/": "\x1b[0m"}
_MARK = re.compile(r"\[(bold|green|yellow|/)\]")
_NARROWEST = 8
_LONGEST = 4000
"""Characters of a line of text that are shown."""


class Table(NamedTuple):
    """Rows under heads; `right` are the columns whose numbers stand to the right."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int]

    def lines(self, width: int) -> list[str]:
        """The table in lines of at most so many characters, where that is possible: long cells are folded."""
        widths = self._widths(width)
        rule = " " + "─" * (sum(widths) + len(_BESIDES) * (len(widths) - 1))
        body = [line for row in self.rows for line in self._lines(row, widths)]
        return ["", *self._lines(self.heads, widths), rule, *body, ""]

    def _widths(self, width: int) -> list[int]:
        widths = [max(len(row[i]) for row in (self.heads, *self.rows)) for i in range(len(self.heads))]
        left = [i for i in range(len(widths)) if i not in self.right] or list(range(len(widths)))
        while sum(widths) + len(_BESIDES) * len(widths) > width:
            widest = max(left, key=lambda i: widths[i])
            if widths[widest] <= _NARROWEST:
                break
            widths[widest] -= 1
        return widths

    def _lines(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        cells = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines = []
        for place in range(max(map(len, cells))):
            parts = [cell[place] if place < len(cell) else "" for cell in cells]
            shown = [
                p.rjust(w) if i in self.right else p.ljust(w)
                for i, (p, w) in enumerate(zip(parts, widths, strict=True))
            ]
            lines.append((" " + _BESIDES.join(shown)).rstrip())
        return lines


def _folded(cell: str, width: int) -> list[str]:
    """A cell in lines of at most `width` characters, broken between words where that is possible."""
    if len(cell) <= width:
        return [cell]
    from textwrap import wrap

    return wrap(cell, width) or [""]


def _safe(text: str) -> str:
    """Lines without what a terminal would obey."""
    return "\n".join(printable(line, _LONGEST) for line in text.split("\n"))


class Screen:
    """A stream that text goes to; [bold], [green] and [yellow] up to [/] are colours where it is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._width = os.get_terminal_size(stream.fileno()).columns if self._terminal else 120

    def print(self, content: str | Table) -> None:
        """Writes a line of text, or a table."""
        text = "\n".join(content.lines(self._width)) if isinstance(content, Table) else self._coloured(_safe(content))
        click.echo(text, file=self._stream)

    def _coloured(self, text: str) -> str:
        return _MARK.sub(lambda mark: _COLOURS[mark[1]] if self._terminal else "", text)


def console() -> Screen:
    """Standard output."""
    return Screen(sys.stdout)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """A table; columns in `right` are aligned to the right."""
    shown = tuple(tuple(printable(cell) for cell in row) for row in rows)
    return Table(tuple(heads), shown, frozenset(right))
