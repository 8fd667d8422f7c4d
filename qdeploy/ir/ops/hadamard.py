"""The row of the Hadamard transform: columns in blocks, each times the matrix of Sylvester over the root of its size.

    H(1) = [1],   H(2 n) = [[H(n), H(n)], [H(n), -H(n)]];   y = x H(size) / sqrt(size)

The matrix is symmetric and orthogonal, so that the transform takes itself back. It is computed by sums and differences
of halves, size log2(size) of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.rounding import rounded_once
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.tensor import Array


@rounded_once
def hadamard(x: Array, *, size: int) -> Any:
    """Blocks of `size` columns of x [..., K] turned.

    Raises:
        BadFileError: The size is no power of two, or rows are no whole blocks.
    """
    if size < 1 or size & (size - 1) or x.shape[-1] % size:
        raise BadFileError(
            "blocks that have no Hadamard transform",
            found=f"{size} of {x.shape[-1]} columns",
            allowed="a power of two that divides the columns",
        )
    turned, step = x, 1
    while step < size:
        halves = turned.reshape(-1, 2, step)
        turned = np.stack((halves[:, 0] + halves[:, 1], halves[:, 0] - halves[:, 1]), axis=1)
        step *= 2
    return turned.reshape(x.shape) / math.sqrt(size)


def sylvester(size: int) -> Array:
    """The matrix itself, float64 [size, size] of 1 and -1."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard_nodes(node: Node, fresh: Callable[[str], str]) -> list[Node]:
    """Sums and differences of halves, level by level."""
    size = int(node.attrs["size"])  # type: ignore[arg-type]
    shape, factor, value = fresh("shape"), fresh("factor"), node.inputs[0]
    nodes = [
        Node("Shape", (value,), (shape,)),
        Node("Constant", (), (factor,), {"value_float": 1 / math.sqrt(size)}),
    ]
    for level in range(size.bit_length() - 1):
        step = 1 << level
        names = (fresh(f"{part}{step}") for part in ("halves", "first", "second", "sum", "difference", "turned"))
        halves, first, second, total, difference, turned = names
        nodes += [
            Node("Reshape", (value,), (halves,), {"shape": [-1, 2, step]}),
            Node("Slice", (halves,), (first,), {"starts": [0], "ends": [1], "axes": [1]}),
            Node("Slice", (halves,), (second,), {"starts": [1], "ends": [2], "axes": [1]}),
            Node("Add", (first, second), (total,)),
            Node("Sub", (first, second), (difference,)),
            Node("Concat", (total, difference), (turned,), {"axis": 1}),
        ]
        value = turned
    whole = fresh("whole")
    return [*nodes, Node("Reshape", (value, shape), (whole,)), Node("Mul", (whole, factor), node.outputs)]


HADAMARD_ROWS: tuple[Op, ...] = (
    Op(
        "Hadamard",
        QDEPLOY,
        "blocks of `size` columns times Sylvester's matrix / sqrt(size)",
        hadamard,
        hadamard_nodes,
    ),
)
