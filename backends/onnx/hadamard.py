"""The Hadamard transform as one product of matrices, or two for blocks that are large: H(a b) is H(a) by H(b)."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.hadamard import sylvester

_WIDEST = 128
"""Columns of a block that one product turns: its matrix stands in the graph."""


class Scope(Protocol):
    """What the emitter sees of the graph that is being lowered."""

    builder: GraphBuilder

    def value(self, name: str) -> str:
        """The ONNX value of a name."""
        ...


def emit_hadamard(scope: Scope, node: Node) -> None:
    """Lowers a Hadamard node."""
    builder, size = scope.builder, int(node.attrs["size"])  # type: ignore[arg-type]
    right = min(size, _WIDEST)
    left = size // right
    x = scope.value(node.inputs[0])
    shape = builder.once("Shape", [x])
    blocks = builder.node("Reshape", [x, builder.constant([-1, left, right], "int64")])
    factor = (sylvester(right) / math.sqrt(size)).astype(np.float32)
    turned = builder.node("MatMul", [blocks, builder.tensor(factor)])
    if left > 1:
        turned = builder.node("MatMul", [builder.tensor(sylvester(left).astype(np.float32)), turned])
    builder.node("Reshape", [turned, shape], node.outputs[0])
