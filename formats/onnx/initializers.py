"""Initializers of ONNX: where their elements lie.

    raw_data             a range of the ONNX file, little-endian, row-major
    external_data        location, offset and length: a range of a file beside it, opened like every other file
                         (qdeploy/store/folder.py); nothing is taken from the other keys
    int32_data, ...      typed fields for small tensors, already in memory; their values are kept, not their bytes

`stored.py` says how elements become codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.onnx.scan import Span
from qdeploy.formats.stored import Array, ByteRange, InMemory, Stored
from qdeploy.ir.dtype import DType, of_onnx, onnx_rows
from qdeploy.pack import bits as bit_stream
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin
from qdeploy.store.storage import storage_dtype

MAX_RANK = 8


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
    row, shape = element_of(proto, where), tuple(proto.dims)
    size = bit_stream.row_bytes(math.prod(shape), row.bits)
    count = size if row.bits < 8 else math.prod(shape)
    external = proto.data_location == 1
    if external + (span is not None and span.end > span.begin) + _typed(proto) > 1:
        raise BadFileError("a tensor has its data in two places", where=where)
    if external:
        name, begin = _external(folder, proto, size, where)
    elif span is not None:
        if span.end - span.begin != size:
            raise BadFileError(
                "a tensor's size contradicts its shape",
                where=where,
                found=span.end - span.begin,
                allowed=f"{size} bytes for {list(shape)} {row.element}",
            )
        name, begin = file, span.begin
    else:
        origin = Origin(file, proto.name, row.storage, (count,), kind=row.element)
        return Stored(proto.name, row, shape, InMemory(typed_units(proto, row, where)), origin, exact=False)
    origin = Origin(name, proto.name, row.storage, (count,), kind=row.element, begin=begin)
    return Stored(proto.name, row, shape, ByteRange(folder.rows(name), begin, row.storage), origin)


def element_of(proto: Any, where: str) -> DType:
    """The element type of a TensorProto whose shape is legal."""
    row = of_onnx(proto.data_type)
    if row is None:
        raise UnsupportedError(
            "tensors of this element type are not read",
            where=where,
            found=proto.data_type,
            allowed=", ".join(known.element for known in onnx_rows()),
        )
    if len(proto.dims) > MAX_RANK or any(n < 0 for n in proto.dims) or math.prod(proto.dims) > 1 << 48:
        raise BadFileError(
            "a shape is out of bounds", where=where, found=list(proto.dims)[:16], allowed=f"at most {MAX_RANK} axes"
        )
    return row


def _typed(proto: Any) -> int:
    """How many typed fields hold something."""
    return sum(
        len(getattr(proto, name)) > 0
        for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    )


def _external(folder: Folder, proto: Any, size: int, where: str) -> tuple[str, int]:
    entries = {entry.key: entry.value for entry in proto.external_data}
    if len(entries) != len(proto.external_data) or not entries.get("location"):
        raise BadFileError("external data without one location", where=where, found=", ".join(entries) or "nothing")
    fields = {"offset": "0", "length": str(size)} | entries
    begin, length = (_number(fields[key], key, where) for key in ("offset", "length"))
    if length != size:
        raise BadFileError("a tensor's size contradicts its shape", where=where, found=length, allowed=f"{size} bytes")
    available = folder.size(entries["location"])
    if begin + length > available:
        raise BadFileError(
            "external data goes beyond the end of its file",
            where=where,
            found=f"bytes {begin}..{begin + length}",
            allowed=f"..{available}",
        )
    return entries["location"], begin


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadFileError("external data with a place that is not a number", where=f"{where}: {key}", found=text)
    return int(text)


def typed_units(proto: Any, row: DType, where: str) -> Array:
    """The units of a TensorProto in memory: of its typed field, or of the raw_data of a constant in a node."""
    count = math.prod(proto.dims)
    size = bit_stream.row_bytes(count, row.bits)
    if proto.data_location == 1:
        raise UnsupportedError("a constant inside of a node lies in another file", where=where)
    if _typed(proto) + bool(proto.raw_data) > 1:
        raise BadFileError("a tensor has its data in two places", where=where)
    units: Array = np.frombuffer(proto.raw_data, np.uint8) if proto.raw_data else _from_field(proto, row, where)
    if units.nbytes != size:
        raise BadFileError(
            "a tensor's size contradicts its shape",
            where=where,
            found=f"{units.nbytes} bytes",
            allowed=f"{size} bytes for {list(proto.dims)} {row.element}",
        )
    return units.view(storage_dtype(row.storage))


def _from_field(proto: Any, row: DType, where: str) -> Array:
    """Typed fields: wide types have fields of their own; everything else lies in the low bits of int32_data."""
    if row.element == "F32":
        return np.array(proto.float_data, np.float32)
    if row.element == "F64":
        return np.array(proto.double_data, np.float64)
    if row.element == "I64":
        return np.array(proto.int64_data, np.int64)
    if row.element in ("U32", "U64"):
        return _fitting(np.array(proto.uint64_data, np.uint64), np.dtype(row.numpy), where)
    unit = max(row.bits, 8) // 8
    signed = row.kind == "signed" and row.bits >= 8
    return _fitting(np.array(proto.int32_data, np.int64), np.dtype(f"<{'i' if signed else 'u'}{unit}"), where)


def _fitting(numbers: Array, dtype: np.dtype[Any], where: str) -> Array:
    """Numbers of a wide field in their own type."""
    limits = np.iinfo(dtype)
    if numbers.size and not (limits.min <= int(numbers.min()) and int(numbers.max()) <= limits.max):
        raise BadFileError(
            "a number does not fit its type",
            where=where,
            found=int(numbers.min() if numbers.min() < limits.min else numbers.max()),
            allowed=f"{limits.min}..{limits.max}",
        )
    return numbers.astype(dtype)
