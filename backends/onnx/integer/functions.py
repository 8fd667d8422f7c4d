"""Functions of integer graphs (ir/ops/integer_functions.py) in ONNX: the same formulas over int64, exactly.

The integer square root is found bit by bit: from root to t = root + 2^i wherever t <= x / t, which says that t^2 is not
above x and cannot overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qdeploy.backends.onnx.integer import shifts
from qdeploy.backends.onnx.integer.lowering import IntegerLowering
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.integer_functions import EXP_DEPTH

_RECIPROCAL, _NORM_RECIPROCAL, _NORM_SHIFT = 62, 46, 16  # as integer_functions.py has them
_ROOT_BITS = 32
"""Of a square root of an int64."""


class _Writer:
    """Nodes over int64, by what they compute."""

    def __init__(self, low: IntegerLowering) -> None:
        self.low, self.builder = low, low.builder

    def number(self, n: int) -> str:
        return self.builder.tensor(n, "int64")

    def of(self, op: str, *inputs: str | int, **attrs: Any) -> str:
        names = [self.number(x) if isinstance(x, int) else x for x in inputs]
        output: str = self.builder.node(op, names, "", **attrs)
        return output

    def shifted(self, x: str, e: int | str) -> str:
        """X >> e for x >= 0."""
        return shifts.shift_natural(self.builder, x, e if isinstance(e, str) else np.array(e)) if e != 0 else x

    def floored(self, x: str, e: int) -> str:
        """X >> e for any x."""
        return shifts.floor_shift(self.builder, x, np.array(e)) if e else x

    def least(self, x: str, y: int) -> str:
        """The smaller of two numbers."""
        return shifts.least(self.builder, x, self.number(y))

    def greatest(self, x: str, y: int) -> str:
        """The greater of two numbers."""
        return shifts.greatest(self.builder, x, self.number(y))

    def finish(self, node: Node, x: str) -> None:
        name = node.outputs[0]
        self.low.give(name, self.low.cast(x, self.low.types[name], name))


def _attrs(node: Node, **defaults: int) -> list[int]:
    return [int(node.attrs.get(key, value)) for key, value in defaults.items()]  # type: ignore[arg-type]


def _exponential(w: _Writer, node: Node, x: str) -> str:
    """Of x <= 0."""
    ln2, b, c, left = _attrs(node, ln2=1, b=1, c=1, left=0)
    down = w.least(w.of("Neg", x), EXP_DEPTH * ln2)
    halvings = w.of("Div", down, ln2)
    rest = w.of("Sub", w.of("Mul", halvings, ln2), down)
    polynomial = w.of("Add", w.of("Mul", rest, w.of("Add", rest, b)), c)
    return w.shifted(w.of("Mul", polynomial, 1 << left), halvings)


def _exp(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    w.finish(node, _exponential(w, node, low.wide(node.inputs[0], "I64")))


def _softmax(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    axis, bits, hi = _attrs(node, axis=-1, bits=8, hi=255)
    scores, along = low.wide(node.inputs[0]), low.builder.tensor([axis], "int64")
    kept = ""
    if node.inputs[1:2] and node.inputs[1]:
        kept = low.cast(low.plain(node.inputs[1]), "BOOL")
        scores = w.of("Where", kept, scores, low.builder.tensor(-(1 << 31), "int32"))
    top = low.cast(w.of("ReduceMax", scores, along, keepdims=1), "I64")
    raised = _exponential(w, node, w.of("Sub", low.cast(scores, "I64"), top))
    if kept:
        raised = w.of("Where", kept, raised, 0)
    total = w.of("ReduceSum", raised, along, keepdims=1)
    factor = w.of("Div", 1 << _RECIPROCAL, w.greatest(total, 1))
    moved = w.of("Add", w.of("Mul", raised, factor), 1 << (_RECIPROCAL - 1 - bits))
    w.finish(node, w.least(w.shifted(moved, _RECIPROCAL - bits), hi))


def _gelu(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    b, c, shift = _attrs(node, b=0, c=0, shift=0)
    x = low.wide(node.inputs[0], "I64")
    clipped = w.of("Sub", w.least(w.of("Abs", x), b), b)
    curve = w.shifted(w.of("Sub", c, w.of("Mul", clipped, clipped)), shift)
    signed = w.of("Where", shifts.below_zero(low.builder, x), w.of("Neg", curve), curve)
    w.finish(node, w.of("Mul", x, w.of("Add", signed, c >> shift)))


def _root(w: _Writer, x: str, bits: int = _ROOT_BITS) -> str:
    """floor(sqrt(x)) for 0 <= x < 4^bits."""
    root = w.of("Mul", x, 0)
    for place in reversed(range(bits)):
        tried = w.of("Add", root, 1 << place)
        fits = w.of("LessOrEqual", tried, w.of("Div", x, tried))
        root = w.of("Where", fits, tried, root)
    return root


def _sqrt(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    bits = (np.iinfo(element_dtype(low.types[node.inputs[0]])).bits) // 2
    w.finish(node, _root(w, low.wide(node.inputs[0], "I64"), min(bits, _ROOT_BITS)))


def _normal(w: _Writer, node: Node, y: str) -> str:
    """Y over the root of its sum of squares, weighted."""
    low = w.low
    epsilon, shift = _attrs(node, epsilon=0, shift=0)
    wide = low.types[node.inputs[0]] == "I32"
    squares = w.of("Add", shifts.total(low.builder, w.of("Mul", y, y), halves=wide), epsilon)
    factor = w.of("Div", 1 << _NORM_RECIPROCAL, w.greatest(_root(w, squares), 1))
    total = w.floored(w.of("Mul", y, factor), _NORM_SHIFT)
    weight, bias = (*node.inputs[1:3], "", "")[:2]
    if weight:
        total = w.floored(w.of("Mul", total, low.wide(weight, "I64")), shift)
    return w.of("Add", total, low.wide(bias, "I64")) if bias else total


def _layer_norm(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    x, n = low.wide(node.inputs[0], "I64"), low.shapes[node.inputs[0]][-1]
    if not isinstance(n, int) or n < 1:
        raise low.refuse(node, "a normalisation over an axis of free extent", n)
    total = shifts.total(low.builder, x)
    doubled = w.of("Add", w.of("Mul", total, 2), n)
    mean = shifts.floor_divided(low.builder, doubled, 2 * n)
    w.finish(node, _normal(w, node, w.floored(w.of("Sub", x, mean), *_attrs(node, x_shift=0))))


def _rms_norm(low: IntegerLowering, node: Node) -> None:
    w = _Writer(low)
    y = w.floored(low.wide(node.inputs[0], "I64"), *_attrs(node, x_shift=0))
    w.finish(node, _normal(w, replace_bias(node), y))


def replace_bias(node: Node) -> Node:
    """The node without a bias, which only layer norms have."""
    return Node(node.op, node.inputs[:2], node.outputs, node.attrs, node.name)


def _lookup(low: IntegerLowering, node: Node) -> None:
    name, table = node.inputs
    index = low.wide(name)
    if low.types[name] == "I8":
        index = low.builder.node("Add", [index, low.builder.tensor(128, "int32")])
    low.give(node.outputs[0], low.builder.node("Gather", [low.plain(table), index], node.outputs[0], axis=0))


FUNCTIONS: Mapping[str, Callable[[IntegerLowering, Node], None]] = {
    "IntegerExp": _exp,
    "IntegerSoftmax": _softmax,
    "IntegerGelu": _gelu,
    "IntegerSqrt": _sqrt,
    "IntegerLayerNorm": _layer_norm,
    "IntegerRMSNorm": _rms_norm,
    "Lookup": _lookup,
}
"""How each function is lowered."""
