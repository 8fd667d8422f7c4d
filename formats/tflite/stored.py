"""Tensors of a TFLite file: runs of little-endian elements, row-major, at the place that the schema gives.

INT4 is packed two to a byte, first element in the low nibble, without regard to rows. A quantized tensor is
`(code - zero) * scale`, with one scale, one per index of an axis, or one per block along an axis (a tensor of its own,
which is then part of this one); zero points of nothing but 0 are not described.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.stored import ByteRange, Stored, source_of
from qdeploy.formats.tflite.schema import Parsed, Tensor
from qdeploy.formats.tflite.sparse import SparseStored, Sparsity
from qdeploy.ir.dtype import DType, dtype
from qdeploy.ir.element import as_value
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Shape, Term
from qdeploy.pack import bits as bit_stream
from qdeploy.store.folder import FileRows, Folder
from qdeploy.store.origin import Origin

_KINDS = {
    "FLOAT32": "f32",
    "UINT8": "uint8",
    "INT8": "int8",
    "UINT16": "uint16",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FLOAT16": "f16",
    "FLOAT64": "f64",
    "UINT32": "uint32",
    "INT4": "int4",
}
"""Tensor types of the schema: the number type of each."""


def element(kind: str, where: str) -> DType:
    """The element type of a tensor type; raises UnsupportedError for one that is not read."""
    if kind not in _KINDS:
        raise UnsupportedError("tensors of this type are not read", where=where, found=kind, allowed=", ".join(_KINDS))
    return dtype(_KINDS[kind])


@dataclass(frozen=True)
class Part:
    """A constant of the file: what the file says of it, its elements, and the scales and zero points of its blocks."""

    described: Tensor
    stored: Stored
    block_scales: Stored | None = None
    block_zeros: Stored | None = None

    def tensor(self) -> QTensor:
        """As the source means it: float, integer, or codes with a scale. Floats have none, whatever the file says."""
        if self.stored.dtype.is_float:
            return QTensor(
                self.stored.shape,
                self.stored.dtype.element,
                (Term(self.stored.codes("data", self.stored.shape or (1,))),),
                source=source_of("tflite", "verbatim", [self.stored]),
            )
        shape, scales = self.stored.shape, self.described.scales
        scale = self._param("scale", scales, "F32", "f32") if scales.size else self._blocks("scale", self.block_scales)
        zero = self._param("zero", self.described.zeros, "I64", "int64") if self.described.zeros.any() else None
        zero = zero or self._blocks("zero", self.block_zeros)
        codes = self.stored.codes("data", shape or (1,), scale=scale, zero=zero)
        name = "F32" if scale else self.stored.dtype.element
        parts = [part for part in (self.stored, self.block_scales, self.block_zeros) if part is not None]
        return QTensor(shape, name, (Term(codes),), source=source_of("tflite", "verbatim", parts))

    def integers(self) -> QTensor:
        """Its codes alone, over the same bytes."""
        codes = self.stored.codes("data", self.stored.shape or (1,))
        return QTensor(self.stored.shape, self.stored.dtype.element, (Term(codes),))

    def array(self) -> Array:
        """Its integers in memory."""
        return as_value(self.integers())

    def _blocks(self, key: str, numbers: Stored | None) -> Param | None:
        """One number per block of one axis."""
        if numbers is None:
            return None
        tile = block_tile(self.described, numbers.shape)
        return Param(numbers.codes(key, numbers.shape), tile)

    def _param(self, key: str, numbers: Array, dtype: str, table: str) -> Param:
        shape = self.stored.shape or (1,)
        place = self.described.axis if numbers.size > 1 else -1
        grid: Shape = tuple(numbers.size if i == place else 1 for i in range(len(shape)))
        tile = tuple(1 if i == place else n for i, n in enumerate(shape))
        return Param(Codes(grid, (Buffer.of(key, numbers.reshape(grid), dtype),), PLAIN, table), tile)


def open_tensors(folder: Folder, file: str, parsed: Parsed) -> tuple[list[str], dict[int, Part]]:
    """Returns a name of its own for each tensor, and the constants by their index; nothing of them is read.

    Raises:
        BadFileError: A buffer does not hold the tensor.
        UnsupportedError: A constant of a type that is not read.
    """
    names = _names(parsed.tensors)
    rows = folder.rows(file)
    parts = {i: _stored(rows, file, names[i], t) for i, t in enumerate(parsed.tensors) if t.data is not None}
    return names, {i: _part(file, parsed, parts, i) for i in parts}


def _stored(rows: FileRows, file: str, name: str, tensor: Tensor) -> Stored:
    where = f"{file}: {tensor.name}"
    begin, size = tensor.data or (0, 0)
    kind = element(tensor.kind, where)
    if tensor.sparsity is not None:
        return _sparse(rows, file, name, tensor, tensor.sparsity)
    if bit_stream.row_bytes(math.prod(tensor.shape), kind.bits) != size:
        raise BadFileError(
            "a tensor's size contradicts its shape",
            where=where,
            found=f"{size} bytes",
            allowed=f"{list(tensor.shape)} {kind.element}",
        )
    units = size if kind.bits < 8 else math.prod(tensor.shape)
    origin = Origin(file, name, kind.storage, (units,), kind=kind.element, begin=begin)
    return Stored(name, kind, tensor.shape, ByteRange(rows, begin, kind.storage), origin)


def _sparse(rows: FileRows, file: str, name: str, tensor: Tensor, sparsity: Sparsity) -> Stored:
    """The elements of a sparse tensor, and where they lie."""
    where, (begin, size), kind = f"{file}: {tensor.name}", tensor.data or (0, 0), element(tensor.kind, "")
    places = sparsity.places(tensor.shape, where)
    if kind.bits < 8 or len(places) * kind.bits != 8 * size:
        raise BadFileError(
            "the size of a sparse tensor contradicts its places",
            where=where,
            found=f"{size} bytes",
            allowed=f"{len(places)} elements of {kind.element}",
        )
    origin = Origin(file, name, kind.storage, (len(places),), kind=kind.element, begin=begin)
    return SparseStored(name, kind, tensor.shape, ByteRange(rows, begin, kind.storage), origin, places=places)


def _part(file: str, parsed: Parsed, constants: Mapping[int, Stored], index: int) -> Part:
    """A constant with what its quantization refers to."""
    tensor, blocks = parsed.tensors[index], parsed.tensors[index].blocks
    refuse_unread(tensor.unread, f"{file}: {tensor.name}")
    if blocks is None:
        return Part(tensor, constants[index])
    zeros = blocks.zeros if blocks.zeros >= 0 else None
    for place in (blocks.scales, zeros):
        if place is not None and place not in constants:
            raise BadFileError("scales of blocks that are no constant", where=f"{file}: {tensor.name}", found=place)
        if place is not None:
            block_tile(tensor, constants[place].shape)
    return Part(tensor, constants[index], constants[blocks.scales], None if zeros is None else constants[zeros])


def block_tile(tensor: Tensor, grid: Shape) -> Shape:
    """The tile of a number per block: 1 on every axis but one, where it is the block size.

    Raises:
        BadFileError: The grid of numbers is not that of such blocks.
    """
    size = tensor.blocks.size if tensor.blocks is not None else 1
    for axis in reversed(range(len(tensor.shape))):  # the last axis that fits, as the kernels have it
        if grid == tuple(-(-n // size) if i == axis else n for i, n in enumerate(tensor.shape)):
            return tuple(size if i == axis else 1 for i in range(len(grid)))
    raise BadFileError(
        "scales that do not fit their tensor",
        where=tensor.name,
        found=f"{list(grid)} for blocks of {size}",
        allowed=f"one per block along an axis of {list(tensor.shape)}",
    )


def refuse_unread(names: Sequence[str], where: str) -> None:
    """Raises UnsupportedError for fields that are set and not understood."""
    if names:
        raise UnsupportedError(
            "a field of the schema that is not read, so that its meaning would be lost",
            where=where,
            found=", ".join(names),
            allowed="absent, or its default",
        )


def _names(tensors: list[Tensor]) -> list[str]:
    """Names as they are; with their index where two are equal or one is empty."""
    every = [tensor.name for tensor in tensors]
    counts = {name: every.count(name) for name in set(every)} if len(set(every)) < len(every) else {}
    return [f"{name}:{i}" if not name or counts.get(name, 1) > 1 else name for i, name in enumerate(every)]


def plain_integers(array: Array, dtype: str, table: str) -> QTensor:
    """An array of integers as a constant of the graph."""
    numbers = np.atleast_1d(np.ascontiguousarray(array))
    codes = Codes(numbers.shape, (Buffer.of("data", numbers, dtype),), PLAIN, table)
    return QTensor(array.shape, dtype, (Term(codes),))
