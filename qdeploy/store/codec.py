"""Between a source tensor and the buffers made of it: read a slab, put it into normal form, and prove the way back.

A `Codec` is a pair of pure functions over slabs. The reader uses it forwards (and backwards, for the proof); writing
the source file again uses it backwards only. Buffer rows [i * group, (i + 1) * group) and units [i * units,
(i + 1) * units) of the source tensor (along `axis`) belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qdeploy.store.origin import Origin

Array = npt.NDArray[Any]

SLAB_BYTES = 8 << 20
"""About how much is read, unpacked or written at a time."""


@dataclass(frozen=True)
class Codec:
    """How one source tensor and the buffers made of it become each other.

    Attributes:
        keys: The buffers, by key. None at all: the tensor follows from the arguments of its source, as a whole.
        unpack: Raw slab -> rows of each buffer, in the order of `keys`.
        pack: Rows of each buffer -> raw slab. May return a view in any memory order.
        axis: The axis of the source tensor along which slabs are cut.
        group: Buffer rows per step.
        units: Units of the source tensor per step.
        each: The same for each buffer, where they differ; empty: all have `group`.
        rows: Rows of the buffers, where the last step holds fewer than `group`: what `unpack` makes of its padding is
            dropped, and `pack` is given fewer rows. 0 where every step is full.
    """

    keys: tuple[str, ...]
    unpack: Callable[[Array], tuple[Array, ...]]
    pack: Callable[..., Array]
    axis: int = 0
    group: int = 1
    units: int = 1
    rows: int = 0
    each: tuple[int, ...] = ()

    def group_of(self, key: str) -> int:
        """Rows of a buffer per step."""
        return self.each[self.keys.index(key)] if self.each else self.group


class Slabs(Protocol):
    """A source tensor that can be read in slabs along an axis."""

    def slab(self, axis: int, start: int, stop: int) -> Array:
        """Returns units [start, stop) along the axis."""
        ...


class Readable(Protocol):
    """A buffer, as far as writing back needs it: shape, and any range of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows are the first axis."""
        ...

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Returns rows [start, stop)."""
        ...


@dataclass(frozen=True)
class UnpackedRows:
    """Rows of one buffer, unpacked from a source tensor on demand. The first read of a range is its proof."""

    codec: Codec
    key: str
    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> Array:
        """Returns buffer rows [start, stop)."""
        how, group = self.codec, self.codec.group_of(self.key)
        first, last = start // group, -(-stop // group)
        low, high = first * how.units, min(last * how.units, self.origin.extent)
        raw = self.source.slab(how.axis, low, high)
        arrays = how.unpack(raw)
        if how.rows:
            arrays = tuple(rows[: how.rows - first * how.group] for rows in arrays)
        if not self.origin.covers(low, high):
            self.origin.prove(low, high, raw, how.pack(*arrays))
        rows = arrays[how.keys.index(self.key)]
        return rows[start - first * group : stop - first * group]


@dataclass(frozen=True)
class VerbatimRows:
    """Rows of a source tensor as they are."""

    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        rows = self.source.slab(0, start, stop)
        self.origin.prove_verbatim(start, stop)
        return rows


def verbatim(key: str) -> Codec:
    """The buffer is the source tensor as it is."""
    return Codec((key,), lambda raw: (raw,), lambda rows: rows)


def restore(how: Codec, buffers: Sequence[Readable], shape: tuple[int, ...]) -> Iterator[tuple[int, Array]]:
    """Writes a source tensor again, slab by slab; nothing larger than a slab is held.

    Args:
        how: Its codec.
        buffers: The buffers that `how.keys` names, in that order.
        shape: The shape of the source tensor.

    Yields:
        (start, slab): units [start, start + slab.shape[how.axis]) along `how.axis`, ascending and without gaps, in the
        storage type of the source. Where the tensor has a residue, it is to be applied afterwards.
    """
    if not how.keys:
        yield 0, how.pack()
        return
    extent = shape[how.axis] if shape else 1
    groups = [how.group_of(key) for key in how.keys]
    step_bytes = max(sum(group * b.row_bytes for group, b in zip(groups, buffers, strict=True)), 1)
    steps = max(1, SLAB_BYTES // step_bytes)
    for start in range(0, extent, steps * how.units):
        first = start // how.units
        parts = (b.read(first * n, min((first + steps) * n, b.shape[0])) for n, b in zip(groups, buffers, strict=True))
        yield start, how.pack(*parts)


def keep_slabs() -> None:
    """Lets the memory of one slab serve the next; called once, before a long conversion.

    By default glibc gives every freed slab back to the system, which clears its pages anew for the next one: a third
    of the time of a conversion. Freeing one block just below 32 MiB raises both of its limits (mallopt(3),
    M_MMAP_THRESHOLD) without a page being touched; elsewhere it does nothing.
    """
    np.empty((32 << 20) - 8192, np.uint8)
