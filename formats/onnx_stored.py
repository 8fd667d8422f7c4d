"""Initializers: where their elements lie, and how those become codes.

    raw_data             a range of the ONNX file, little-endian, row-major
    external_data        location, offset and length: a range of a file beside it, opened like every other file
                         (qdeploy/store/folder.py); nothing is taken from the other keys
    int32_data, ...      typed fields for small tensors, already in memory; their values are kept, not their bytes

Elements of 4 and 2 bits are one stream over the whole tensor, first element in the low bits, padded at its end only.
Where the last axis of a grid fills whole bytes the stream is a bit stream per row and stays as it is; elsewhere the
codes are kept one per byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.onnx_scan import Span
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.pack import bits as bit_stream
from qdeploy.store.folder import FileRows, Folder
from qdeploy.store.origin import Origin
from qdeploy.store.recode import RecodedRows, Recoding
from qdeploy.store.storage import storage_dtype

Array = npt.NDArray[Any]
MAX_RANK = 8


@dataclass(frozen=True)
class ElementType:
    """An element type of ONNX: its name here, the number format, bits, and the storage type its bytes are read as."""

    name: str
    table: str
    bits: int
    storage: str


ELEMENTS = {
    1: ElementType("F32", "f32", 32, "F32"), 2: ElementType("U8", "uint8", 8, "U8"),
    3: ElementType("I8", "int8", 8, "I8"), 4: ElementType("U16", "uint16", 16, "U16"),
    5: ElementType("I16", "int16", 16, "I16"), 6: ElementType("I32", "int32", 32, "I32"),
    7: ElementType("I64", "int64", 64, "I64"), 9: ElementType("BOOL", "bool", 8, "BOOL"),
    10: ElementType("F16", "f16", 16, "F16"), 11: ElementType("F64", "f64", 64, "F64"),
    12: ElementType("U32", "uint32", 32, "U32"), 16: ElementType("BF16", "bf16", 16, "BF16"),
    17: ElementType("F8_E4M3", "e4m3", 8, "F8_E4M3"), 19: ElementType("F8_E5M2", "e5m2", 8, "F8_E5M2"),
    21: ElementType("U4", "uint4", 4, "U8"), 22: ElementType("I4", "int4", 4, "U8"),
    23: ElementType("F4_E2M1", "e2m1", 4, "U8"), 24: ElementType("F8_E8M0", "e8m0", 8, "F8_E8M0"),
    25: ElementType("U2", "uint2", 2, "U8"), 26: ElementType("I2", "int2", 2, "U8"),
}  # fmt: skip
"""Element types by their number in TensorProto.DataType."""


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
    """An initializer.

    Attributes:
        name: Its name.
        element: Its element type.
        shape: Its shape.
        source: Its units: elements, or bytes for elements of less than a byte.
        origin: Its place in the ledger, over the same units.
        exact: Whether its bytes are a range of a file, and so can be shown to come back.
    """

    name: str
    element: ElementType
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
        if self.element.bits >= 8:
            return Codes(grid, (self.buffer(key, grid),), PLAIN, self.element.table, **params)
        bits, last = self.element.bits, grid[-1]
        if len(grid) == 1 or last * bits % 8 == 0:
            packed = (*grid[:-1], bit_stream.row_bytes(last, bits))
            return Codes(grid, (self.buffer(key, packed),), Layout("bits", bits), self.element.table, **params)
        rows = RecodedRows(_flat_stream(key, grid, bits), key, self.source, self.origin)
        return Codes(grid, (Buffer(key, "U8", grid, rows),), PLAIN, self.element.table, **params)

    def buffer(self, key: str, shape: Shape) -> Buffer:
        """The units as they are, in rows."""
        return Buffer(key, self.element.storage, shape, UnitRows(self.source, self.origin, shape[1:]))

    def tensor(self) -> QTensor:
        """The initializer by itself."""
        codes = self.codes("data", self.shape or (1,))
        return QTensor(self.shape, self.element.name, (Term(codes),), source=source_of("verbatim", [self]))

    def array(self) -> Array:
        """All elements, for small tensors of whole bytes."""
        return self.source.slab(0, 0, self.count).reshape(self.shape)


def source_of(writer: str, parts: Sequence[Stored]) -> Source:
    """Where a tensor came from: the parts whose bytes are ranges of files."""
    listed = tuple(SourceTensor(s.origin.file, s.name, s.origin.kind, s.origin.shape) for s in parts if s.exact)
    return Source("onnx", writer, {}, listed, exact="bytes" if len(listed) == len(parts) else "values")


def _flat_stream(key: str, grid: Shape, bits: int) -> Recoding:
    """One stream over all rows <-> one code per byte; so many rows at a time as begin and end at a byte."""
    row, tail = math.prod(grid[1:]), grid[1:]
    group = 8 // math.gcd(max(row, 1) * bits, 8)

    def unpack(raw: Array) -> tuple[Array, ...]:
        count = raw.size * 8 // bits
        rows = count // max(row, 1)
        return (bit_stream.unpack(raw, count, bits)[: rows * row].reshape(rows, *tail),)

    def pack(rows: Array) -> Array:
        return bit_stream.pack(rows.reshape(-1), bits)

    return Recoding((key,), unpack, pack, group=group, units=group * row * bits // 8, rows=grid[0])


def open_initializers(folder: Folder, file: str, protos: Sequence[Any], spans: Sequence[Span | None]) -> list[Stored]:
    """Finds the elements of every initializer; nothing of them is read.

    Args:
        folder: The folder of the ONNX file.
        file: The ONNX file's name.
        protos: TensorProtos without their raw_data.
        spans: Where that lies.

    Raises:
        BadFileError: A size contradicts a shape, a range leaves its file, or a location leads outside of the folder.
        UnsupportedError: An element type that is not read.
    """
    return [_open(folder, file, proto, span) for proto, span in zip(protos, spans, strict=True)]


def _open(folder: Folder, file: str, proto: Any, span: Span | None) -> Stored:
    where = f"{file}: {proto.name}"
    element, shape = element_of(proto, where), tuple(proto.dims)
    size = bit_stream.row_bytes(math.prod(shape), element.bits)
    count = size if element.bits < 8 else math.prod(shape)
    external = proto.data_location == 1
    if external + (span is not None) > 1 or (external and _typed(proto)):
        raise BadFileError("a tensor has its data in two places", where=where)
    if external:
        name, begin = _external(folder, proto, size, where)
    elif span is not None:
        if span.end - span.begin != size:
            raise BadFileError("a tensor's size contradicts its shape", where=where, found=span.end - span.begin,
                               allowed=f"{size} bytes for {list(shape)} {element.name}")  # fmt: skip
        name, begin = file, span.begin
    else:
        origin = Origin(file, proto.name, element.storage, (count,), kind=element.name)
        return Stored(proto.name, element, shape, InMemory(typed_units(proto, element, where)), origin, exact=False)
    origin = Origin(name, proto.name, element.storage, (count,), kind=element.name, begin=begin)
    return Stored(proto.name, element, shape, ByteRange(folder.rows(name), begin, element.storage), origin)


def element_of(proto: Any, where: str) -> ElementType:
    """The element type of a TensorProto whose shape is legal."""
    if proto.data_type not in ELEMENTS:
        raise UnsupportedError("tensors of this element type are not read", where=where, found=proto.data_type,
                               allowed=", ".join(e.name for e in ELEMENTS.values()))  # fmt: skip
    if len(proto.dims) > MAX_RANK or any(n < 0 for n in proto.dims) or math.prod(proto.dims) > 1 << 48:
        raise BadFileError("a shape is out of bounds", where=where, found=list(proto.dims)[:16],
                           allowed=f"at most {MAX_RANK} axes")  # fmt: skip
    return ELEMENTS[proto.data_type]


def _typed(proto: Any) -> bool:
    return any(len(getattr(proto, name)) for name in
               ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"))  # fmt: skip


def _external(folder: Folder, proto: Any, size: int, where: str) -> tuple[str, int]:
    entries = {entry.key: entry.value for entry in proto.external_data}
    if len(entries) != len(proto.external_data) or not entries.get("location"):
        raise BadFileError("external data without one location", where=where, found=", ".join(entries) or "nothing")
    given = {"offset": "0", "length": str(size)} | entries
    begin, length = (_number(given[key], key, where) for key in ("offset", "length"))
    if length != size:
        raise BadFileError("a tensor's size contradicts its shape", where=where, found=length, allowed=f"{size} bytes")
    available = folder.size(entries["location"])
    if begin + length > available:
        raise BadFileError("external data goes beyond the end of its file", where=where,
                           found=f"bytes {begin}..{begin + length}", allowed=f"..{available}")  # fmt: skip
    return entries["location"], begin


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadFileError("external data with a place that is no number", where=f"{where}: {key}", found=text)
    return int(text)


def typed_units(proto: Any, element: ElementType, where: str) -> Array:
    """The units of a TensorProto in memory: of its typed field, or of the raw_data of a constant in a node."""
    count = math.prod(proto.dims)
    size = bit_stream.row_bytes(count, element.bits)
    if proto.data_location == 1:
        raise UnsupportedError("a constant inside of a node lies in another file", where=where)
    units: Array = np.frombuffer(proto.raw_data, np.uint8) if proto.raw_data else _from_field(proto, element)
    if units.nbytes != size:
        raise BadFileError("a tensor's size contradicts its shape", where=where, found=f"{units.nbytes} bytes",
                           allowed=f"{size} bytes for {list(proto.dims)} {element.name}")  # fmt: skip
    return units.view(storage_dtype(element.storage))


def _from_field(proto: Any, element: ElementType) -> Array:
    """Typed fields: float_data, double_data and int64_data as they are; all else in the low bits of int32_data."""
    if element.name == "F32":
        return np.array(proto.float_data, np.float32)
    if element.name == "F64":
        return np.array(proto.double_data, np.float64)
    if element.name == "I64":
        return np.array(proto.int64_data, np.int64)
    if element.name == "U32":
        return np.array(proto.uint64_data, np.uint64).astype(np.uint32)
    unit = max(element.bits, 8) // 8
    return np.array(proto.int32_data, np.int64).astype(f"<i{unit}")
