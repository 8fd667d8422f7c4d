"""The domain `qdeploy`: model-local functions for encodings that no operator of ONNX Runtime holds.

Each is a FunctionProto whose body is plain ONNX, so the file runs wherever ONNX runs; a custom operator of the same
name and domain, where one is registered, takes the body's place. The weight is unpacked at every call, which is slow
but keeps it packed in memory. Alone that is not enough: ONNX Runtime inlines functions and folds what is
constant, which would leave float32. Therefore the codes are made to depend on the input, by a zero that is computed
from its shape:

    codes' = codes | uint8(0 * Shape(x)[0])

    CodebookLinear (x, codes, base, table, scale)   y = x W^T
        codes  [N, groups, m]   each code selects p values of one row; bytes of several codes select through a table
        base   I32 [N, groups, 1] or [1, 1, 1]   added to the code: where a group has a table of its own
        table  F32 [entries, p]
        scale  F32 [N, groups, 1] or [1, 1, 1]
        W[n] = (table[codes[n] + base[n]] * scale[n]) flattened, cut to K
    BlockCodebook (x, codes, base, table, split, flat)   the weight alone, for entries that span rows: VPTQ, 2409.17066
        codes [R, C], base I32 that spreads over it, table F32 [entries, a * b], split [R, C, a, b], flat [R a, C b]
        W = table[codes + base] with the entries laid out as blocks of a rows and b columns
    SignLowRankLinear (x, signs, table, u, vt)      y = x (S * (u vt))^T     BitStack, arXiv 2410.23918
        signs  U8 [N, ceil(K / 8)], table F32 [256, 8]: the signs of a byte, u [N, r], vt [r, K]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from qdeploy.backends.onnx.proto import OPSET, QDEPLOY, GraphBuilder

REASON = "unpacked by a qdeploy function at every call"

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
_BLOCK_BODY = """
BlockCodebook (x, codes, base, table, split, flat) => (weight) {
    zero = Constant <value_ints = [0]> ()
    batch = Shape <start = 0, end = 1> (x)
    nothing = Mul (batch, zero)
    kept = CastLike (nothing, codes)
    guarded = BitwiseOr (codes, kept)
    place = Cast <to = 6> (guarded)
    entry = Add (place, base)
    values = Gather (table, entry)
    blocks = Reshape (values, split)
    turned = Transpose <perm = [0, 2, 1, 3]> (blocks)
    weight = Reshape (turned, flat)
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
_BODIES = {"CodebookLinear": _CODEBOOK_BODY, "BlockCodebook": _BLOCK_BODY, "SignLowRankLinear": _SIGN_BODY}


@cache
def function(name: str) -> Any:
    """The FunctionProto of a name, parsed from ONNX's textual form."""
    import onnx.parser

    header = f'<domain: "{QDEPLOY}", opset_import: ["" : {OPSET}]>'
    return onnx.parser.parse_function(header + _BODIES[name])


def add_all(builder: GraphBuilder, parts: Sequence[str], output: str) -> None:
    """Appends the sum of values in their order."""
    total = parts[0]
    for place, part in enumerate(parts[1:], 2):
        total = builder.node("Add", [total, part], output if place == len(parts) else "")
    if len(parts) == 1:
        builder.node("Identity", [total], output)
