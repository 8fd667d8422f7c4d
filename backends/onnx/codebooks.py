"""Codebooks whose values are no integers: scalar tables and vector codebooks, through qdeploy.CodebookLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.backends.onnx.functions import REASON, add_all, function
from qdeploy.backends.onnx.proto import QDEPLOY, GraphBuilder
from qdeploy.ir.codes import read_codes
from qdeploy.ir.match import TableGrouped, Vector, table_grouped, vector
from qdeploy.ir.tensor import Array, Codes, Param, QTensor
from qdeploy.ir.views.params import Grid, RowReader, is_blockwise, spread
from qdeploy.pack import bits as bit_stream

FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
UINT8, UINT16 = onnx.TensorProto.UINT8, onnx.TensorProto.UINT16


@dataclass(frozen=True)
class Part:
    """One codebook of a sum: codes [N, groups, m] that each select a row of `table` [entries, p]."""

    name: str
    shape: tuple[int, int, int]
    dtype: int
    codes: RowReader
    table: Array
    base: RowReader | None
    scale: RowReader | None


@dataclass(frozen=True)
class CodebookForm:
    """A weight as a sum of codebooks."""

    shape: tuple[int, int]
    label: str
    parts: tuple[Part, ...]
    reason: str = REASON

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """One CodebookLinear per codebook, summed."""
        builder.function(function("CodebookLinear"))
        products = [
            builder.node("CodebookLinear", [x, *self._inputs(builder, part)], "", QDEPLOY) for part in self.parts
        ]
        add_all(builder, products, output)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """The same look-up for the rows that are asked for."""
        rows = []
        for part in self.parts:
            codes, base, table, scale = self._inputs(builder, part)
            taken = builder.node("Cast", [builder.node("Gather", [codes, ids])], to=INT32)  # [B, T, groups, m]
            base, scale = (
                value if reader is None else builder.node("Gather", [value, ids])
                for value, reader in ((base, part.base), (scale, part.scale))
            )
            values = builder.node("Gather", [table, builder.node("Add", [taken, base])])  # [B, T, groups, m, p]
            split = builder.node("Reshape", [values, builder.constant([0, 0, 0, -1], "int64")])
            flat = builder.constant([0, 0, -1], "int64")
            rows.append(builder.node("Reshape", [builder.node("Mul", [split, scale]), flat]))
        bounds = [builder.constant([n], "int64") for n in (0, self.shape[1], -1)]
        total = builder.fresh("rows")
        add_all(builder, rows, total)
        builder.node("Slice", [total, *bounds], output)

    def _inputs(self, builder: GraphBuilder, part: Part) -> tuple[str, str, str, str]:
        n, groups, _ = part.shape
        codes = builder.initializer(f"{part.name}.codes", part.dtype, part.shape, part.codes, 24)
        table = builder.initializer(f"{part.name}.table", FLOAT, part.table.shape, _array(part.table), shared=True)
        base = builder.constant([[[0]]], "int32")
        if part.base is not None:
            base = builder.initializer(f"{part.name}.select", INT32, (n, groups, 1), _column(part.base, np.int32), 4)
        scale = builder.constant([[[1.0]]], "float32")
        if part.scale is not None:
            scale = builder.initializer(f"{part.name}.scale", FLOAT, (n, groups, 1), _column(part.scale, np.float32), 4)
        return codes, base, table, scale


def codebook_form(name: str, tensor: QTensor) -> CodebookForm | None:
    """The form of a matrix of scalar or vector codebooks; None for anything else."""
    if len(tensor.shape) != 2:
        return None
    table = table_grouped(tensor)
    if table is not None:
        return _table_form(name, tensor, table)
    books = vector(tensor)
    return _vector_form(name, tensor, books) if books is not None else None


def _table_form(name: str, tensor: QTensor, found: TableGrouped) -> CodebookForm | None:
    """Scalar tables: codes of 1, 2 and 4 bits stay several to a byte, and the table gives all values of a byte."""
    (n, k), group = tensor.shape, found.group
    grid = Grid((n, k), k)
    select = found.select
    if found.codes.decoded_shape != tensor.shape or (found.scale is not None and not is_blockwise(found.scale, grid)):
        return None
    if select is not None:
        if not is_blockwise(select, grid) or (min(select.tile[1], k) % group and group % min(select.tile[1], k)):
            return None
        group = min(group, select.tile[1])
    width = next(w for w in (1, 2, 4, 8) if w >= found.bits)
    width = width if group % (8 // width) == 0 else 8
    groups = -(-k // group)
    count, per_byte = -(-group * width // 8), 8 // width

    def codes(start: int, stop: int) -> Array:
        taken = read_codes(found.codes, start, stop)
        whole = np.pad(taken, ((0, 0), (0, groups * group - k)))
        return bit_stream.pack(whole.reshape(-1, groups, group), width)  # [rows, groups, count]

    part = Part(
        name,
        (n, groups, count),
        UINT8,
        codes,
        _byte_table(found.table, width, per_byte),
        _selection(select, grid, group, groups),
        _scale(found.scale, grid, group, groups),
    )
    return CodebookForm((n, k), f"codebook of {found.table.shape[1]}, {width} bits", (part,))


def _byte_table(table: Array, width: int, per_byte: int) -> Array:
    """The values of a byte that holds several codes: [tables, levels] -> [tables * 256, per_byte]."""
    tables, levels = table.shape
    padded = np.zeros((tables, 1 << width), np.float32)
    padded[:, :levels] = table
    fields = np.arange(256)[:, None] >> np.arange(per_byte) * width & (1 << width) - 1  # [256, per_byte]
    return np.ascontiguousarray(padded[:, fields].reshape(tables * 256, per_byte))


def _vector_form(name: str, tensor: QTensor, found: Vector) -> CodebookForm | None:
    """Vector codebooks whose entries lie along the columns (AQLM: 1 x 8)."""
    n, k = tensor.shape
    grid = Grid((n, k), k)
    if found.block[0] != 1 or (found.scale is not None and not is_blockwise(found.scale, grid)):
        return None
    group = k if found.scale is None else min(found.scale.tile[1], k)
    if group % found.block[1] or (k % group and found.scale is not None):
        return None
    groups = -(-k // group)
    scale = _scale(found.scale, grid, group, groups)
    wide = any(len(book) > 256 for book in found.codebooks)
    count = group // found.block[1]
    dtype = np.dtype("<u2" if wide else "u1")

    def reader(codes: Codes) -> RowReader:
        return lambda a, b: read_codes(codes, a, b).astype(dtype).reshape(b - a, groups, count)

    parts = tuple(
        Part(
            f"{name}.{i}",
            (n, groups, count),
            UINT16 if wide else UINT8,
            reader(codes),
            np.ascontiguousarray(book.reshape(len(book), -1)),
            None,
            scale,
        )
        for i, (codes, book) in enumerate(zip(found.codes, found.codebooks, strict=True))
    )
    return CodebookForm((n, k), f"{len(parts)} codebooks of {found.block[1]}-vectors", parts)


def _scale(scale: Param | None, grid: Grid, group: int, groups: int) -> RowReader | None:
    if scale is None:
        return None
    read = spread(scale, grid, group, groups)
    return (lambda a, b: (1 / read(a, b)).astype(np.float32)) if scale.divide else read


def _selection(select: Param | None, grid: Grid, group: int, groups: int) -> RowReader | None:
    if select is None:
        return None
    read = spread(select, grid, group, groups)
    return lambda a, b: read(a, b) * np.float32(256)


def _array(array: Array) -> RowReader:
    return lambda a, b: array[a:b]


def _column(read: RowReader, dtype: type) -> RowReader:
    return lambda a, b: read(a, b)[:, :, None].astype(dtype)
