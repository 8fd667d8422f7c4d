"""The domain `qdeploy`: model-local functions for encodings that no operator of ONNX Runtime holds.

Each is a FunctionProto whose body is plain ONNX, so the file runs wherever ONNX runs; a custom operator of the same
name and domain, where one is registered, takes the body's place. The weight is unpacked at every call, which is slow
but keeps it packed in memory. It would not stay so by itself: ONNX Runtime inlines functions and folds what is
constant, which would leave float32. Therefore the codes are made to depend on the input, by a zero that is computed
from its shape:

    codes' = codes | uint8(0 * Shape(x)[0])

    CodebookLinear (x, codes, base, table, scale)   y = x W^T
        codes  [N, groups, m]   each code selects p values of one row; bytes of several codes select through a table
        base   I32 [N, groups, 1] or [1, 1, 1]   added to the code: where a group has a table of its own
        table  F32 [entries, p]
        scale  F32 [N, groups, 1] or [1, 1, 1]
        W[n] = (table[codes[n] + base[n]] * scale[n]) flattened, cut to K
    SignLowRankLinear (x, signs, table, u, vt)      y = x (S * (u vt))^T     BitStack, arXiv 2410.23918
        signs  U8 [N, ceil(K / 8)], table F32 [256, 8]: the signs of a byte, u [N, r], vt [r, K]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx

from qdeploy.backends.onnx.external import Array, RowReader
from qdeploy.backends.onnx.params import Grid, is_blockwise, spread
from qdeploy.backends.onnx.proto import OPSET, QDEPLOY, GraphBuilder
from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes
from qdeploy.ir.match import SignLowRank, TableGrouped, Vector, sign_lowrank, table_grouped, vector
from qdeploy.ir.tensor import Codes, Param, QTensor
from qdeploy.pack import bits as bit_stream

FLOAT, UINT8, UINT16, INT32 = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.INT32,
)  # fmt: skip


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
    reason: str = "unpacked by a qdeploy function at every call"

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """One CodebookLinear per codebook, summed."""
        builder.function(_function("CodebookLinear"))
        products = [
            builder.node("CodebookLinear", [x, *self._inputs(builder, part)], "", QDEPLOY) for part in self.parts
        ]
        _sum(builder, products, output)

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
        _sum(builder, rows, total)
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


@dataclass(frozen=True)
class SignLowRankForm:
    """A weight as a sum of sign matrices times low-rank magnitudes."""

    name: str
    shape: tuple[int, int]
    terms: tuple[tuple[Codes, Codes, Codes], ...]
    reason: str = "unpacked by a qdeploy function at every call"

    @property
    def label(self) -> str:
        """The function and how often it runs."""
        return f"signs x low rank, {len(self.terms)} terms"

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """One SignLowRankLinear per term, summed."""
        builder.function(_function("SignLowRankLinear"))
        products = [
            builder.node("SignLowRankLinear", [x, *self._inputs(builder, i)], "", QDEPLOY)
            for i in range(len(self.terms))
        ]
        _sum(builder, products, output)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of signs and of u; vt is shared."""
        rows = []
        for i in range(len(self.terms)):
            signs, table, u, vt = self._inputs(builder, i)
            taken = builder.node("Cast", [builder.node("Gather", [signs, ids])], to=INT32)  # [B, T, bytes]
            values = builder.node("Gather", [table, taken])  # [B, T, bytes, 8]
            flat = builder.node("Reshape", [values, builder.constant([0, 0, -1], "int64")])
            bounds = [builder.constant([n], "int64") for n in (0, self.shape[1], -1)]
            magnitude = builder.node("MatMul", [builder.node("Gather", [u, ids]), vt])
            rows.append(builder.node("Mul", [builder.node("Slice", [flat, *bounds]), magnitude]))
        _sum(builder, rows, output)

    def _inputs(self, builder: GraphBuilder, i: int) -> tuple[str, str, str, str]:
        (signs, u, vt), (n, k), name = self.terms[i], self.shape, f"{self.name}.{i}"
        table = np.array([[1 if byte >> j & 1 else -1 for j in range(8)] for byte in range(256)], np.float32)
        rank = u.decoded_shape[1]
        return (
            builder.initializer(f"{name}.codes", UINT8, (n, -(-k // 8)),
                                lambda a, b: bit_stream.pack(read_codes(signs, a, b), 1), 16),
            builder.initializer("qdeploy.signs.table", FLOAT, table.shape, _array(table), shared=True),
            builder.initializer(f"{name}.u", FLOAT, (n, rank), lambda a, b: decode_codes(u, slice(a, b)), 4),
            builder.initializer(f"{name}.vt", FLOAT, (rank, k), lambda a, b: decode_codes(vt, slice(a, b)), 4,
                                shared=True),
        )  # fmt: skip


def function_form(name: str, tensor: QTensor) -> CodebookForm | SignLowRankForm | None:
    """The form of a matrix of scalar or vector codebooks or of signs times low rank; None for anything else."""
    if len(tensor.shape) != 2:
        return None
    signs = sign_lowrank(tensor)
    if signs is not None:
        return _sign_form(name, tensor, signs)
    table = table_grouped(tensor)
    if table is not None:
        return _table_form(name, tensor, table)
    books = vector(tensor)
    return _vector_form(name, tensor, books) if books is not None else None


def _sign_form(name: str, tensor: QTensor, found: SignLowRank) -> SignLowRankForm:
    return SignLowRankForm(name, (tensor.shape[0], tensor.shape[1]), found.terms)


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
        name, (n, groups, count), UINT8, codes, _byte_table(found.table, width, per_byte),
        _selection(select, grid, group, groups), _scale(found.scale, grid, group, groups),
    )  # fmt: skip
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
        Part(f"{name}.{i}", (n, groups, count), UINT16 if wide else UINT8, reader(codes),
             np.ascontiguousarray(book.reshape(len(book), -1)), None, scale)
        for i, (codes, book) in enumerate(zip(found.codes, found.codebooks, strict=True))
    )  # fmt: skip
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


