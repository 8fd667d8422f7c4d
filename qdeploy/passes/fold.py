"""A float network with less in it that computes the same: what an exporter leaves and integer arithmetic cannot use.

    Identity                                            gone
    composites (norms with a sum, gated layers)         their expansions
    nodes of constants                                  their result, as a constant of the graph
    Reshape by a computed shape                         a list, with -1 for the one axis that is free
    BatchNormalization behind a convolution or matrix   multiplied into its weight and bias:
                                                        g = scale / sqrt(variance + epsilon);  W g,  (b - mean) g + bias
    x @ W + b over constants                            Linear(x, W.T, b)

Batch norms are folded in float64 and rounded once. The codes of weights that are quantized stay as they are: a batch
norm behind them goes into their scales, one per output.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import of_storage, plain_name
from qdeploy.ir.element import as_value, element_name
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.guard import Guard
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array, Buffer, QTensor, plain
from qdeploy.ir.views import Floats, view
from qdeploy.ir.views.scaled import is_quantized, scaled
from qdeploy.passes.expand import expand_graph
from qdeploy.passes.shapes import UNKNOWN, inferred_shapes

_WHOLE = frozenset({"Linear", "MeanPool", "Positions"})
"""Composites that stay."""
MAX_FOLDED = 1 << 22
"""Elements of a constant that is computed here."""
MAX_WORK = 1 << 32
"""Products that one of them may take."""
_LAYERS = {"Conv": 0, "Linear": 0, "Gemm": 0}
"""Ops with a weight and a bias, and the axis of the weight's outputs (of a Gemm with transB = 1)."""
_KEPT = frozenset({"Opaque", "DequantizeLinear"})
"""Never evaluated: without a meaning here, or what says that a constant is quantized."""


def fold(graph: Graph, tensors: Mapping[str, QTensor]) -> Graph:
    """Returns a graph that computes the same; new tensors are its constants.

    Args:
        graph: A float network, or one with quantize nodes.
        tensors: The model's.
    """
    work = _Fold(expand_graph(graph, _WHOLE), tensors)
    work.skip_identities()
    work.evaluate_constants()
    work.settle_shapes()
    work.join_biases()
    work.fold_batch_norms()
    return work.graph()


def plain_tensor(array: Array) -> QTensor:
    """An array as a tensor of its own element type."""
    dtype = element_name(array.dtype)
    return QTensor(array.shape, dtype, plain(Buffer.of("data", np.atleast_1d(array), dtype), plain_name(dtype)).terms)


