"""Codebooks whose values are not integers: scalar tables and vector codebooks, through qdeploy.CodebookLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.backends.onnx.functions import REASON, add_all, function
from qdeploy.backends.onnx.proto import QDEPLOY, GraphBuilder
from qdeploy.ir.tensor import Array
from qdeploy.ir.views import Lookup, Minifloat, Vector
from qdeploy.ir.views.params import Grid, RowReader, grouping
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
        """The same look-up for some rows."""
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


def table_form(name: str, seen: Minifloat | Lookup) -> CodebookForm | None:
    """Scalar tables: codes of 1, 2 and 4 bits stay several to a byte, and the table gives all values of a byte."""
    tabled = seen.tabled
    if tabled is None or tabled.grouping.index is not None:
        return None
    (n, k), group, groups = tabled.shape, tabled.grouping.group, tabled.grouping.groups
    width = next(w for w in (1, 2, 4, 8) if w >= tabled.bits)
    width = width if group % (8 // width) == 0 else 8
    count, per_byte = -(-group * width // 8), 8 // width

    def codes(start: int, stop: int) -> Array:
        whole = np.pad(tabled.codes(start, stop), ((0, 0), (0, groups * group - k)))
        return bit_stream.pack(whole.reshape(-1, groups, group), width)  # [rows, groups, count]

    part = Part(
        name,
        (n, groups, count),
        UINT8,
        codes,
        _byte_table(tabled.values, width, per_byte),
        _selection(tabled.select),
        tabled.scale,
    )
    return CodebookForm((n, k), f"codebook of {tabled.levels}, {width} bits", (part,))


def _byte_table(table: Array, width: int, per_byte: int) -> Array:
    """The values of a byte that holds several codes: [tables, levels] -> [tables * 256, per_byte]."""
    tables, levels = table.shape
    padded = np.zeros((tables, 1 << width), np.float32)
    padded[:, :levels] = table
    fields = np.arange(256)[:, None] >> np.arange(per_byte) * width & (1 << width) - 1  # [256, per_byte]
    return np.ascontiguousarray(padded[:, fields].reshape(tables * 256, per_byte))


def vector_form(name: str, seen: Vector) -> CodebookForm | None:
    """Vector codebooks whose entries lie along the columns (AQLM: 1 x 8)."""
    (n, k), width = seen.shape, seen.block[1]
    groups = grouping([seen.scale] if seen.scale is not None else [], Grid((n, k), k))
    if not seen.is_along_rows or groups is None or groups.index is not None:
        return None
    if groups.group % width or (k % groups.group and seen.scale is not None):
        return None
    wide, count = max(seen.levels) > 256, groups.group // width
    dtype = np.dtype("<u2" if wide else "u1")

    def reader(place: int) -> RowReader:
        read = seen.codes(place)
        return lambda a, b: read(a, b).astype(dtype).reshape(b - a, groups.groups, count)

    parts = []
    for i in range(len(seen.grids)):
        book = seen.book(i)
        if book is None:
            return None
        table = np.ascontiguousarray(book.reshape(len(book), -1))
        scale = groups.factor(seen.scale) if seen.scale is not None else None
        shape, kind = (n, groups.groups, count), UINT16 if wide else UINT8
        parts.append(Part(f"{name}.{i}", shape, kind, reader(i), table, None, scale))
    return CodebookForm((n, k), f"{len(parts)} codebooks of {width}-vectors", tuple(parts))


def _selection(select: RowReader | None) -> RowReader | None:
    """Where in a table of bytes the values of each group's table begin."""
    return None if select is None else lambda a, b: select(a, b) * np.float32(256)


def _array(array: Array) -> RowReader:
    return lambda a, b: array[a:b]


def _column(read: RowReader, dtype: type) -> RowReader:
    return lambda a, b: read(a, b)[:, :, None].astype(dtype)
