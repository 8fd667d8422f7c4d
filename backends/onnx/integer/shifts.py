"""Exact rescaling in ONNX, whose shifts are of unsigned numbers only and whose integer division rounds towards zero.

    floor(p / 2^e)    Cast(uint64), its highest bit flipped (which adds 2^63), BitShift, Cast(int64), less 2^(63 - e)
    half up           floor((p + h) / 2^e),              h = 2^(e - 1)
    half even         floor((p + h - 1 + odd) / 2^e),    odd: the last bit of floor(p / 2^e)
    half away         floor((p + h - [p < 0]) / 2^e)
    tflite_double     half up by 31, then half away by e - 31; a factor above 1 raises the multiplier first
    floor(p / n)      (p + n 2^40) / n - 2^40, for |p| < n 2^40

p is an int64, and e is between 1 and 62: one number, or one that is broadcast with p.

Of ONNX Runtime 1.31's operators over int64, Min, Max, Clip, Sign and ReduceMax are wrong for numbers beyond 32 bits on
x86, and ReduceSum for sums beyond 53; comparisons, Where, Add, Sub, Mul, Div and casts are right, and so is everything
over int32. The former are therefore made of the latter.
"""

from __future__ import annotations

import numpy as np

from qdeploy.backends.onnx.proto import GraphBuilder, onnx_type
from qdeploy.ir.tensor import Array

_SIGN = 1 << 63
_OFFSET = 40


def floor_shift(b: GraphBuilder, p: str, e: Array, plus: int = 0, output: str = "") -> str:
    """floor(p / 2^e) + plus."""
    raised = b.tensor((plus - (np.int64(1) << (63 - e.astype(np.int64)))).astype(np.int64))
    return b.node("Add", [_cast(b, _shifted(b, p, e), "I64"), raised], output)


def _shifted(b: GraphBuilder, p: str, e: Array) -> str:
    """floor(p / 2^e) + 2^(63 - e), uint64."""
    flipped = b.node("BitwiseXor", [_cast(b, p, "U64"), b.tensor(np.array(_SIGN, np.uint64))])
    return b.node("BitShift", [flipped, b.tensor(e.astype(np.uint64))], direction="RIGHT")


def shift_natural(b: GraphBuilder, p: str, e: Array | str) -> str:
    """floor(p / 2^e) for p >= 0, int64; e may be an int64 value of the graph, and 0."""
    by = _cast(b, e, "U64") if isinstance(e, str) else b.tensor(np.asarray(e).astype(np.uint64))
    return _cast(b, b.node("BitShift", [_cast(b, p, "U64"), by], direction="RIGHT"), "I64")


def rounded(b: GraphBuilder, p: str, e: Array, rounding: str, plus: int = 0) -> str:
    """P / 2^e, rounded, plus a zero point: int64."""
    e = np.asarray(e, np.int64)
    half = np.int64(1) << (e - 1)
    if rounding == "half_even":
        odd = _cast(b, b.node("BitwiseAnd", [_shifted(b, p, e), b.tensor(np.array(1, np.uint64))]), "I64")
        return floor_shift(b, b.node("Add", [_plus(b, p, half - 1), odd]), e, plus)
    if rounding == "half_away":
        return floor_shift(b, b.node("Sub", [_plus(b, p, half), negative(b, p)]), e, plus)
    return floor_shift(b, _plus(b, p, half), e, plus)


def rescaled(b: GraphBuilder, x: str, m: Array, e: Array, rounding: str, plus: int = 0) -> str:
    """X * m / 2^e, rounded, plus a zero point: int64, for x int64."""
    if rounding != "tflite_double":
        return rounded(b, b.node("Mul", [x, b.tensor(m.astype(np.int64))]), e, rounding, plus)
    raised = m.astype(np.int64) << np.maximum(31 - e, 0)
    high = rounded(b, b.node("Mul", [x, b.tensor(raised)]), np.array(31), "half_up")
    if not (e > 31).any():
        return _plus(b, high, np.array(plus)) if plus else high
    doubled = b.node("Mul", [high, b.tensor(2, "int64")])  # so that it is shifted by at least 1
    return rounded(b, doubled, np.maximum(e - 31, 0) + 1, "half_away", plus)


def negative(b: GraphBuilder, p: str) -> str:
    """1 where p < 0, else 0: int64."""
    return shift_natural(b, p, np.array(63))


def floor_divided(b: GraphBuilder, p: str, n: int | str) -> str:
    """floor(p / n) for n >= 1: a number, or an int64 value of the graph."""
    if isinstance(n, int):
        raised, by = b.tensor(n << _OFFSET, "int64"), b.tensor(n, "int64")
    else:
        raised, by = b.node("Mul", [n, b.tensor(1 << _OFFSET, "int64")]), n
    quotient = b.node("Div", [b.node("Add", [p, raised]), by])
    return b.node("Sub", [quotient, b.tensor(1 << _OFFSET, "int64")])


def nearest_divided(b: GraphBuilder, p: str, n: int | str) -> str:
    """P / n to the nearest, halves away from zero."""
    by = b.tensor(n, "int64") if isinstance(n, int) else n
    half = b.tensor(n // 2, "int64") if isinstance(n, int) else b.node("Div", [n, b.tensor(2, "int64")])
    moved = b.node("Add", [p, b.node("Where", [below_zero(b, p), b.node("Neg", [half]), half])])
    return b.node("Div", [moved, by])


def divided(b: GraphBuilder, p: str, n: int | str, rounding: str) -> str:
    """P / n, rounded as a mean says: floor or half_away."""
    return (floor_divided if rounding == "floor" else nearest_divided)(b, p, n)


def below_zero(b: GraphBuilder, p: str) -> str:
    """Whether p < 0."""
    return b.once("Less", [p, b.tensor(0, "int64")])


def least(b: GraphBuilder, x: str, y: str) -> str:
    """The smaller of two numbers."""
    return b.node("Where", [b.node("Less", [x, y]), x, y])


def greatest(b: GraphBuilder, x: str, y: str) -> str:
    """The greater of two numbers."""
    return b.node("Where", [b.node("Greater", [x, y]), x, y])


def limited(b: GraphBuilder, x: str, lo: int | None, hi: int | None) -> str:
    """X, at least lo and at most hi."""
    x = x if lo is None else greatest(b, x, b.tensor(lo, "int64"))
    return x if hi is None else least(b, x, b.tensor(hi, "int64"))


def total(b: GraphBuilder, x: str, keepdims: int = 1, halves: bool = False) -> str:
    """The sum over the last axis, below 2^53 in size; `halves`: of natural numbers, below 2^63."""
    last = b.tensor([-1], "int64")
    if not halves:
        return b.node("ReduceSum", [x, last], keepdims=keepdims)
    low = b.node("BitwiseAnd", [x, b.tensor((1 << 32) - 1, "int64")])
    parts = [total(b, part, keepdims) for part in (shift_natural(b, x, np.array(32)), low)]
    return b.node("Add", [b.node("Mul", [parts[0], b.tensor(1 << 32, "int64")]), parts[1]])


def _plus(b: GraphBuilder, p: str, number: Array) -> str:
    return b.node("Add", [p, b.tensor(np.asarray(number, np.int64))])


def _cast(b: GraphBuilder, x: str, dtype: str) -> str:
    return b.node("Cast", [x], to=onnx_type(dtype))
