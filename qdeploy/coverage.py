"""Which ops run where: the table of ops against the tables of the backends, as `qdeploy formats --ops` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.ir.ops.table import OPS


@dataclass(frozen=True)
class Coverage:
    """What is known of an op.

    Attributes:
        op: Its name.
        source: Whose semantics it has.
        traits: Which it has, by name.
        backends: Backend -> "yes", "expanded" (as the ops that it means) or "".
    """

    op: str
    source: str
    traits: tuple[str, ...]
    backends: Mapping[str, str]


def coverage(lowered: Mapping[str, frozenset[str]]) -> list[Coverage]:
    """One row per op, in alphabetical order.

    Args:
        lowered: Of each backend, the ops that it lowers itself.
    """
    rows = []
    for name in sorted(OPS):
        row = OPS[name]
        flags = {
            "composite": row.expand,
            "moves": row.moves,
            "keeps scale": row.keeps_scale,
            "monotone": row.monotone,
            "interval": row.interval,
        }
        backends = {
            backend: "yes" if name in ops else "expanded" if row.expand is not None else ""
            for backend, ops in lowered.items()
        }
        rows.append(Coverage(name, row.source, tuple(flag for flag, has in flags.items() if has), backends))
    return rows
