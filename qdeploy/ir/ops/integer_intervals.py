"""Interval rules of integer ops; each proves that no sum, product or shift inside of the op can overflow.

    products      per filter or row, sum |w| max |x| + |bias| must fit an int32: so does then every partial sum, in any
                  order; the interval itself is the tighter one of the signed sums
    requantize    the product with the multiplier and its rounding must fit an int64; the interval is that of the ends,
                  limited to lo..hi
    functions     what their own arithmetic reaches at most (integer_functions.py)

All bounds are Python integers, which never overflow themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.intervals import limited
from qdeploy.ir.ops.row import IntervalContext
from qdeploy.ir.tensor import Array

INT32, INT64 = 1 << 31, 1 << 63
Whole = tuple[int, int]


def _attr(node: Node, name: str, default: int = 0) -> int:
    return int(node.attrs.get(name, default))  # type: ignore[arg-type]


def _interval(context: IntervalContext, node: Node, place: int, zero: str = "") -> Whole:
    """Of an input, less its zero point; every value of an integer graph is bounded."""
    interval = context.interval(node.inputs[place])
    if interval is None:
        raise UnsupportedError("a value of an integer network has no bounds", where=node.inputs[place], found=node.op)
    point = _attr(node, zero) if zero else 0
    return int(interval[0]) - point, int(interval[1]) - point


def _constant(context: IntervalContext, node: Node, name: str) -> Array:
    array = context.array(name)
    if array is None:
        raise UnsupportedError(
            "an integer op needs a constant here", where=name, found=f"a computed input of {node.op}"
        )
    return array


def _size(interval: Whole) -> int:
    return max(abs(interval[0]), abs(interval[1]))


def product(context: IntervalContext, node: Node) -> Whole:
    """IntegerConv and IntegerLinear."""
    low, high = _interval(context, node, 0, "x_zero")
    if node.op == "IntegerConv":
        low, high = min(low, 0), max(high, 0)  # padding
    weight = _constant(context, node, node.inputs[1]).astype(np.int64)
    rows = weight.reshape(len(weight), -1)
    plus, minus = (np.maximum(part, 0).sum(axis=1) for part in (rows, -rows))
    biased = bool(node.inputs[2:3] and node.inputs[2])
    bias = _constant(context, node, node.inputs[2]).astype(np.int64) if biased else np.zeros(len(rows), np.int64)
    context.below(node, int(((plus + minus) * max(-low, high) + np.abs(bias)).max()), INT32, "an accumulator")
    return int((plus * low - minus * high + bias).min()), int((plus * high - minus * low + bias).max())


def mat_mul(context: IntervalContext, node: Node) -> Whole:
    """IntegerMatMul: any signs may meet."""
    a, b = _interval(context, node, 0, "a_zero"), _interval(context, node, 1, "b_zero")
    bound = context.times(node, context.extent(node.inputs[0], -1), _size(a) * _size(b), INT32, "an accumulator")
    return -bound, bound


def requantize(context: IntervalContext, node: Node) -> Whole:
    """Requantize."""
    m, e = (_constant(context, node, name).astype(object).reshape(-1) for name in node.inputs[1:3])
    raised = [n << _attr(node, "left_shift") for n in _interval(context, node, 0, "x_zero")]
    size = max(abs(raised[0]), abs(raised[1]))
    if node.attrs.get("rounding") == "tflite_double":
        context.below(node, size << max(31 - int(min(e)), 0), INT32, "a left shift")
    context.below(node, size * int(max(m)) + (1 << int(max(e) - 1)), INT64, "the product of a requantization")
    zero = _attr(node, "zero")
    # One less and one more than the quotient covers every rounding.
    low = min(int((raised[0] * m >> e).min()), int((raised[0] * m >> e).max())) - 1 + zero
    high = max(int((raised[1] * m >> e).min()), int((raised[1] * m >> e).max())) + 2 + zero
    ends = limited((low, high), _attr(node, "lo"), _attr(node, "hi"))
    return int(ends[0]), int(ends[1])


def add(context: IntervalContext, node: Node) -> Whole:
    """IntegerAdd."""
    a, b = _interval(context, node, 0), _interval(context, node, 1)
    total = (a[0] + b[0], a[1] + b[1])
    context.below(node, _size(total), INT32, "a sum")
    return total


def multiply(context: IntervalContext, node: Node) -> Whole:
    """IntegerMul."""
    a, b = _interval(context, node, 0, "a_zero"), _interval(context, node, 1, "b_zero")
    every = [x * y for x in a for y in b]
    context.below(node, max(map(abs, every)), INT32, "a product")
    return min(every), max(every)


def sum_over_axes(context: IntervalContext, node: Node) -> Whole:
    """IntegerSum; one of the axes may be free."""
    axes: Any = node.attrs["axes"]
    counts = [context.extent(node.inputs[0], axis) for axis in axes]
    fixed = int(np.prod([n for n in counts if isinstance(n, int)], dtype=np.int64))
    free = [n for n in counts if isinstance(n, str)]
    low, high = _interval(context, node, 0)
    if len(free) > 1:
        where = f"node {node.name or node.outputs[0]} ({node.op})"
        raise UnsupportedError("a sum over several free axes cannot be bounded", where=where, found=free)
    each = _size((low, high)) * (fixed if free else 1)
    bound = context.times(node, free[0] if free else fixed, each, INT32, "a sum")
    return (-bound if low < 0 else 0), (bound if high > 0 else 0)


def exponential(context: IntervalContext, node: Node) -> Whole:
    """IntegerExp."""
    return 0, _attr(node, "c") << _attr(node, "left")


def softmax(context: IntervalContext, node: Node) -> Whole:
    """IntegerSoftmax."""
    return 0, _attr(node, "hi", 255)


def gelu(context: IntervalContext, node: Node) -> Whole:
    """IntegerGelu."""
    bound = 2 * _size(_interval(context, node, 0)) * (_attr(node, "c") >> _attr(node, "shift"))
    context.below(node, bound, INT32, "an integer GELU")
    return -bound, bound


def norm(context: IntervalContext, node: Node) -> Whole:
    """IntegerLayerNorm and IntegerRMSNorm."""
    low, high = _interval(context, node, 0)
    spread = high - low if node.op == "IntegerLayerNorm" else _size((low, high))
    squared = ((spread >> _attr(node, "x_shift")) + 1) ** 2
    epsilon = _attr(node, "epsilon")
    context.times(node, context.extent(node.inputs[0], -1), squared, INT64 - epsilon, "a sum of squares")
    weight, bias = (
        _size(_interval(context, node, i)) if node.inputs[i : i + 1] and node.inputs[i] else 0 for i in (1, 2)
    )
    bound = 1 << 30 if not weight else (weight << 30 >> _attr(node, "shift")) + 1 + bias
    context.below(node, bound, INT32, "a normalisation")
    return -bound, bound


def square_root(context: IntervalContext, node: Node) -> Whole:
    """IntegerSqrt."""
    return 0, 1 << (_interval(context, node, 0)[1].bit_length() + 1) // 2


def positions(context: IntervalContext, node: Node) -> Whole:
    """Positions: as many as there are tokens."""
    return 0, INT64 - 1


def tflite_softmax(context: IntervalContext, node: Node) -> Whole:
    """TfliteSoftmax."""
    return -128, 127