class _Fold:
    def __init__(self, graph: Graph, tensors: Mapping[str, QTensor]) -> None:
        self.source, self.tensors = graph, tensors
        self.nodes = list(graph.nodes)
        self.constants = dict(graph.constants)
        self.outputs = {value.name for value in graph.outputs}

    def graph(self) -> Graph:
        """What is left: nodes and constants that something takes."""
        taken = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if taken.intersection(node.outputs):
                kept.append(node)
                taken.update(node.inputs)
        constants = {name: tensor for name, tensor in self.constants.items() if name in taken}
        return dataclasses.replace(self.source, nodes=tuple(reversed(kept)), constants=constants)

    def tensor(self, name: str) -> QTensor | None:
        """A tensor of the model or constant of the graph."""
        return self.constants.get(name) or self.tensors.get(name)

    def array(self, name: str) -> Array | None:
        """A constant that is not quantized."""
        tensor = self.tensor(name)
        bare = name in self.constants and tensor is not None and not is_quantized(tensor)
        if tensor is None or not (bare or isinstance(view(tensor), Floats) or tensor.dtype.startswith(("I", "U"))):
            return None
        return as_value(tensor)

    def constant(self, name: str, array: Array) -> str:
        """Adds a constant; returns its name, which is new."""
        return self.keep(name, plain_tensor(array))

    def keep(self, name: str, tensor: QTensor) -> str:
        """Adds a tensor as a constant; returns its name, which is new."""
        while name in self.constants or name in self.tensors:
            name += "'"
        self.constants[name] = tensor
        return name

    def uses(self) -> Counter[str]:
        """How often each value is taken."""
        return Counter([name for node in self.nodes for name in node.inputs] + list(self.outputs))

    # ---- steps

    def skip_identities(self) -> None:
        """Nodes that give what they take."""
        alias: dict[str, str] = {}
        kept: list[Node] = []
        for node in self.nodes:
            inputs = tuple(alias.get(name, name) for name in node.inputs)
            if node.op == "Identity" and node.outputs[0] not in self.outputs:
                alias[node.outputs[0]] = inputs[0]
            else:
                kept.append(dataclasses.replace(node, inputs=inputs))
        self.nodes = kept

    def evaluate_constants(self) -> None:
        """Nodes that take constants only."""
        kept: list[Node] = []
        for node in self.nodes:
            known = all(not name or self.array(name) is not None for name in node.inputs)
            if not known or node.op in _KEPT or self.outputs.intersection(node.outputs) or not self._evaluated(node):
                kept.append(node)
        self.nodes = kept

    def _evaluated(self, node: Node) -> bool:
        sizes = [math.prod(t.shape) for name in node.inputs if (t := self.tensor(name)) is not None]
        if sum(sizes) > MAX_FOLDED:
            return False
        alone = Graph((), tuple(Value(name, "", ()) for name in node.outputs if name), (node,), (), self.constants)
        weights = {name: as_value(self.tensors[name]) for name in node.inputs if name in self.tensors}
        try:
            results, _ = run(alone, {}, {}, weights, guard=Guard(MAX_FOLDED, MAX_WORK))
        except UnsupportedError:  # it costs too much, or has no meaning for constants
            return False
        if any(r.size > MAX_FOLDED or of_storage(element_name(r.dtype)) is None for r in results.values()):
            return False
        self.constants.update((name, plain_tensor(array)) for name, array in results.items())
        return True

    def settle_shapes(self) -> None:
        """Reshape by a shape that depends only on the shapes of the inputs."""
        computed = [n for n in self.nodes if n.op == "Reshape" and len(n.inputs) > 1]
        for i, node in enumerate(self.nodes):
            shape = self.array(node.inputs[1]) if node in computed else None
            if shape is not None:
                self.nodes[i] = _reshaped(node, [int(n) for n in shape])
        if all(self.array(node.inputs[1]) is not None for node in computed):
            return
        weights = {name: as_value(t) for name in self.source.weights() if (t := self.tensors.get(name)) is not None}
        known = inferred_shapes(
            dataclasses.replace(self.source, nodes=tuple(self.nodes), constants=self.constants), weights
        )
        for i, node in enumerate(self.nodes):
            after = known.get(node.outputs[0], (UNKNOWN,)) if node.op == "Reshape" and len(node.inputs) > 1 else ()
            before = known.get(node.inputs[0], ()) if after else ()
            free = [place for place, n in enumerate(after) if isinstance(n, str) or n == UNKNOWN]
            kept = [
                place
                for place in free
                if place < len(before) and isinstance(after[place], str) and before[place] == after[place]
            ]
            if after and len(free) - len(kept) <= 1:
                wanted = [0 if p in kept else -1 if p in free else int(n) for p, n in enumerate(after)]
                self.nodes[i] = _reshaped(node, wanted)

    def join_biases(self) -> None:
        """A product with a constant matrix, and a vector added to it."""
        uses = self.uses()
        for i, node in enumerate(self.nodes):
            weight = self.array(node.inputs[1]) if node.op == "MatMul" else None
            if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f":
                name = self.constant(node.inputs[1] + ".T", np.ascontiguousarray(weight.T))
                self.nodes[i] = dataclasses.replace(node, op="Linear", inputs=(node.inputs[0], name))
        makers = {node.outputs[0]: i for i, node in enumerate(self.nodes)}
        gone: set[int] = set()
        for i, node in enumerate(self.nodes):
            layer, bias = self._bias_of(node, makers, uses)
            if layer is None:
                continue
            product = self.nodes[layer]
            self.nodes[i] = Node(
                product.op, (*product.inputs, bias), node.outputs, product.attrs, product.name or node.name
            )
            gone.add(layer)
        self.nodes = [node for i, node in enumerate(self.nodes) if i not in gone]

    def _bias_of(self, node: Node, makers: Mapping[str, int], uses: Counter[str]) -> tuple[int | None, str]:
        if node.op != "Add":
            return None, ""
        for value, other in (node.inputs, node.inputs[::-1]):
            bias, layer = self.array(other), makers.get(value)
            if bias is None or layer is None or uses[value] != 1 or self.nodes[layer].op != "Linear":
                continue
            weight = self.tensor(self.nodes[layer].inputs[1])
            if len(self.nodes[layer].inputs) == 2 and weight is not None and bias.shape == weight.shape[:1]:
                return layer, other
        return None, ""

    def fold_batch_norms(self) -> None:
        """Batch norms whose input is the result of one layer, which nothing else takes."""
        uses, makers = self.uses(), {node.outputs[0]: i for i, node in enumerate(self.nodes)}
        gone: set[int] = set()
        for i, node in enumerate(self.nodes):
            layer = makers.get(node.inputs[0]) if node.op == "BatchNormalization" else None
            if layer is None or uses[node.inputs[0]] != 1:
                continue
            normalised = self._normalised(self.nodes[layer], node)
            if normalised is not None:
                self.nodes[i] = normalised
                gone.add(layer)
        self.nodes = [node for i, node in enumerate(self.nodes) if i not in gone]

    def _normalised(self, layer: Node, norm: Node) -> Node | None:
        if layer.op not in _LAYERS or (layer.op == "Gemm" and not _is_linear(layer)):
            return None
        weight, stored = self.array(layer.inputs[1]), self.tensor(layer.inputs[1])
        bias = self.array(layer.inputs[2]) if layer.inputs[2:3] else np.zeros(1, np.float32)
        params = [self.array(name) for name in norm.inputs[1:5]]
        if stored is None or bias is None or any(p is None for p in params):
            return None
        scale, shift, mean, variance = (np.asarray(p, np.float64) for p in params)
        factor = scale / np.sqrt(variance + float(norm.attrs.get("epsilon", 1e-5)))  # type: ignore[arg-type]
        if weight is None:
            folded = scaled(stored, factor)
        elif weight.dtype.kind == "f":
            shape = (-1, *[1] * (weight.ndim - 1))
            folded = plain_tensor((weight * factor.reshape(shape)).astype(np.float32))  # [M, ...]
        else:
            folded = None
        if folded is None:
            return None
        moved = (bias.astype(np.float64) - mean) * factor + shift
        names = (
            self.keep(layer.inputs[1] + ".folded", folded),
            self.constant(layer.inputs[1] + ".bias", moved.astype(np.float32)),
        )
        return Node(layer.op, (layer.inputs[0], *names), norm.outputs, layer.attrs, layer.name or norm.name)


def _is_linear(node: Node) -> bool:
    """Whether a Gemm is x @ weight.T + bias."""
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return all(node.attrs.get(key, 0 if key.startswith("trans") else 1.0) == value for key, value in wanted.items())


def _reshaped(node: Node, shape: list[int]) -> Node:
    attrs = {key: value for key, value in node.attrs.items() if key == "allowzero"}
    return dataclasses.replace(node, inputs=node.inputs[:1], attrs={**attrs, "shape": shape})
