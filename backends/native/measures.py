"""Magnitudes and outliers of a token's values, and what else came to the runtime with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdeploy.backends.native.layout import Op
from qdeploy.ir.graph import Node

if TYPE_CHECKING:
    from qdeploy.backends.native.plan import PlannedNode, Planning


def outliers(planning: Planning, node: Node) -> None:
    """What is left above a threshold that a token's own values decide."""
    source, factor = planning.source(node.inputs[0]), float(node.attrs["factor"])  # type: ignore[arg-type]
    planning.emit(Op.OUTLIERS, (source,), node.outputs[0], planning.width(source), attrs=(factor,))


def magnitude(planning: Planning, node: Node) -> None:
    """A value with the magnitude of another."""
    sources = planning.source(node.inputs[0]), planning.source(node.inputs[1])
    least = float(node.attrs["least"])  # type: ignore[arg-type]
    planning.emit(Op.MAGNITUDE, sources, node.outputs[0], planning.width(sources[0]), attrs=(least,))


def measures(node: PlannedNode, factors: int) -> bool:
    """Whether a node does what came to its op later; `factors`: floats per token of its second input."""
    if node.op == Op.SCALE:
        return factors > 1
    return bool(node.op == Op.EMBED and node.attrs) or (node.op == Op.ROUTE and len(node.tensors) > 1)
