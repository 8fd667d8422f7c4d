"""Interval rules of float ops and of ops that move elements; those of integer ops are in integer_intervals.py.

Sums of products reach what filters of either sign make of their input: per filter, the sum of its positive weights
times the greatest input and of its negative ones times the least, and the reverse. Such bounds are wide, many times
what any data reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.row import Interval, IntervalContext

_TIE = 1e-2  # of a code: the end of an interval that lies on a tie may round either way
_EVERYTHING = (-np.inf, np.inf)


def joined(*intervals: Interval) -> Interval:
    """The least interval that holds all of them."""
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def limited(interval: Interval, low: float | None, high: float | None) -> Interval:
    """An interval cut to low..high, either of which may be missing."""
    ends = [max(n, low) if low is not None else n for n in interval]
    ends = [min(n, high) if high is not None else n for n in ends]
    return ends[0], ends[1]


def same(context: IntervalContext, node: Node) -> Interval | None:
    """That of the first input, cut to the attributes `lo` and `hi` where a node has them."""
    interval = context.interval(node.inputs[0])
    low, high = node.attrs.get("lo"), node.attrs.get("hi")
    return None if interval is None else limited(interval, low, high)  # type: ignore[arg-type]


def clip(context: IntervalContext, node: Node) -> Interval | None:
    """Relu and Clip: both limits bound even a value of which nothing is known."""
    low, high = (0, None) if node.op == "Relu" else (node.attrs.get("min"), node.attrs.get("max"))
    return limited(context.interval(node.inputs[0]) or _EVERYTHING, low, high)  # type: ignore[arg-type]


def pad(context: IntervalContext, node: Node) -> Interval | None:
    """Constants join what they pad; other modes repeat elements."""
    inside = context.interval(node.inputs[0])
    if inside is None or node.attrs.get("mode", "constant") != "constant":
        return inside
    fill = context.interval(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else (0, 0)
    return None if fill is None else joined(inside, fill)


def concat(context: IntervalContext, node: Node) -> Interval | None:
    """What all parts hold."""
    parts = [interval for name in node.inputs if (interval := context.interval(name)) is not None]
    return joined(*parts) if len(parts) == len(node.inputs) else None


def add(context: IntervalContext, node: Node) -> Interval | None:
    """Add and Sub, of values and constants."""
    sides = [context.interval(name) for name in node.inputs]
    if sides[0] is None or sides[1] is None:
        return None
    (a, b), (c, d) = sides[0], sides[1]
    return (a + c, b + d) if node.op == "Add" else (a - d, b - c)


def layer(context: IntervalContext, node: Node) -> Interval | None:
    """Conv, Linear and Gemm with constant weights."""
    weight, inside = context.array(node.inputs[1]), context.interval(node.inputs[0])
    bias = context.array(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else np.zeros(1)
    plain = node.op != "Gemm" or (
        node.attrs.get("transB", 0)
        and not node.attrs.get("transA", 0)
        and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    )
    if weight is None or inside is None or bias is None or not plain or not weight.size:
        return None
    low, high = (min(inside[0], 0.0), max(inside[1], 0.0)) if node.op == "Conv" else inside  # padding
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    plus, minus = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    extra = bias.astype(np.float64).reshape(-1)
    return float((plus * low - minus * high + extra).min()), float((plus * high - minus * low + extra).max())


def quantized(context: IntervalContext, node: Node) -> Interval | None:
    """QuantizeLinear: the least and the greatest code."""
    scale, zero = (context.array(name) for name in (*node.inputs[1:3], "")[:2])
    if scale is None or scale.size != 1 or not scale.reshape(-1)[0] > 0:
        return None
    dtype = element_dtype(str(node.attrs.get("output_dtype", "U8"))) if zero is None else zero.dtype
    if dtype.kind not in "iu":
        return None
    point = 0.0 if zero is None else float(zero.reshape(-1)[0])
    inside = context.interval(node.inputs[0]) or _EVERYTHING
    limits, step = np.iinfo(dtype), float(scale.reshape(-1)[0])
    codes = [np.rint(n / step + more) + point for n, more in zip(inside, (-_TIE, _TIE), strict=True)]
    ends: Any = np.clip(codes, limits.min, limits.max)
    return float(ends[0]), float(ends[1])


def dequantized(context: IntervalContext, node: Node) -> Interval | None:
    """DequantizeLinear with one scale."""
    scale, zero = (context.array(name) for name in (*node.inputs[1:3], "")[:2])
    inside = context.interval(node.inputs[0])
    if scale is None or scale.size != 1 or inside is None:
        return None
    point = 0.0 if zero is None else float(zero.reshape(-1)[0])
    ends = sorted((n - point) * float(scale.reshape(-1)[0]) for n in inside)
    return ends[0], ends[1]


def looked_up(context: IntervalContext, node: Node) -> Interval | None:
    """Lookup: what the table holds."""
    return context.interval(node.inputs[1])
