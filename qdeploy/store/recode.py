"""Between a source tensor and the buffers made of it: read a slab, put it into normal form, and prove the way back.

A `Recoding` is a pair of pure functions over slabs. The reader uses it forwards (and backwards, for the proof); writing
the source file again uses it backwards only. Buffer rows [i * group, (i + 1) * group) and units [i * units,
(i + 1) * units) of the source tensor (along `axis`) belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qdeploy.store.origin import Origin

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Recoding:
    """How one source tensor and the buffers made of it become each other.

    Attributes:
        keys: The buffers, by key.
        unpack: Raw slab -> rows of each buffer, in the order of `keys`.
        pack: Rows of each buffer -> raw slab. May return a view in any memory order.
        axis: The axis of the source tensor along which slabs are cut.
        group: Buffer rows per step.
        units: Units of the source tensor per step.
    """

    keys: tuple[str, ...]
    unpack: Callable[[Array], tuple[Array, ...]]
    pack: Callable[..., Array]
    axis: int = 0
    group: int = 1
    units: int = 1


class Slabs(Protocol):
    """A source tensor that can be read in slabs along an axis."""

    def slab(self, axis: int, start: int, stop: int) -> Array:
        """Returns units [start, stop) along the axis."""
        ...


@dataclass(frozen=True)
class RecodedRows:
    """Rows of one buffer, recoded from a source tensor on demand. The first read of a range is its proof."""

    recoding: Recoding
    key: str
    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> Array:
        """Returns buffer rows [start, stop)."""
        how = self.recoding
        first, last = start // how.group, -(-stop // how.group)
        low, high = first * how.units, min(last * how.units, self.origin.extent)
        raw = self.source.slab(how.axis, low, high)
        made = how.unpack(raw)
        if not self.origin.covers(low, high):
            self.origin.prove(low, high, raw, how.pack(*made))
        rows = made[how.keys.index(self.key)]
        return rows[start - first * how.group : stop - first * how.group]


@dataclass(frozen=True)
class VerbatimRows:
    """Rows of a source tensor as they are."""

    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        self.origin.prove_verbatim(start, stop)
        return self.source.slab(0, start, stop)


def transposed(key: str) -> Recoding:
    """The buffer is the transpose of a 2-D source tensor: a view each way, and a copy only where one is needed."""
    return Recoding((key,), lambda raw: (np.ascontiguousarray(raw.T),), lambda rows: rows.T, axis=1)