def _sum(builder: GraphBuilder, parts: Sequence[str], output: str) -> None:
    total = parts[0]
    for place, part in enumerate(parts[1:], 2):
        total = builder.node("Add", [total, part], output if place == len(parts) else "")
    if len(parts) == 1:
        builder.node("Identity", [total], output)


# ---- bodies ----------------------------------------------------------------------------------------------------------

_CODEBOOK_BODY = """
CodebookLinear (x, codes, base, table, scale) => (y) {
    zero = Constant <value_ints = [0]> ()
    batch = Shape <start = 0, end = 1> (x)
    nothing = Mul (batch, zero)
    kept = CastLike (nothing, codes)
    guarded = BitwiseOr (codes, kept)
    place = Cast <to = 6> (guarded)
    entry = Add (place, base)
    values = Gather (table, entry)
    by_group = Constant <value_ints = [0, 0, -1]> ()
    grouped = Reshape (values, by_group)
    scaled = Mul (grouped, scale)
    by_row = Constant <value_ints = [0, -1]> ()
    rows = Reshape (scaled, by_row)
    columns = Shape <start = -1> (x)
    last = Constant <value_ints = [1]> ()
    weight = Slice (rows, zero, columns, last)
    turned = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, turned)
}
"""
_SIGN_BODY = """
SignLowRankLinear (x, signs, table, u, vt) => (y) {
    zero = Constant <value_ints = [0]> ()
    batch = Shape <start = 0, end = 1> (x)
    nothing = Mul (batch, zero)
    kept = CastLike (nothing, signs)
    guarded = BitwiseOr (signs, kept)
    place = Cast <to = 6> (guarded)
    values = Gather (table, place)
    by_row = Constant <value_ints = [0, -1]> ()
    rows = Reshape (values, by_row)
    columns = Shape <start = -1> (x)
    last = Constant <value_ints = [1]> ()
    sign = Slice (rows, zero, columns, last)
    floating = CastLike (nothing, x)
    kept_u = Add (u, floating)
    magnitude = MatMul (kept_u, vt)
    weight = Mul (sign, magnitude)
    turned = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, turned)
}
"""
_BODIES = {"CodebookLinear": _CODEBOOK_BODY, "SignLowRankLinear": _SIGN_BODY}


@cache
def _function(name: str) -> Any:
    """The FunctionProto of a name, parsed from ONNX's textual form."""
    import onnx.parser

    header = f'<domain: "{QDEPLOY}", opset_import: ["" : {OPSET}]>'
    return onnx.parser.parse_function(header + _BODIES[name])
