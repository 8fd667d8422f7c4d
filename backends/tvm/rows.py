"""Builders of functions over rows: softmax and normalisations (ir/ops/integer_functions.py has their formulas)."""

from __future__ import annotations

from typing import Any

from qdeploy.backends.tvm.arithmetic import Expr, const, exponential, wide
from qdeploy.backends.tvm.builders import Attrs, Tensor, broadcast, finished, shape_of
from qdeploy.backends.tvm.engine import te, tirx
from qdeploy.backends.tvm.program import Buffer

LONG = "int64"
RECIPROCAL = (1515870810, -1010580540)
"""48/17 and -32/17 in Q2.29: where Newton's method for a reciprocal begins."""


def square_root(x: Tensor, bits: int) -> Tensor:
    """floor(sqrt(x)) of non-negative int64 numbers below 2^bits: a stage for every bit of the root."""
    shape = shape_of(x)
    root = te.compute(shape, lambda *i: const(0, LONG), name="bit")
    for place in reversed(range((bits + 1) // 2)):
        root = _closer(x, root, const(1 << place, LONG), shape)
    return root


def _closer(x: Tensor, root: Tensor, bit: Expr, shape: list[int]) -> Tensor:
    def element(*i: Expr) -> Expr:
        tried = root[i] + bit
        return tirx.Select(tried * tried <= x[i], tried, root[i])

    return te.compute(shape, element, name="bit")


def roots(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """IntegerSqrt of every number."""
    x = te.compute(shape_of(args[0]), lambda *i: wide(args[0][i]), name="wide")
    root = square_root(x, 31)
    return finished(lambda *i: root[i].astype("int32"), args, attrs, out)


def softmax(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """IntegerSoftmax over the last axis."""
    x, mask = args[0], args[1] if attrs["present"] and attrs["present"][0] else None
    shape = shape_of(x)
    outer, k = shape[:-1], te.reduce_axis((0, shape[-1]), "k")
    lowest = const(-(1 << 31))

    def kept(index: tuple[Expr, ...]) -> Expr:
        return broadcast(mask, index) != const(0, str(mask.dtype)) if mask is not None else None

    def score(index: tuple[Expr, ...]) -> Expr:
        value = x[index].astype("int32")
        return value if mask is None else tirx.Select(kept(index), value, lowest)

    top = te.compute(outer, lambda *i: te.max(score((*i, k)), axis=[k]), name="top")

    def power(*index: Expr) -> Expr:
        down = tirx.min(wide(x[index]) - wide(top[index[:-1]]), const(0, LONG))
        value = exponential(down, dict(attrs)).astype("int32")
        return value if mask is None else tirx.Select(kept(index), value, const(0))

    e = te.compute(shape, power, name="power")
    r = te.reduce_axis((0, shape[-1]), "r")
    total = te.compute(outer, lambda *i: te.sum(e[(*i, r)].astype(LONG), axis=[r]), name="total")
    factor = te.compute(
        outer, lambda *i: tirx.floordiv(const(1 << 62, LONG), tirx.max(total[i], const(1, LONG))), name="factor"
    )
    bits = attrs.get("bits", 8)

    def result(*index: Expr) -> Expr:
        rounded = (wide(e[index]) * factor[index[:-1]] + const(1 << (61 - bits), LONG)) >> const(62 - bits, LONG)
        return tirx.min(rounded, const(attrs.get("hi", 255), LONG)).astype("int32")

    return finished(result, args, attrs, out)


def layer_norm(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """IntegerLayerNorm."""
    return _norm(args, attrs, out, centred=True)


def rms_norm(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """IntegerRMSNorm."""
    return _norm(args, attrs, out, centred=False)


def _norm(args: list[Tensor], attrs: Attrs, out: Buffer, centred: bool) -> Tensor:
    x, shape = args[0], shape_of(args[0])
    outer, n = shape[:-1], shape[-1]
    operands = iter(args[1:])
    weight, bias = ([next(operands) if there else None for there in attrs["present"]] + [None, None])[:2]
    drop = const(attrs.get("x_shift", 0), LONG)
    y: Any = lambda index: wide(x[index]) >> drop  # noqa: E731
    if centred:
        k = te.reduce_axis((0, n), "k")
        total = te.compute(outer, lambda *i: te.sum(wide(x[(*i, k)]), axis=[k]), name="total")
        mean = te.compute(
            outer, lambda *i: tirx.floordiv(total[i] * const(2, LONG) + const(n, LONG), const(2 * n, LONG)), name="mean"
        )
        y = lambda index: (wide(x[index]) - mean[index[:-1]]) >> drop  # noqa: E731
    r = te.reduce_axis((0, n), "r")
    squares = te.compute(outer, lambda *i: te.sum(y((*i, r)) * y((*i, r)), axis=[r]), name="squares")

    total_squares = te.compute(outer, lambda *i: squares[i] + const(attrs.get("epsilon", 0), LONG), name="raised")
    root = square_root(total_squares, 63)
    factor = te.compute(
        outer, lambda *i: tirx.floordiv(const(1 << 46, LONG), tirx.max(root[i], const(1, LONG))), name="factor"
    )

    def result(*index: Expr) -> Expr:
        value = (y(index) * factor[index[:-1]]) >> const(16, LONG)
        if weight is not None:
            value = (value * wide(weight[index[-1]])) >> const(attrs.get("shift", 0), LONG)
        return (value if bias is None else value + wide(bias[index[-1]])).astype("int32")

    return finished(result, args, attrs, out)


# ---- TFLite's softmax (ir/ops/tflite.py) ----------------------------------------------------------------------------


def _high(a: Expr, b: Expr) -> Expr:
    """A b / 2^31, halves upwards."""
    return (a * b + const(1 << 30, LONG)) >> const(31, LONG)


def _away(x: Expr, right: Expr) -> Expr:
    """X / 2^right for right >= 1, halves away from zero."""
    half = const(1, LONG) << ((right - const(1, LONG)) & const(63, LONG))
    down = right & const(63, LONG)
    zero = const(0, LONG)
    return tirx.Select(x < zero, zero - ((half - x) >> down), (x + half) >> down)


def _doubled(x: Expr, left: int) -> Expr:
    return tirx.max(tirx.min(x << const(left, LONG), const((1 << 31) - 1, LONG)), const(-(1 << 31), LONG))


def _reciprocal(total: Tensor) -> tuple[Tensor, Tensor]:
    """1 / total in Q0.31 by Newton's method, and the bits of total: a stage for every step."""
    shape = shape_of(total)

    def stage(element: Any) -> Tensor:
        return te.compute(shape, lambda *i: element(*i), name="bit")

    bits = stage(lambda *i: sum((wide(total[i] >= const(1 << p, LONG)) for p in range(32)), const(0, LONG)))
    up = stage(lambda *i: (total[i] << ((const(32, LONG) - bits[i]) & const(63, LONG))) - const(1 << 31, LONG))
    half = stage(lambda *i: (up[i] + const(1 << 31, LONG)) >> const(1, LONG))  # up + 2^31 - 1 >= 0, halves upwards
    x = stage(lambda *i: const(RECIPROCAL[0], LONG) + _high(half[i], const(RECIPROCAL[1], LONG)))
    for _ in range(3):
        x = _improved(stage, x, half)
    return stage(lambda *i: _doubled(x[i], 1)), bits


def _improved(stage: Any, x: Tensor, half: Tensor) -> Tensor:
    error = stage(lambda *i: const(1 << 29, LONG) - _high(half[i], x[i]))
    return stage(lambda *i: x[i] + _doubled(_high(x[i], error[i]), 2))


def tflite_softmax(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """TfliteSoftmax; the exponentials of all 256 differences are a table."""
    x, powers = args[:2]
    shape = shape_of(x)
    k, r = te.reduce_axis((0, shape[-1]), "k"), te.reduce_axis((0, shape[-1]), "r")
    top = te.compute(shape[:-1], lambda *i: te.max(x[(*i, k)].astype("int32"), axis=[k]), name="top")
    power = te.compute(shape, lambda *i: wide(powers[top[i[:-1]] - x[i].astype("int32")]), name="power")
    total = te.compute(
        shape[:-1],
        lambda *i: te.sum((power[(*i, r)] + const(1 << 11, LONG)) >> const(12, LONG), axis=[r]),
        name="total",
    )
    factor, bits = _reciprocal(total)
    product = te.compute(shape, lambda *i: _high(power[i], factor[i[:-1]]), name="product")

    def result(*i: Expr) -> Expr:
        right = const(12 - 32 + 31 - 8, LONG) + bits[i[:-1]]
        value = _away(product[i], right) - const(128, LONG)
        return tirx.max(tirx.min(value, const(127, LONG)), const(-128, LONG)).astype("int32")

    return finished(result, args, attrs, out)
