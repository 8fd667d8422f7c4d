"""What running a graph may cost, counted before each node: for networks that are run because a file asks for it.

A small file can ask for much: selections of selections, tables of sums, matrices times matrices. Whoever runs a graph
on made-up inputs, or evaluates its constants, gives the interpreter a guard; what a user runs on their own is not
bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array

ELEMENTS = 1 << 28
"""Of one value."""
_FLOOR, _PER_WEIGHT = 1 << 36, 1 << 14
"""Products that a run may take: so many, and so many more for each weight (an image has as many places)."""
_BROADCAST = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Where", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
) | frozenset(("And", "Or", "Xor", "Max", "Min", "Sum", "Mean", "PRelu"))
_PRODUCTS = frozenset(("MatMul", "MatMulInteger", "Linear", "Gemm", "QLinearMatMul"))
_CONVOLUTIONS = frozenset(("Conv", "ConvInteger", "QLinearConv", "ConvTranspose"))


class Guard:
    """Counts what the nodes of one run cost.

    Args:
        elements: Of one value at most.
        work: Products at most, beside those that its weights allow.
    """

    def __init__(self, elements: int = ELEMENTS, work: int = _FLOOR) -> None:
        self._elements, self._left = elements, work

    def __call__(self, node: Node, arguments: Sequence[Array | None], weights: Sequence[int]) -> None:
        """Takes a node's cost off the budget.

        Args:
            node: What is about to run.
            arguments: What it takes.
            weights: Extents of those of them that are weights.

        Raises:
            UnsupportedError: It would make too many elements, or the run too many products.
        """
        arrays = [a for a in arguments if a is not None]
        self._left += _PER_WEIGHT * sum(weights)
        count, products = cost(node.op, arrays, node.attrs)
        self._left -= products
        if count > self._elements or self._left < 0:
            raise UnsupportedError(
                "running the network takes far more than its size is worth",
                where=f"node {node.name or node.outputs[0]} ({node.op})",
                found=f"{count} elements" if count > self._elements else f"{products} products",
                allowed=f"{self._elements} elements of a value",
                todo="--check none converts without running it.",
            )


def cost(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    """Elements of a node's result, and products that it takes; 0 where both are of the size of what comes in."""
    count: Callable[..., tuple[int, int]] | None = None
    if op in _BROADCAST:
        count = _broadcast
    elif op in _PRODUCTS and len(arrays) > 1:
        count = _product
    elif op in _CONVOLUTIONS and len(arrays) > 1:
        count = _convolution
    elif op in ("Gather", "GatherND") and len(arrays) == 2:
        count = _gathered
    elif op == "Concat":
        count = _joined
    try:
        return count(op, arrays, attrs) if count is not None else (0, 0)
    except (ValueError, IndexError, TypeError, ZeroDivisionError):  # the node itself says what does not fit
        return 0, 0


def _broadcast(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    return math.prod(np.broadcast_shapes(*(a.shape for a in arrays))), 0


def _product(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    a, b = arrays[0], arrays[3] if op == "QLinearMatMul" else arrays[1]
    depth = max(1, a.shape[-2 if attrs.get("transA") else -1])
    if op == "Linear" or b.ndim < 2 or a.ndim < 2:
        count = a.size // depth * max(1, b.size // depth)
    else:
        stacked = math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        count = stacked * math.prod(a.shape[-2:]) // depth * (math.prod(b.shape[-2:]) // depth)
    return count, count * depth


def _convolution(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    x, weight = arrays[0], arrays[3] if op == "QLinearConv" else arrays[1]
    space = x.shape[2:]
    strides = attrs.get("strides") or [1] * len(space)
    if op == "ConvTranspose":
        return 0, x.size * (weight.size // max(1, weight.shape[0]))
    places = math.prod(-(-n // s) for n, s in zip(space, strides, strict=True))
    return x.shape[0] * weight.shape[0] * places, x.shape[0] * places * weight.size


def _gathered(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    data, indices = arrays
    if op == "Gather":
        return data.size // data.shape[attrs.get("axis", 0)] * indices.size, 0
    batch, depth = int(attrs.get("batch_dims", 0)), indices.shape[-1]
    return indices.size // depth * math.prod(data.shape[batch + depth :]), 0


def _joined(op: str, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[int, int]:
    return sum(a.size for a in arrays), 0
