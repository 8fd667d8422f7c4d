"""Weights as engines take them: matrices [out, in], one per expert and projection.

requires   any graph
ensures    what an Experts node takes as weights is a Stack of matrices; its biases are tensors or constants; what a
           Linear, GatedMlp or Gather node takes is no transpose of a tensor

A stack that is stored as one tensor [experts, out, in] is cut by its first axis into tensors of their own, named
`<tensor>[3]`; slices and transposes of it are cut the same way (`<tensor>[3][0::2]`, `<tensor>[3].T`). Nothing is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir import slices
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model, ReplacedTensors
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array, Buffer, QTensor, plain

WEIGHTS = range(3, 6)
"""Places of an Experts node's weights among its inputs: up, down, gate."""
_BIASES = range(6, 9)

Named = tuple[str, QTensor]


def with_matrices(model: Model) -> Model:
    """The model with a matrix per expert; the same one where there are no experts, or they are matrices already.

    Raises:
        UnsupportedError: An expert is no part of its own, or its weights are computed.
    """
    graph = model.graph
    makers = {name: node for node in graph.nodes for name in node.outputs}
    work = _Work(model, makers)
    if not any(node.op == "Experts" or work.is_transposed(node) for node in graph.nodes):
        return model
    nodes = tuple(work.experts(node) if node.op == "Experts" else work.linear(node) for node in graph.nodes)
    graph = _without_unused(replace(graph, nodes=_ordered(nodes, work.stacks), constants=work.constants))
    return replace(model, tensors=ReplacedTensors(model.tensors, work.cut), build_graph=lambda _: graph)


@dataclass
class _Work:
    model: Model
    makers: Mapping[str, Node]
    cut: dict[str, QTensor] = field(default_factory=dict)
    stacks: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = dict(self.model.graph.constants)

    def is_transposed(self, node: Node) -> bool:
        """Whether a node multiplies with the transpose of a tensor."""
        return any(self._transposed(name) for name in _matrices(node))

    def linear(self, node: Node) -> Node:
        """The node with matrices that lie as they are multiplied."""
        names = {name: stored for name in _matrices(node) if (stored := self._transposed(name))}
        for stored in names.values():
            if f"{stored}.T" not in self.cut:
                self.cut[f"{stored}.T"] = slices.transposed(self.model.tensors[stored])
        return replace(node, inputs=tuple(f"{names[name]}.T" if name in names else name for name in node.inputs))

    def _transposed(self, name: str) -> str:
        """The tensor whose transpose a name is; "" for any other name."""
        maker = self.makers.get(name)
        turned = maker is not None and maker.op == "Transpose" and maker.inputs[0] in self.model.tensors
        return maker.inputs[0] if turned and maker is not None else ""

    def experts(self, node: Node) -> Node:
        """The node with stacks of matrices, which are noted, and biases that are there."""
        inputs = list(node.inputs)
        for place in WEIGHTS:
            if place < len(inputs) and inputs[place]:
                inputs[place] = self._stack(node, inputs[place])
        for place in _BIASES:
            if place < len(inputs) and inputs[place] in self.makers:
                name = f"{inputs[place]}.whole"
                self.constants[name] = _constant(self._computed(inputs[place]))
                inputs[place] = name
        return replace(node, inputs=tuple(inputs))

    def _stack(self, node: Node, name: str) -> str:
        maker = self.makers.get(name)
        if maker is not None and maker.op == "Stack":
            return name
        matrices = self._matrices(name)
        self.cut |= {label: tensor for label, tensor in matrices if label not in self.model.tensors}
        stacked = f"{name}.matrices"
        if all(n.outputs[0] != stacked for nodes in self.stacks.values() for n in nodes):
            before = self.stacks.setdefault(node.outputs[0], [])
            before.append(Node("Stack", tuple(label for label, _ in matrices), (stacked,), {}, stacked))
        return stacked

    def _matrices(self, name: str) -> list[Named]:
        """The matrices of a stack, however it comes about."""
        maker = self.makers.get(name)
        if maker is None:
            tensor = self.model.tensors[name]
            return [(f"{name}[{i}]", slices.entry(tensor, i)) for i in range(tensor.shape[0])]
        if maker.op == "Stack":
            return [(label, self.model.tensors[label]) for label in maker.inputs]
        inner = self._matrices(maker.inputs[0])
        if maker.op == "Transpose" and maker.attrs.get("perm") == [0, 2, 1]:
            return [(f"{label}.T", slices.transposed(tensor)) for label, tensor in inner]
        if maker.op == "Slice" and maker.attrs.get("axes") == [1]:
            return [_cut_rows(maker, label, tensor) for label, tensor in inner]
        raise UnsupportedError("weights of experts that are computed", where=node_name(maker), found=maker.op)

    def _computed(self, name: str) -> Array:
        """A value that follows from tensors alone."""
        maker = self.makers.get(name)
        if maker is None:
            return self.model.tensors[name].decode()
        if maker.op not in ("Slice", "Stack"):
            raise UnsupportedError("biases of experts that are computed", where=node_name(maker), found=maker.op)
        result: Array = op(maker.op).numpy(*(self._computed(n) for n in maker.inputs), **dict(maker.attrs))
        return result


def _matrices(node: Node) -> tuple[str, ...]:
    """What a node multiplies with, or takes rows of, by matrices of the model."""
    places = [weight for weight, _ in op(node.op).weights] if node.op in ("Linear", "GatedMlp") else []
    places = [0] if node.op == "Gather" else places
    return tuple(node.inputs[place] for place in places)


def node_name(node: Node) -> str:
    """What a node is called in errors."""
    return node.name or node.outputs[0]


def _cut_rows(node: Node, label: str, tensor: QTensor) -> Named:
    attrs: Mapping[str, Any] = node.attrs
    start, stop, step = attrs["starts"][0], attrs["ends"][0], attrs.get("steps", [1])[0]
    written = f"{start}:{stop}" + (f":{step}" if step != 1 else "")
    return f"{label}[{written}]", slices.rows(tensor, start, min(stop, tensor.shape[0]), step)


def _constant(array: Array) -> QTensor:
    return plain(Buffer.of("data", np.ascontiguousarray(array, np.float32), "F32"), "f32")


def _ordered(nodes: tuple[Node, ...], stacks: Mapping[str, list[Node]]) -> tuple[Node, ...]:
    """Nodes, each behind the stacks that it takes."""
    return tuple(each for node in nodes for each in (*stacks.get(node.outputs[0], ()), node))


def _without_unused(graph: Graph) -> Graph:
    """The graph without nodes that nothing takes any more."""
    needed = {value.name for value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.attrs.get("state") or not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(reversed(kept)))
