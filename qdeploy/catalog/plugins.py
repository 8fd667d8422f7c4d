"""Entry points of installed distributions, looked for without importing `importlib.metadata` where there are none.

A distribution names what it brings in `entry_points.txt` beside its metadata. These files are few and small, while
importing the parser of metadata takes longer than opening a checkpoint: it is only imported where one of them names
this project.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

_METADATA = (".dist-info", ".egg-info")
_ALL_GROUPS = b"[qdeploy.formats][qdeploy.backends][qdeploy.quantizers][qdeploy.extensions]"


class EntryPoint(NamedTuple):
    """An entry point: its name, where its object is ("module:attribute"), and the distribution that brings it."""

    name: str
    target: str
    origin: str


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group ("qdeploy.formats")."""
    if not _mentioned(group, tuple(sys.path)):
        return ()
    from importlib.metadata import entry_points

    return tuple(
        EntryPoint(point.name, point.value, point.dist.name if point.dist else "a plug-in")
        for point in entry_points(group=group)
    )


@cache
def _mentioned(group: str, paths: tuple[str, ...]) -> bool:
    """Whether an installed distribution has entry points of a group; archives among the paths are not looked into."""
    mark = f"[{group}]".encode()
    return any(mark in text for text in _entry_points(paths))


def _entry_points(paths: tuple[str, ...]) -> Iterator[bytes]:
    for path in paths:
        try:
            entries = os.listdir(path or ".")
        except OSError:
            if path.endswith((".zip", ".egg", ".whl")) and os.path.isfile(path):
                yield _ALL_GROUPS  # an archive may hold any: it has to be parsed
            continue
        for entry in entries:
            if entry.endswith(_METADATA):
                yield _text(os.path.join(path, entry, "entry_points.txt"))


def _text(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
