"""Proof that an integer graph cannot overflow: the interval of every value, from its weights and the limits before it.

    products      per filter or row, sum |w| max |x| + |bias| must fit an int32: so does then every partial sum, in any
                  order; the interval itself is the tighter one of the signed sums
    requantize    the product with the multiplier and its rounding must fit an int64; the interval is that of the ends,
                  limited to lo..hi
    functions     what their own arithmetic reaches at most (ir/ops/integer_functions.py)

Inputs may hold every number of their type. Sums over an axis of free extent hold up to that which
the graph's meta gives ("limits": {axis: extent}), or else up to one that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.passes.shapes import Extents, extents

Interval = tuple[int, int]
INT32, INT64 = 1 << 31, 1 << 63


@dataclass
class Bounds:
    """What is known of a graph.

    Attributes:
        values: The least and greatest number that each value can hold.
        limits: For free axes that are summed over: the greatest extent for which nothing overflows.
    """

    values: dict[str, Interval] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


def check_ranges(graph: Graph, tensors: Mapping[str, QTensor]) -> Bounds:
    """Proves every accumulator and every shift of an integer graph.

    Args:
        graph: Of the rows of ir/ops/integer.py and of rows that move elements.
        tensors: The model's.

    Raises:
        UnsupportedError: A result could overflow: names the node, the bound and the limit; or a row is not known here.
    """
    held = {**{name: tensors[name] for name in graph.weights() if name in tensors}, **graph.constants}
    arrays = {name: as_value(tensor) for name, tensor in held.items()}
    work = _Analysis(graph, arrays)
    for node in graph.nodes:
        work.visit(node)
    return work.found


class _Analysis:
    def __init__(self, graph: Graph, arrays: Mapping[str, Array]) -> None:
        self.graph, self.arrays, self.found = graph, arrays, Bounds()
        self._extents: dict[str, Extents] | None = None
        for value in graph.inputs:
            limits = np.iinfo(element_dtype(value.dtype))
            self.found.values[value.name] = (int(limits.min), int(limits.max))

    def visit(self, node: Node) -> None:
        """Finds the interval of a node's result."""
        rule = RULES.get(node.op)
        if rule is None:
            raise UnsupportedError(
                "an op that the range analysis does not know",
                where=where(node),
                found=node.op,
                allowed=", ".join(RULES),
            )
        self.found.values[node.outputs[0]] = rule(self, node)

    def interval(self, name: str) -> Interval:
        """Of a value or constant."""
        if name in self.arrays:
            array = self.arrays[name]
            return (int(array.min()), int(array.max())) if array.size else (0, 0)
        return self.found.values[name]

    def axis(self, name: str, axis: int) -> int | str:
        """The extent of an axis of a value; its name where it is free."""
        if name in self.arrays:
            return int(self.arrays[name].shape[axis])
        if self._extents is None:
            self._extents = extents(self.graph, self.arrays)
        return self._extents[name][axis]

    def below(self, node: Node, bound: int, limit: int, what: str) -> None:
        """Raises UnsupportedError where a bound reaches a limit."""
        if bound >= limit:
            raise UnsupportedError(
                f"{what} could overflow",
                where=where(node),
                found=bound,
                allowed=f"below {limit}",
                todo="Give this layer fewer bits, or a coarser scale.",
            )

    def times(self, node: Node, count: int | str, each: int, limit: int, what: str) -> int:
        """Proves count * each below a limit; of a free axis, notes the greatest extent. Returns the bound."""
        if isinstance(count, int) and count >= 0:
            self.below(node, count * each, limit, what)
            return count * each
        known: Any = self.graph.meta.get("limits", {})
        if count in known:
            return self.times(node, int(known[count]), each, limit, what)
        most = (limit - 1) // max(each, 1)
        self.below(node, 1 if most else limit, limit, what)
        name = str(count)
        self.found.limits[name] = min(self.found.limits.get(name, most), most)
        return most * each


