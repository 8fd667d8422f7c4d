"""Modules of other distributions that register number types, ops and families of models while they are imported.

A distribution names such a module under the entry point group `qdeploy.extensions`. They are imported when a name is
asked for that nothing here knows, and only then, so that they cost nothing where they are not meant.
"""

from __future__ import annotations

from functools import cache

from qdeploy.catalog.plugins import installed
from qdeploy.catalog.rows import Row
from qdeploy.errors import QdeployError

GROUP = "qdeploy.extensions"


def extensions() -> tuple[Row, ...]:
    """The modules, as rows."""
    return tuple(Row(point.name, point.target, point.origin) for point in installed(GROUP))


@cache
def load_extensions() -> tuple[str, ...]:
    """Imports them all, once; returns a sentence for each that could not be imported."""
    failures: list[str] = []
    for row in extensions():
        try:
            row.loaded()
        except QdeployError as error:  # also where it registers what is there already
            failures.append(f"The extension {row.name} of {row.origin} is left out: {error.what}.")
    return tuple(failures)
