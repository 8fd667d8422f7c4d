"""Layers that add something to their outputs: what a quantizer found that its weights do not hold.

requires   linear layers (ops with weights) with the weights that shifts are named after
ensures    each has a bias: its own and the shift, as a constant NAME/bias of the graph
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Float32, QTensor, Term


def shifted(model: Model, shifts: Mapping[str, QTensor]) -> Model:
    """Returns the model with the shifts, float [N] by the name of a weight, added to the outputs of its layers."""
    if not shifts:
        return model
    graph = model.graph
    constants: dict[str, QTensor] = {}
    nodes = tuple(_shifted(node, graph, model, shifts, constants) for node in graph.nodes)
    changed = replace(graph, nodes=nodes, constants={**graph.constants, **constants})
    return replace(model, build_graph=lambda _: changed)


def _shifted(
    node: Node, graph: Graph, model: Model, shifts: Mapping[str, QTensor], constants: dict[str, QTensor]
) -> Node:
    inputs = list(node.inputs)
    for weight, place in op(node.op).weights:
        if weight >= len(inputs) or inputs[weight] not in shifts:
            continue
        if not place:
            raise UnsupportedError("a layer that takes no bias cannot add anything", where=node.name, found=node.op)
        inputs += [""] * (place + 1 - len(inputs))
        name, own = f"{inputs[weight]}/bias", inputs[place]
        values = shifts[inputs[weight]].decode()
        if own:
            values = values + (graph.constants[own] if own in graph.constants else model.tensors[own]).decode()
            name = f"{name}+{own}"
        constants[name] = _vector(np.ascontiguousarray(values, np.float32))
        inputs[place] = name
    return replace(node, inputs=tuple(inputs))


def _vector(values: Float32) -> QTensor:
    buffer = Buffer.of("bias", values, "F32")
    return QTensor(buffer.shape, "F32", (Term(Codes(buffer.shape, (buffer,), PLAIN, "f32")),))