def where(node: Node) -> str:
    """A node as errors name it."""
    return f"node {node.name or node.outputs[0]} ({node.op})"


def _attr(node: Node, name: str, default: int = 0) -> int:
    return int(node.attrs.get(name, default))  # type: ignore[arg-type]


def _size(interval: Interval) -> int:
    return max(abs(interval[0]), abs(interval[1]))


def _less(interval: Interval, zero: int) -> Interval:
    return interval[0] - zero, interval[1] - zero


def _joined(*intervals: Interval) -> Interval:
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _limited(interval: Interval, low: int | None, high: int | None) -> Interval:
    ends = [max(n, low) if low is not None else n for n in interval]
    ends = [min(n, high) if high is not None else n for n in ends]
    return ends[0], ends[1]


def _product(work: _Analysis, node: Node) -> Interval:
    """IntegerConv and IntegerLinear."""
    low, high = _less(work.interval(node.inputs[0]), _attr(node, "x_zero"))
    if node.op == "IntegerConv":
        low, high = min(low, 0), max(high, 0)  # padding
    weight = work.arrays[node.inputs[1]].astype(np.int64)
    rows = weight.reshape(len(weight), -1)
    plus, minus = (np.maximum(part, 0).sum(axis=1) for part in (rows, -rows))
    held = work.arrays[node.inputs[2]] if node.inputs[2:3] and node.inputs[2] else np.zeros(len(rows), np.int64)
    bias = held.astype(np.int64)
    work.below(node, int(((plus + minus) * max(-low, high) + np.abs(bias)).max()), INT32, "an accumulator")
    return int((plus * low - minus * high + bias).min()), int((plus * high - minus * low + bias).max())


def _mat_mul(work: _Analysis, node: Node) -> Interval:
    a, b = (_less(work.interval(node.inputs[i]), _attr(node, key)) for i, key in enumerate(("a_zero", "b_zero")))
    bound = work.times(node, work.axis(node.inputs[0], -1), _size(a) * _size(b), INT32, "an accumulator")
    return -bound, bound


def _requantize(work: _Analysis, node: Node) -> Interval:
    m, e = (work.arrays[name].astype(object).reshape(-1) for name in node.inputs[1:3])
    raised = [n << _attr(node, "left_shift") for n in _less(work.interval(node.inputs[0]), _attr(node, "x_zero"))]
    size = max(abs(raised[0]), abs(raised[1]))
    if node.attrs.get("rounding") == "tflite_double":
        work.below(node, size << max(31 - int(min(e)), 0), INT32, "a left shift")
    work.below(node, size * int(max(m)) + (1 << int(max(e) - 1)), INT64, "the product of a requantization")
    zero, ends = _attr(node, "zero"), (_attr(node, "lo"), _attr(node, "hi"))
    # One less and one more than the quotient covers every rounding.
    low = min(int((raised[0] * m >> e).min()), int((raised[0] * m >> e).max())) - 1 + zero
    high = max(int((raised[1] * m >> e).min()), int((raised[1] * m >> e).max())) + 2 + zero
    return _limited((low, high), *ends)


def _add(work: _Analysis, node: Node) -> Interval:
    a, b = (work.interval(name) for name in node.inputs)
    found = (a[0] + b[0], a[1] + b[1])
    work.below(node, _size(found), INT32, "a sum")
    return found


def _mul(work: _Analysis, node: Node) -> Interval:
    a, b = (_less(work.interval(node.inputs[i]), _attr(node, key)) for i, key in enumerate(("a_zero", "b_zero")))
    every = [x * y for x in a for y in b]
    work.below(node, max(map(abs, every)), INT32, "a product")
    return min(every), max(every)


