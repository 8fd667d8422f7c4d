"""Tensors of a TFLite file: runs of little-endian elements, row-major, at the place that the schema gives.

INT4 is packed two to a byte, first element in the low nibble, without regard to rows. A quantized tensor is
`(code - zero) * scale`, with one scale or one per index of an axis; zero points of nothing but 0 are not described.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.stored import ByteRange, Stored
from qdeploy.formats.tflite.schema import Parsed, Tensor
from qdeploy.ir.dtype import DType, dtype
from qdeploy.ir.element import as_value
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.pack import bits as bit_stream
from qdeploy.store.folder import Folder
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
    """A constant of the file: what the file says of it, and its elements."""

    described: Tensor
    stored: Stored

    def tensor(self) -> QTensor:
        """As the source means it: float, integer, or codes with a scale."""
        shape, scales = self.stored.shape, self.described.scales
        scale = self._param("scale", scales, "F32", "f32") if scales.size else None
        zero = self._param("zero", self.described.zeros, "I64", "int64") if self.described.zeros.any() else None
        held = self.stored.codes("data", shape or (1,), scale=scale, zero=zero)
        name = "F32" if scale else self.stored.dtype.element
        listed = SourceTensor(
            self.stored.origin.file, self.stored.name, self.stored.origin.kind, self.stored.origin.shape
        )
        return QTensor(shape, name, (Term(held),), source=Source("tflite", "verbatim", {}, (listed,)))

    def integers(self) -> QTensor:
        """Its codes alone, over the same bytes."""
        codes = self.stored.codes("data", self.stored.shape or (1,))
        return QTensor(self.stored.shape, self.stored.dtype.element, (Term(codes),))

    def array(self) -> Array:
        """Its integers in memory."""
        return as_value(self.integers())

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
    rows, found = folder.rows(file), {}
    for index, tensor in enumerate(parsed.tensors):
        if tensor.data is None:
            continue
        where = f"{file}: {tensor.name}"
        kind, (begin, size) = element(tensor.kind, where), tensor.data
        if bit_stream.row_bytes(math.prod(tensor.shape), kind.bits) != size:
            raise BadFileError(
                "a tensor's size contradicts its shape",
                where=where,
                found=f"{size} bytes",
                allowed=f"{list(tensor.shape)} {kind.element}",
            )
        units = size if kind.bits < 8 else math.prod(tensor.shape)
        origin = Origin(file, names[index], kind.storage, (units,), kind=kind.element, begin=begin)
        stored = Stored(names[index], kind, tensor.shape, ByteRange(rows, begin, kind.storage), origin)
        found[index] = Part(tensor, stored)
    return names, found


def _names(tensors: list[Tensor]) -> list[str]:
    """Names as they are; with their index where two are equal or one is empty."""
    every = [tensor.name for tensor in tensors]
    counts = {name: every.count(name) for name in set(every)} if len(set(every)) < len(every) else {}
    return [f"{name}:{i}" if not name or counts.get(name, 1) > 1 else name for i, name in enumerate(every)]


def plain_integers(array: Array, dtype: str, table: str) -> QTensor:
    """An array of integers as a constant of the graph."""
    held = np.atleast_1d(np.ascontiguousarray(array))
    codes = Codes(held.shape, (Buffer.of("data", held, dtype),), PLAIN, table)
    return QTensor(array.shape, dtype, (Term(codes),))
