"""Stored values of an ML program, and the constexpr operations that decompress them, as tensors.

A file of weights (MIL blob storage, version 2) has records at multiples of 64 bytes. At the offset of a value stands

    u32 0xDEADBEEF   u32 type   u64 bytes   u64 offset of the data   u64 bits that pad the end

and the data are row-major; elements of fewer than 8 bits are one stream, the first element in the low bits. Tensors are
called as the operation's output. iOS 18 (CoreML8) has

    constexpr_blockwise_shift_scale(data, scale, offset)          (data - offset) * scale, by blocks along every axis
    constexpr_lut_to_dense(indices, lut, vector_axis)             lut [tables per axis ..., entries, vector]
    constexpr_sparse_to_dense(nonzero_data, mask)                 mask: one bit per element
    constexpr_lut_to_sparse(indices_mask, indices_nonzero_data, lut)   gives a mask and its elements, for the above
    constexpr_sparse_blockwise_shift_scale(data_mask, nonzero_data, scale, offset)   the same

and iOS 16 (CoreML6) constexpr_affine_dequantize(quantized_data, zero_point, scale, axis), constexpr_cast(source_val),
constexpr_lut_to_dense(indices, lut, shape) and constexpr_sparse_to_dense(nonzero_data, mask, shape), whose packed bytes
are such streams, too. (Layouts: coremltools 9, mil/ops/defs/iOS16 and iOS18, MILBlob/Blob/StorageFormat.hpp.)
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.coreml.program import Constant, Function, Operation, Type, numbers
from qdeploy.formats.stored import ByteRange, InMemory, Stored, source_of
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin
from qdeploy.store.storage import storage_dtype

_MARK, _RECORD = 0xDEADBEEF, 32
_MODEL_PATH = "@model_path/"
CONSTEXPR = "constexpr_"
_TYPES = {
    1: "f16",
    2: "f32",
    3: "uint8",
    4: "int8",
    5: "bf16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
    16: "e4m3",
    17: "e5m2",
}
"""Types of a record, by number (MILBlob/Blob/BlobDataType.hpp)."""


class Values:
    """The stored values of a program.

    Attributes:
        tensors: By the name of the value.
        constants: Values of `const` operations, by name.
        stored: Everything that was opened, for the ledger.
    """

    def __init__(self, folder: Folder, file: str, function: Function) -> None:
        self.folder, self.file = folder, file
        self.constants: dict[str, Constant] = {}
        self.tensors: dict[str, QTensor] = {}
        self.stored: dict[tuple[str, int], Stored] = {}
        self._sparse: dict[str, tuple[Operation, int]] = {}
        for operation in function.operations:
            if operation.kind == "const":
                self._const(operation)
            elif operation.kind.startswith(CONSTEXPR):
                self._constexpr(operation)

    def where(self, name: str) -> str:
        """A value as errors name it."""
        return f"{self.file}: {name}"

    def _const(self, operation: Operation) -> None:
        value = operation.inputs.get("val", ("",))[0]
        if not isinstance(value, Constant):
            raise BadFileError("a constant without a value", where=self.where(operation.name))
        self.constants[operation.name] = value
        if value.type.element and not value.texts and value.type.element != "string":
            opened = self.open(value, operation.name)
            if opened.count or not opened.shape:
                self.tensors[operation.name] = opened.tensor("coreml")

    # ---- where elements lie

    def open(self, value: Constant, name: str) -> Stored:
        """The elements of a value; none of a file is read."""
        row, shape, where = dtype(value.type.element), value.type.shape, self.where(name)
        if min(shape, default=1) < 0:
            raise BadFileError("a constant with a free axis", where=where, found=list(shape))
        size = streams.row_bytes(math.prod(shape), row.bits)
        units = size if row.bits < 8 else math.prod(shape)
        if not value.file:
            if len(value.data) != size:
                raise BadFileError(
                    "a constant of another size", where=where, found=f"{len(value.data)} bytes", allowed=str(size)
                )
            memory = np.frombuffer(value.data, np.uint8).view(storage_dtype(row.storage))
            origin = Origin(self.file, name, row.storage, (units,), kind=row.name)
            return Stored(name, row, shape, InMemory(memory), origin, exact=False)
        file, begin = self._place(value, size, where)
        key = (file, begin)
        if key not in self.stored:
            origin = Origin(file, name, row.storage, (units,), kind=row.name, begin=begin)
            self.stored[key] = Stored(name, row, shape, ByteRange(self.folder.rows(file), begin, row.storage), origin)
        known = self.stored[key]
        return known if known.shape == shape and known.dtype == row else replace(known, shape=shape, dtype=row)

    def _place(self, value: Constant, size: int, where: str) -> tuple[str, int]:
        """The file of a value, and where its data begin."""
        if not value.file.startswith(_MODEL_PATH) or ".." in value.file:
            raise BadFileError("weights in a place that is not the package's", where=where, found=value.file)
        file = posixpath.join(posixpath.dirname(self.file), value.file.removeprefix(_MODEL_PATH))
        total = self.folder.size(file)
        if not 0 <= value.offset <= total - _RECORD:
            raise BadFileError("a value beyond the end of its file", where=where, found=value.offset)
        record = self.folder.rows(file).read(value.offset, value.offset + _RECORD)
        mark, (stored, begin) = int(record[:4].view("<u4")[0]), map(int, record[8:24].view("<u8"))
        self._check_type(int(record[4:8].view("<u4")[0]), value.type.element, where)
        if mark != _MARK or stored != size or begin + stored > total:
            raise BadFileError(
                "a record of weights contradicts its value",
                where=where,
                found=f"mark {mark:#x}, {stored} bytes at {begin} of {total}",
                allowed=f"mark {_MARK:#x}, {size} bytes",
            )
        return file, begin

    def _check_type(self, number: int, element: str, where: str) -> None:
        stored = _TYPES.get(number, f"type {number}")
        if stored != element and not (element == "bool" and number in (3, 4)):
            raise BadFileError(
                "a record of weights is of another type than its value", where=where, found=stored, allowed=element
            )

    # ---- what is decompressed

    def _constexpr(self, operation: Operation) -> None:
        build = {
            "blockwise_shift_scale": self._scaled,
            "affine_dequantize": self._affine,
            "lut_to_dense": self._looked_up,
            "sparse_to_dense": self._dense,
            "cast": self._cast,
        }.get(operation.kind.removeprefix(CONSTEXPR))
        if build is not None:
            self.tensors[operation.name] = build(operation)
        elif operation.kind in (f"{CONSTEXPR}lut_to_sparse", f"{CONSTEXPR}sparse_blockwise_shift_scale"):
            self._sparse |= {name: (operation, place) for place, (name, _) in enumerate(operation.outputs)}
        else:
            raise UnsupportedError(
                "constants of this kind are not read", where=self.where(operation.name), found=operation.kind
            )

    def argument(self, operation: Operation, key: str) -> Stored | str | None:
        """A parameter: stored elements, or the name of what another operation decompresses; None where it is absent."""
        values = operation.inputs.get(key, ())
        if not values:
            return None
        value = values[0]
        name = value if isinstance(value, str) else f"{operation.name}/{key}"
        constant = self.constants.get(value) if isinstance(value, str) else value
        return name if constant is None else self.open(constant, name)

    def _elements(self, operation: Operation, key: str) -> Stored:
        value = self.argument(operation, key)
        if not isinstance(value, Stored):
            raise UnsupportedError(
                "a parameter that is decompressed itself is not read here",
                where=self.where(operation.name),
                found=f"{key} = {value}",
            )
        return value

    def _scaled(self, operation: Operation) -> QTensor:
        scale, offset = self._elements(operation, "scale"), self.argument(operation, "offset")
        data = self.argument(operation, "data")
        parts = [scale, *([offset] if isinstance(offset, Stored) else [])]
        if isinstance(data, Stored):
            codes = data.codes("codes", data.shape or (1,))
            shape, terms = data.shape, [data, *parts]
        else:
            inner = self._inner(operation, data)
            codes, shape = inner.terms[0].values, inner.shape  # type: ignore[assignment]
            terms = [*self._parts(inner), *parts]
        params = self._blocks(operation, codes.decoded_shape, scale, offset if isinstance(offset, Stored) else None)
        whole = replace(codes, zero=params[1], scale=params[0])
        return self._tensor(operation, shape, whole, terms)

    def _inner(self, operation: Operation, name: Stored | str | None) -> QTensor:
        """What another operation decompresses, without parameters of its own."""
        inner = self.tensors.get(str(name))
        codes = inner.terms[0].values if inner is not None else None
        bare = isinstance(codes, Codes) and codes.zero is None and codes.scale is None
        if inner is None or len(inner.terms) != 1 or not bare or inner.terms[0].where is not None:
            raise UnsupportedError(
                "constants that are decompressed in this order are not read",
                where=self.where(operation.name),
                found=f"{operation.kind} of {name}",
            )
        del self.tensors[str(name)]
        return inner

    def _parts(self, tensor: QTensor) -> list[Stored]:
        names = {part.name for part in tensor.source.tensors} if tensor.source else set()
        return [stored for stored in self.stored.values() if stored.name in names]

    def _blocks(
        self, operation: Operation, grid: Shape, scale: Stored, offset: Stored | None
    ) -> tuple[Param, Param | None]:
        shape = scale.shape or (1,) * len(grid)
        fits = len(shape) == len(grid) and all(n and g % n == 0 for n, g in zip(shape, grid, strict=True))
        if not fits or (offset is not None and (offset.shape or shape) != shape):
            raise BadFileError(
                "a scale that does not fit its data", where=self.where(operation.name), found=f"{shape} over {grid}"
            )
        tile = tuple(g // n for n, g in zip(shape, grid, strict=True))
        zero = None if offset is None else Param(offset.codes("zero", shape), tile)
        return Param(scale.codes("scale", shape), tile), zero

    def _affine(self, operation: Operation) -> QTensor:
        data, scale = (self._elements(operation, key) for key in ("quantized_data", "scale"))
        zero, axis = self._elements(operation, "zero_point"), self.integer(operation, "axis", 0)
        grid = data.shape or (1,)
        if not -len(grid) <= axis < len(grid):
            raise BadFileError("an axis that is not there", where=self.where(operation.name), found=axis)
        params = []
        for part, key in ((zero, "zero"), (scale, "scale")):
            if part.count not in (1, grid[axis]):
                raise BadFileError(
                    "a scale that does not fit its data", where=self.where(operation.name), found=list(part.shape)
                )
            shape = tuple(part.count if i == axis % len(grid) else 1 for i in range(len(grid)))
            tile = tuple(g if n == 1 else 1 for n, g in zip(shape, grid, strict=True))
            params.append(Param(part.codes(key, shape), tile))
        codes = data.codes("codes", grid, zero=params[0], scale=params[1])
        return self._tensor(operation, data.shape, codes, [data, zero, scale])

    def _looked_up(self, operation: Operation) -> QTensor:
        indices, lut = self._elements(operation, "indices"), self._elements(operation, "lut")
        if "shape" in operation.inputs:
            shape = self.shape(operation)
            width = max(1, (lut.count - 1).bit_length())
            return self._tensor(
                operation, shape, _packed(indices, shape, width, self._table(operation, lut, 1)), [indices, lut]
            )
        grid = indices.shape or (1,)
        axis = self.integer(operation, "vector_axis", -1) % len(grid)
        codes = indices.codes("codes", grid)
        codes = replace(codes, table=self._palettes(operation, lut, grid, axis))
        return self._tensor(operation, codes.decoded_shape, codes, [indices, lut])

    def _table(self, operation: Operation, lut: Stored, tables: int) -> Table:
        return Table(lut.buffer("table", (tables, lut.count // tables)))

    def _palettes(self, operation: Operation, lut: Stored, grid: Shape, axis: int) -> Table:
        """Tables per block of the indices; their entries are numbers, or vectors along one axis."""
        if len(lut.shape) != len(grid) + 2 or any(g % n for n, g in zip(lut.shape, grid, strict=False)):
            raise BadFileError(
                "a table that does not fit its indices",
                where=self.where(operation.name),
                found=f"{list(lut.shape)} for {list(grid)}",
            )
        *blocks, entries, length = lut.shape
        tables = math.prod(blocks)
        block = tuple(length if i == axis else 1 for i in range(len(grid))) if length > 1 else ()
        values = lut.buffer("table", (tables, entries, *block))
        if tables == 1:
            return Table(values)
        order = np.arange(tables, dtype=np.uint32).reshape(blocks)
        select = Codes(tuple(blocks), (Buffer.of("select", order, "U32"),), PLAIN, "uint32")
        return Table(values, Param(select, tuple(g // n for n, g in zip(blocks, grid, strict=True))))

    def _dense(self, operation: Operation) -> QTensor:
        """Elements where a mask has a bit, and zeros."""
        mask, data = self._mask(operation, "mask"), self.argument(operation, "nonzero_data")
        if isinstance(data, str) and data in self._sparse:
            return self._joint(operation, self._sparse[data][0], mask)
        data = self._elements(operation, "nonzero_data")
        shape = self.shape(operation) if "shape" in operation.inputs else mask.shape
        run = Codes(shape, (data.buffer("codes", (data.count,)),), PLAIN, data.dtype.name)
        return self._masked(operation, shape, run, mask, [data])

    def _joint(self, operation: Operation, inner: Operation, mask: Stored) -> QTensor:
        """Elements that are looked up or scaled first."""
        key = "indices_nonzero_data" if inner.kind.endswith("lut_to_sparse") else "nonzero_data"
        data, shape = self._elements(inner, key), mask.shape
        packed = (streams.row_bytes(data.count, data.dtype.bits) if data.dtype.bits < 8 else data.count,)
        layout = Layout("bits", data.dtype.bits) if data.dtype.bits < 8 else PLAIN
        codes = Codes(shape, (data.buffer("codes", packed),), layout, data.dtype.name)
        if inner.kind.endswith("lut_to_sparse"):
            lut = self._elements(inner, "lut")
            table = self._palettes(inner, lut, shape, len(shape) - 1)
            if len(table.values.shape) > 2:
                raise UnsupportedError("sparse vectors are not read", where=self.where(operation.name))
            return self._masked(operation, shape, replace(codes, table=table), mask, [data, lut])
        scale, offset = self._elements(inner, "scale"), self.argument(inner, "offset")
        zero = offset if isinstance(offset, Stored) else None
        params = self._blocks(inner, shape, scale, zero)
        parts = [data, scale, *([zero] if zero is not None else [])]
        return self._masked(operation, shape, replace(codes, zero=params[1], scale=params[0]), mask, parts)

    def _mask(self, operation: Operation, key: str) -> Stored:
        value = self.argument(operation, key)
        if isinstance(value, str) and value in self._sparse:
            inner = self._sparse[value][0]
            return self._mask(inner, "indices_mask" if "indices_mask" in inner.inputs else "data_mask")
        return self._elements(operation, key)

    def _masked(
        self, operation: Operation, shape: Shape, codes: Codes, mask: Stored, parts: Sequence[Stored]
    ) -> QTensor:
        bits = mask.dtype.name == "uint1"
        where = mask.codes("where", shape) if bits else _packed(mask, shape, 1, "uint1", "where")
        term = Term(codes, where)
        source = source_of("coreml", "constexpr", [*parts, mask])
        return QTensor(shape, _shown(operation), (term,), source=source)

    def _cast(self, operation: Operation) -> QTensor:
        return self._elements(operation, "source_val").tensor("coreml")

    def _tensor(self, operation: Operation, shape: Shape, codes: Codes, parts: Sequence[Stored]) -> QTensor:
        return QTensor(shape, _shown(operation), (Term(codes),), source=source_of("coreml", "constexpr", parts))

    # ---- small values

    def shape(self, operation: Operation) -> Shape:
        """The parameter `shape`."""
        return tuple(int(n) for n in self.listed(operation, "shape"))

    def listed(self, operation: Operation, key: str) -> list[float]:
        """A parameter that is a few stored numbers."""
        values = operation.inputs.get(key, ())
        value = values[0] if values else ""
        constant = self.constants.get(value) if isinstance(value, str) else value
        if constant is None:
            raise UnsupportedError(
                "an operand that must be a constant is computed", where=self.where(operation.name), found=key
            )
        if constant.file:
            return [float(n) for n in self.open(constant, operation.name).array().reshape(-1)[:4096]]
        return [float(n) for n in numbers(constant, self.where(operation.name))]

    def integer(self, operation: Operation, key: str, default: int) -> int:
        """A parameter that is one integer."""
        return int(self.listed(operation, key)[0]) if operation.inputs.get(key) else default


def _packed(stored: Stored, shape: Shape, width: int, table: Table | str, key: str = "codes") -> Codes:
    """Packed bytes as codes of fewer bits, one stream over all of them."""
    row = dtype(f"uint{width}")
    if stored.count != streams.row_bytes(math.prod(shape), width):
        raise BadFileError(
            "packed bytes contradict a shape", where=stored.name, found=stored.count, allowed=f"{width} bits, {shape}"
        )
    return replace(replace(stored, dtype=row, shape=shape).codes(key, shape), table=table)


def _shown(operation: Operation) -> str:
    kind: Type = operation.outputs[-1][1]
    return dtype(kind.element).element or "F32"