def _sum(work: _Analysis, node: Node) -> Interval:
    axes: Any = node.attrs["axes"]
    counts = [work.axis(node.inputs[0], axis) for axis in axes]
    fixed = int(np.prod([n for n in counts if isinstance(n, int)], dtype=np.int64))
    free = [n for n in counts if isinstance(n, str)]
    low, high = work.interval(node.inputs[0])
    if len(free) > 1:
        raise UnsupportedError("a sum over several free axes cannot be bounded", where=where(node), found=free)
    each = _size((low, high)) * (fixed if free else 1)
    bound = work.times(node, free[0] if free else fixed, each, INT32, "a sum")
    return (-bound if low < 0 else 0), (bound if high > 0 else 0)


def _same(work: _Analysis, node: Node) -> Interval:
    low, high = node.attrs.get("lo"), node.attrs.get("hi")
    return _limited(work.interval(node.inputs[0]), low, high)  # type: ignore[arg-type]


def _clip(work: _Analysis, node: Node) -> Interval:
    low, high = (0, None) if node.op == "Relu" else (node.attrs.get("min"), node.attrs.get("max"))
    return _limited(work.interval(node.inputs[0]), low, high)  # type: ignore[arg-type]


def _pad(work: _Analysis, node: Node) -> Interval:
    value = node.inputs[2] if node.inputs[2:3] else ""
    return _joined(work.interval(node.inputs[0]), work.interval(value) if value else (0, 0))


def _exp(work: _Analysis, node: Node) -> Interval:
    return 0, _attr(node, "c") << _attr(node, "left")


def _gelu(work: _Analysis, node: Node) -> Interval:
    bound = 2 * _size(work.interval(node.inputs[0])) * (_attr(node, "c") >> _attr(node, "shift"))
    work.below(node, bound, INT32, "an integer GELU")
    return -bound, bound


def _norm(work: _Analysis, node: Node) -> Interval:
    low, high = work.interval(node.inputs[0])
    spread = high - low if node.op == "IntegerLayerNorm" else _size((low, high))
    squared = ((spread >> _attr(node, "x_shift")) + 1) ** 2
    epsilon = _attr(node, "epsilon")
    work.times(node, work.axis(node.inputs[0], -1), squared, INT64 - epsilon, "a sum of squares")
    weight, bias = (_size(work.interval(n)) if n else 0 for n in (*node.inputs[1:3], "", "")[:2])
    bound = 1 << 30 if not weight else (weight << 30 >> _attr(node, "shift")) + 1 + bias
    work.below(node, bound, INT32, "a normalisation")
    return -bound, bound


def _isqrt(work: _Analysis, node: Node) -> Interval:
    return 0, 1 << (work.interval(node.inputs[0])[1].bit_length() + 1) // 2


RULES: dict[str, Callable[[_Analysis, Node], Interval]] = {
    "IntegerConv": _product,
    "IntegerLinear": _product,
    "IntegerMatMul": _mat_mul,
    "Requantize": _requantize,
    "IntegerAdd": _add,
    "IntegerMul": _mul,
    "IntegerSum": _sum,
    "IntegerMean": _same,
    "IntegerAveragePool": _same,
    "IntegerSqrt": _isqrt,
    "Lookup": lambda work, node: work.interval(node.inputs[1]),
    "IntegerExp": _exp,
    "IntegerSoftmax": lambda work, node: (0, _attr(node, "hi", 255)),
    "IntegerGelu": _gelu,
    "IntegerLayerNorm": _norm,
    "IntegerRMSNorm": _norm,
    "MaxPool": _same,
    "Relu": _clip,
    "Clip": _clip,
    "Pad": _pad,
    "Concat": lambda work, node: _joined(*(work.interval(name) for name in node.inputs)),
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Slice", "Squeeze", "Unsqueeze", "Identity", "Gather"), _same),
    "Positions": lambda work, node: (0, INT64 - 1),
    "TfliteSoftmax": lambda work, node: (-128, 127),
}
"""The rule of every row that an integer graph may hold."""
