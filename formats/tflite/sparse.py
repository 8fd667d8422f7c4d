"""Sparse tensors: the elements that are stored, and the places where they lie in the dense tensor.

    SparsityParameters   0: i32[] traversal order   1: i32[] block map   2: DimensionMetadata[]
    DimensionMetadata    0: format (0 dense, 1 compressed)   1: i32 extent   2, 3: segments   4, 5: indices
    segments, indices    a table of one vector, of i32 (1), u16 (2) or u8 (3)

The dense tensor is walked axis by axis in the traversal order, whose last axes are those of blocks; the block map says
which axis of the tensor each of them cuts. On a dense axis every index follows; on a compressed one, for the entry p of
the axes before it, `indices[segments[p]:segments[p + 1]]`. The places of the last axis are those of the elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.stored import Stored
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, Shape
from qdeploy.store.codec import Codec, UnpackedRows

_DENSEST = 256
"""A dense tensor has at most so many elements per byte that its file spends on it, and a few more."""
_FEW = 1 << 16
_TYPES = {1: "<i4", 2: "<u2", 3: "<u1"}


@dataclass(frozen=True)
class Axis:
    """One axis of the walk: its extent, and, where it is compressed, segments and indices."""

    extent: int
    segments: Array | None = None
    indices: Array | None = None


@dataclass(frozen=True)
class Sparsity:
    """How a sparse tensor is walked: the order of its axes, which axes blocks cut, and each axis of the walk."""

    order: tuple[int, ...]
    blocks: tuple[int, ...]
    axes: tuple[Axis, ...]

    def places(self, shape: Shape, where: str) -> Array:
        """The place of each stored element in the dense tensor, row-major: int64 [elements].

        Raises:
            BadFileError: The walk leaves the tensor, or reaches a place twice.
            UnsupportedError: The dense tensor is out of all proportion.
        """
        rank, count = len(shape), math.prod(shape)
        spent = sum(a.size for axis in self.axes for a in (axis.segments, axis.indices) if a is not None)
        if count > _FEW + _DENSEST * spent:
            raise UnsupportedError("a sparse tensor of almost nothing", where=where, found=list(shape))
        if sorted(self.order) != list(range(rank + len(self.blocks))) or len(self.axes) != len(self.order):
            raise BadFileError("axes that are not walked once each", where=where, found=self.order)
        index: list[Array] = [np.zeros(1, np.int64) for _ in self.order]
        entries: Array = np.zeros(1, np.int64)
        for level, axis in enumerate(self.axes):
            kept, here, entries = _walked(axis, entries, count, where)
            index = [i[kept] for i in index]
            index[self.order[level]] = here
        return self._flat(index, shape, where)

    def _flat(self, index: list[Array], shape: Shape, where: str) -> Array:
        rank = len(shape)
        sizes = {cut: self.axes[self.order.index(rank + i)].extent for i, cut in enumerate(self.blocks)}
        flat: Array = np.zeros(len(index[0]), np.int64)
        for axis, extent in enumerate(shape):
            within = index[rank + self.blocks.index(axis)] if axis in sizes else 0
            at = index[axis] * sizes.get(axis, 1) + within
            if at.size and not 0 <= at.min() <= at.max() < extent:
                raise BadFileError("an element outside of its sparse tensor", where=where, found=int(at.max()))
            flat = flat * extent + at
        if len(np.unique(flat)) != len(flat):
            raise BadFileError("two elements at one place of a sparse tensor", where=where)
        return flat


def _walked(axis: Axis, entries: Array, limit: int, where: str) -> tuple[Array, Array, Array]:
    """Which entry each new one came from, its index on this axis, and its number."""
    if axis.segments is None or axis.indices is None:
        if len(entries) * axis.extent > limit:
            raise BadFileError("a walk that leaves its sparse tensor", where=where, found=axis.extent)
        here = np.tile(np.arange(axis.extent, dtype=np.int64), len(entries))
        kept = np.repeat(np.arange(len(entries)), axis.extent)
        return kept, here, entries[kept] * axis.extent + here
    segments, indices = axis.segments.astype(np.int64), axis.indices.astype(np.int64)
    lengths = np.diff(segments)
    fits = len(lengths) == len(entries) and (lengths >= 0).all() and segments[:1].tolist() == [0]
    if not fits or segments[-1] != len(indices) or len(indices) > limit or (indices < 0).any():
        raise BadFileError("segments that do not fit a sparse tensor", where=where, found=f"{len(segments)} segments")
    kept = np.repeat(np.arange(len(entries)), lengths)
    return kept, indices, np.arange(len(indices), dtype=np.int64)


def read_sparsity(table: Any, where: str) -> Sparsity:
    """The sparsity of a tensor, from its verified table."""
    axes = []
    for i in range(table.DimMetadataLength()):
        axis = table.DimMetadata(i)
        if axis.Format() not in (0, 1):
            raise UnsupportedError("an axis of an unknown format", where=where, found=axis.Format())
        if not axis.Format():
            axes.append(Axis(int(axis.DenseSize())))
            continue
        segments = _numbers(axis.ArraySegmentsType(), axis.ArraySegments(), where)
        axes.append(Axis(0, segments, _numbers(axis.ArrayIndicesType(), axis.ArrayIndices(), where)))
    order, blocks = table.TraversalOrderAsNumpy(), table.BlockMapAsNumpy()
    listed = [() if isinstance(part, int) else tuple(int(n) for n in part) for part in (order, blocks)]
    if min((axis.extent for axis in axes), default=0) < 0:
        raise BadFileError("an axis of less than nothing", where=where)
    return Sparsity(listed[0], listed[1], tuple(axes))


def _numbers(kind: int, table: Any, where: str) -> Array:
    if kind not in _TYPES or table is None:
        raise UnsupportedError("indices of an unknown type", where=where, found=kind)
    place = table.Offset(4)
    if not place:
        return np.zeros(0, np.int64)
    begin, count = table.Vector(place), table.VectorLen(place)
    return np.frombuffer(table.Bytes, _TYPES[kind], count, begin).astype(np.int64)


@dataclass(frozen=True)
class SparseStored(Stored):
    """A sparse tensor as the dense one that it stands for; its bytes are those of its elements.

    Attributes:
        places: Where each stored element lies in the dense tensor.
    """

    places: Array | None = None

    def codes(self, key: str, grid: Shape, **params: Param | None) -> Codes:
        """The elements in a grid of as many elements."""
        return Codes(grid, (self.buffer(key, grid),), PLAIN, self.dtype.name, **params)

    def buffer(self, key: str, shape: Shape) -> Buffer:
        """The dense tensor, in rows."""
        places = self.places if self.places is not None else np.zeros(0, np.int64)

        def unpack(raw: Array) -> tuple[Array, ...]:
            dense = np.zeros(math.prod(shape), raw.dtype)
            dense[places] = raw
            return (dense.reshape(shape),)

        def pack(rows: Array) -> Array:
            return rows.reshape(-1)[places]

        how = Codec((key,), unpack, pack, group=shape[0], units=len(places))
        return Buffer(key, self.dtype.storage, shape, UnpackedRows(how, key, self.source, self.origin))

    def array(self) -> Array:
        """All elements."""
        return self.buffer("data", self.shape or (1,)).read().reshape(self.shape)
