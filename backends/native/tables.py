"""Rows of tables: by the ids of tokens, or by their positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdeploy.backends.native import heads
from qdeploy.backends.native.layout import Op
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node

if TYPE_CHECKING:
    from qdeploy.backends.native.plan import Planning


def gather(planning: Planning, node: Node) -> None:
    """The row of a matrix for every token."""
    weight, ids = node.inputs
    matrix, width = planning.matrix(weight), planning.model.tensors[weight].shape[1]
    if planning.is_computed(ids):
        planning.emit(Op.EMBED, (planning.source(ids),), node.outputs[0], width, matrix=matrix)
        return
    maker = planning.makers.get(ids)
    if maker is not None and maker.op == "IdsWithin":
        if maker.attrs["rows"] != planning.rows(weight):
            raise UnsupportedError("ids below another number than the table's rows", where=node.name)
        source = planning.source(maker.inputs[0])
        planning.emit(Op.EMBED, (source,), node.outputs[0], width, matrix=matrix, attrs=(1,))
        return
    if maker is not None and maker.op == "TokenPositions":
        places, pad = (planning.source(maker.inputs[0]),), int(maker.attrs["pad"])  # type: ignore[arg-type]
        planning.emit(Op.TOKEN_POSITIONS, places, node.outputs[0], width, matrix=matrix, attrs=(pad,))
        return
    first = heads.first_position(planning, ids, node)
    planning.emit(Op.POSITIONS, (), node.outputs[0], width, matrix=matrix, attrs=(first,) if first else ())
