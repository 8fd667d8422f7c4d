"""Tensors stored as runs of elements, row-major and little-endian, and how those become codes.

Shared by the readers of ONNX, TFLite and checkpoints of torch.save: each finds out where the elements lie, in a range
of a file or already in memory, and of which type they are.

Elements of 4 and 2 bits are one stream over the whole tensor, first element in the low bits, padded at its end only.
Where the last axis of a grid fills whole bytes the stream is a bit stream per row and stays as it is; elsewhere the
codes are kept one per byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from qdeploy.ir.dtype import DType, element_row
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.pack import bits as bit_stream
from qdeploy.store.codec import Codec, UnpackedRows
from qdeploy.store.folder import FileRows
from qdeploy.store.origin import Origin
from qdeploy.store.pickled import PickledTensor
from qdeploy.store.storage import storage_dtype

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ByteRange:
    """A range of a file as units of a storage type. Satisfies `Slabs`."""

    rows: FileRows
    begin: int
    dtype: str

    def slab(self, axis: int, start: int, stop: int) -> Array:
        """Returns units [start, stop)."""
        size = storage_dtype(self.dtype).itemsize
        return self.rows.read(self.begin + start * size, self.begin + stop * size).view(storage_dtype(self.dtype))


@dataclass(frozen=True)
class InMemory:
    """Units of a typed field. Satisfies `Slabs`."""

    units: Array

    def slab(self, axis: int, start: int, stop: int) -> Array:
        """Returns units [start, stop)."""
        return self.units[start:stop]


@dataclass(frozen=True)
class UnitRows:
    """Rows of a buffer over a run of units, as they are; reading them proves them."""

    source: ByteRange | InMemory
    origin: Origin
    tail: Shape

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        row = math.prod(self.tail)
        units = self.source.slab(0, start * row, stop * row)
        self.origin.prove_verbatim(start * row, stop * row)
        return units.reshape(stop - start, *self.tail)


@dataclass(frozen=True)
class Stored:
    """A tensor as its file has it.

    Attributes:
        name: Its name.
        dtype: The number type of its elements.
        shape: Its shape.
        source: Its units: elements, or bytes for elements of less than a byte.
        origin: Its place in the ledger, over the same units.
        exact: Whether its bytes are a range of a file, and so can be shown to come back.
    """

    name: str
    dtype: DType
    shape: Shape
    source: ByteRange | InMemory
    origin: Origin
    exact: bool = field(default=True)

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def codes(self, key: str, grid: Shape, **params: Param | None) -> Codes:
        """The elements in a grid of as many elements."""
        if self.dtype.bits >= 8:
            return Codes(grid, (self.buffer(key, grid),), PLAIN, self.dtype.name, **params)
        bits, last = self.dtype.bits, grid[-1]
        if len(grid) == 1 or last * bits % 8 == 0:
            packed = (*grid[:-1], bit_stream.row_bytes(last, bits))
            return Codes(grid, (self.buffer(key, packed),), Layout("bits", bits), self.dtype.name, **params)
        rows = UnpackedRows(_flat_stream(key, grid, bits), key, self.source, self.origin)
        return Codes(grid, (Buffer(key, "U8", grid, rows),), PLAIN, self.dtype.name, **params)

    def buffer(self, key: str, shape: Shape) -> Buffer:
        """The units as they are, in rows."""
        return Buffer(key, self.dtype.storage, shape, UnitRows(self.source, self.origin, shape[1:]))

    def tensor(self, reader: str) -> QTensor:
        """The tensor, alone; `reader` names the format that it came in."""
        codes = self.codes("data", self.shape or (1,))
        return QTensor(self.shape, self.dtype.element, (Term(codes),), source=source_of(reader, "verbatim", [self]))

    def array(self) -> Array:
        """All elements, for small tensors of whole bytes."""
        return self.source.slab(0, 0, self.count).reshape(self.shape)


def of_torch(file: str, name: str, tensor: PickledTensor, rows: FileRows) -> Stored:
    """A tensor of a checkpoint that torch.save wrote; `rows` are the bytes of the file."""
    element = element_row(tensor.dtype)
    origin = Origin(file, name, element.storage, (math.prod(tensor.shape),), begin=tensor.begin)
    return Stored(name, element, tensor.shape, ByteRange(rows, tensor.begin, element.storage), origin)


def source_of(reader: str, writer: str, parts: Sequence[Stored]) -> Source:
    """Where a tensor came from: the parts whose bytes are ranges of files."""
    listed = tuple(SourceTensor(s.origin.file, s.name, s.origin.kind, s.origin.shape) for s in parts if s.exact)
    return Source(reader, writer, {}, listed, exact="bytes" if len(listed) == len(parts) else "values")


def _flat_stream(key: str, grid: Shape, bits: int) -> Codec:
    """One stream over all rows <-> one code per byte; so many rows at a time as begin and end at a byte."""
    row, tail = math.prod(grid[1:]), grid[1:]
    group = 8 // math.gcd(max(row, 1) * bits, 8)

    def unpack(raw: Array) -> tuple[Array, ...]:
        count = raw.size * 8 // bits
        rows = count // max(row, 1)
        return (bit_stream.unpack(raw, count, bits)[: rows * row].reshape(rows, *tail),)

    def pack(rows: Array) -> Array:
        return bit_stream.pack(rows.reshape(-1), bits)

    return Codec((key,), unpack, pack, group=group, units=group * row * bits // 8, rows=grid[0])
