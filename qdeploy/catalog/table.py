"""A table of rows by name: the built-in ones, those of installed distributions, and those added while running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Generic, TypeVar

from qdeploy.catalog.plugins import installed
from qdeploy.catalog.rows import ADDED, BUILT_IN, Row
from qdeploy.errors import BadArgumentError, UnsupportedError

R = TypeVar("R", bound=Row)


class Table(Generic[R]):
    """Rows of one kind.

    Args:
        kind: What a row is, in errors ("format").
        package: The package whose `BUILT_IN` lists the rows of this project.
        row: Makes a row of an entry point: its name, its target, and who brings it.
        group: The entry point group; empty: it has the name of the package.
        reserved: Names that stand for something else.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        row: Callable[[str, object, str], R],
        group: str = "",
        reserved: tuple[str, ...] = (),
    ) -> None:
        self.kind, self._package, self._row, self._reserved = kind, package, row, reserved
        self._group = group or package
        self._added: dict[str, R] = {}

    def built_in(self) -> dict[str, R]:
        """The rows of this project by name."""
        rows: tuple[R, ...] = import_module(self._package).BUILT_IN
        return {row.name: row for row in rows}

    def rows(self) -> dict[str, R]:
        """All rows by name; what a distribution or a caller brings never shadows what is built in."""
        rows = self.built_in()
        for row in self._brought():
            if row.name not in self._reserved:
                rows.setdefault(row.name, row)
        return rows

    def shadowed(self) -> list[R]:
        """The rows of distributions whose names are taken, so that nobody can ask for them."""
        rows = self.rows()
        return [row for row in self._brought() if rows.get(row.name) != row]

    def _brought(self) -> Iterator[R]:
        """What this project does not bring: the rows that were added, then those of distributions."""
        yield from self._added.values()
        yield from (self._row(point.name, point.target, point.origin) for point in installed(self._group))

    def get(self, name: str) -> R:
        """The row of a name; UnsupportedError lists those that there are."""
        rows = self.built_in()
        if name not in rows:
            rows = self.rows()
        if name not in rows:
            raise UnsupportedError(
                f"no such {self.kind}", found=name, allowed=", ".join(sorted({*rows, *self._reserved}, key=str))
            )
        return rows[name]

    def add(self, row: R) -> None:
        """Adds a row for as long as the process runs; BadArgumentError where its name is taken, or is no word."""
        if not row.name or set(row.name) & set(" ,:="):
            raise BadArgumentError(
                f"not the name of a {self.kind}", found=row.name, allowed="a word without spaces, commas, colons and ="
            )
        if row.name in self._reserved or row.name in self.rows():
            raise BadArgumentError(f"a {self.kind} of this name is there already", found=row.name)
        self._added[row.name] = replace(row, origin=ADDED) if row.origin == BUILT_IN else row

    def remove(self, name: str) -> None:
        """Takes away a row that was added; BadArgumentError where none was."""
        if self._added.pop(name, None) is None:
            raise BadArgumentError(f"no {self.kind} of this name was added", found=name, allowed=", ".join(self._added))


def is_built_in(row: Row) -> bool:
    """Whether a row is this project's own."""
    return row.origin == BUILT_IN
