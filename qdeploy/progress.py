"""Progress of long work, as the rooms report it; how it is shown is the business of the command line."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work tells about itself."""

    def start(self, title: str, total: int, unit: str = "") -> None:
        """A stage begins that will advance by `total` bytes, or by `total` of what `unit` names ("layers")."""
        ...

    def advance(self, count: int, detail: str = "") -> None:
        """`count` more of them are done; `detail` names what is in hand."""
        ...


class Silent:
    """Progress that is not shown."""

    def start(self, title: str, total: int, unit: str = "") -> None:
        """Says nothing."""

    def advance(self, count: int, detail: str = "") -> None:
        """Says nothing."""


SILENT = Silent()
