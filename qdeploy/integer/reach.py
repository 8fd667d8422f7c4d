"""Between which numbers the values of a network must lie, from the scales of its source alone.

What a quantize node gives lies within its grid, and sums of products within what filters of either sign make of that:
per filter, the sum of its positive weights times the greatest input and of its negative ones times the least, and the
reverse. These bounds are wide, many times what any image reaches, so that they give scales to values of 16 bits and
more, and to none that are multiplied as 8. A value that they say nothing of has none here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array, QTensor

Interval = tuple[float, float]
_TIE = 1e-2  # of a code: the end of an interval that lies on a tie may round either way


class Reach:
    """The intervals of a graph's values; nothing is computed before one is asked for.

    Args:
        graph: Folded.
        tensors: The model's.
        known: Intervals that are known otherwise: of inputs, or measured.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, QTensor], known: Mapping[str, Interval]) -> None:
        self._graph, self._tensors, self._known = graph, tensors, known

    def get(self, name: str) -> Interval | None:
        """The interval of a value; None where nothing is known of it."""
        return self._found.get(name)

    def array(self, name: str) -> Array | None:
        """A constant."""
        found = self._graph.constants.get(name) or self._tensors.get(name)
        return None if found is None else as_value(found)

    @cached_property
    def _found(self) -> dict[str, Interval]:
        found = dict(self._known)
        for node in self._graph.nodes:
            rule = _RULES.get(node.op)
            made = rule(self, node, found) if rule and node.outputs[0] not in found else None
            if made is not None and np.isfinite(made).all():
                found[node.outputs[0]] = made
        return found


Found = Mapping[str, Interval]


def _same(reach: Reach, node: Node, found: Found) -> Interval | None:
    return found.get(node.inputs[0])


def _limited(reach: Reach, node: Node, found: Found) -> Interval | None:
    """Relu and Clip: both limits bound a value of which nothing is known."""
    low, high = found.get(node.inputs[0], (-np.inf, np.inf))
    least: Any = 0.0 if node.op == "Relu" else node.attrs.get("min")
    most: Any = None if node.op == "Relu" else node.attrs.get("max")
    ends = [n if least is None else max(n, float(least)) for n in (low, high)]
    ends = [n if most is None else min(n, float(most)) for n in ends]
    return ends[0], ends[1]


def _padded(reach: Reach, node: Node, found: Found) -> Interval | None:
    inside = found.get(node.inputs[0])
    if inside is None or node.attrs.get("mode", "constant") != "constant":
        return inside
    fill = reach.array(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else np.zeros(1)
    number = None if fill is None else float(fill.reshape(-1)[0])
    return None if number is None else (min(inside[0], number), max(inside[1], number))


def _sum(reach: Reach, node: Node, found: Found) -> Interval | None:
    """Add and Sub, of values and constants."""
    sides: list[Interval] = []
    for name in node.inputs:
        array = None if name in found else reach.array(name)
        if name not in found and (array is None or not array.size):
            return None
        sides.append(found[name] if array is None else (float(array.min()), float(array.max())))
    (a, b), (c, d) = sides
    return (a + c, b + d) if node.op == "Add" else (a - d, b - c)


def _joined(reach: Reach, node: Node, found: Found) -> Interval | None:
    parts = [found[name] for name in node.inputs if name in found]
    return (min(p[0] for p in parts), max(p[1] for p in parts)) if len(parts) == len(node.inputs) else None


def _layer(reach: Reach, node: Node, found: Found) -> Interval | None:
    weight, inside = reach.array(node.inputs[1]), found.get(node.inputs[0])
    bias = reach.array(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else np.zeros(1)
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


def _quantized(reach: Reach, node: Node, found: Found) -> Interval | None:
    """The least and the greatest code."""
    scale, zero = (reach.array(name) if name else None for name in (*node.inputs[1:3], "")[:2])
    if scale is None or scale.size != 1 or not scale.reshape(-1)[0] > 0:
        return None
    dtype = element_dtype(str(node.attrs.get("output_dtype", "U8"))) if zero is None else zero.dtype
    if dtype.kind not in "iu":
        return None
    point = 0.0 if zero is None else float(zero.reshape(-1)[0])
    inside = found.get(node.inputs[0], (-np.inf, np.inf))
    limits, step = np.iinfo(dtype), float(scale.reshape(-1)[0])
    codes = [np.rint(n / step + more) + point for n, more in zip(inside, (-_TIE, _TIE), strict=True)]
    ends = np.clip(codes, limits.min, limits.max)
    return float(ends[0]), float(ends[1])


def _looked_up(reach: Reach, node: Node, found: Found) -> Interval | None:
    table = reach.array(node.inputs[1])
    return None if table is None else (float(table.min()), float(table.max()))


def _dequantized(reach: Reach, node: Node, found: Found) -> Interval | None:
    scale, zero = (reach.array(name) if name else None for name in (*node.inputs[1:3], "")[:2])
    inside = found.get(node.inputs[0])
    if scale is None or scale.size != 1 or inside is None:
        return None
    point = 0.0 if zero is None else float(zero.reshape(-1)[0])
    ends = sorted((n - point) * float(scale.reshape(-1)[0]) for n in inside)
    return ends[0], ends[1]


_RULES: Mapping[str, Callable[[Reach, Node, Found], Interval | None]] = {
    "Conv": _layer,
    "Linear": _layer,
    "Gemm": _layer,
    "Relu": _limited,
    "Clip": _limited,
    "Pad": _padded,
    "Add": _sum,
    "Sub": _sum,
    "Concat": _joined,
    "QuantizeLinear": _quantized,
    "DequantizeLinear": _dequantized,
    "Lookup": _looked_up,
    **dict.fromkeys(
        (
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "ReduceMean",
            "Reshape",
            "Transpose",
            "Flatten",
            "Slice",
            "Squeeze",
            "Unsqueeze",
            "Identity",
        ),
        _same,
    ),
}
"""The rule of each op that says something of its result."""
