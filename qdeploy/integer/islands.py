"""Layers in 8 bits, and everything else in floats: what a runtime of kernels for 8-bit codes is fastest with.

Convolutions and matrix products take codes of 8 bits with one scale, weights have one scale per output. A value that
such a layer takes goes through QuantizeLinear and DequantizeLinear; so does one that stays among layers of images
(limits, pooling, sums, joins), so that whole chains run on codes. Softmax, norms, functions of elements and all
operators without an integer form are islands: they compute in float32, and no node stands around them but the pair at
the border. The network's meaning is that of these nodes, and the interpreter computes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Attr, Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Term
from qdeploy.ir.views import Floats, view
from qdeploy.passes.fold import fold, plain_tensor

META = "islands"
"""Where the meta of a graph says how many nodes of each op stayed float."""
CHAINED = frozenset(
    {"Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose"}
)
"""Ops that kernels compute on codes, where an image of codes comes in and goes out."""
_LAYERS = frozenset({"Conv", "Linear"})
_OUTPUTS, _SUMMED = 32, 256
"""Convolutions of less are as fast in float32: the kernels for codes gain less than the pairs at their borders cost."""
_MOST = 127
_TRANSFORMER = frozenset({"Attention", "LayerNormalization", "RMSNormalization"})


def needs_islands(graph: Graph, forms: Collection[str]) -> bool:
    """Whether a folded network has ops without an integer form, or some whose integer form is the slower one."""
    ops = {node.op for node in graph.nodes}
    return not ops <= set(forms) or not ops.isdisjoint(_TRANSFORMER)


def with_islands(model: Model, ranges: Mapping[str, tuple[float, float]]) -> Model:
    """Returns the network with its layers in 8 bits and everything else in floats.

    Args:
        model: A float network without states.
        ranges: Of the values of its folded graph (`calibrate(...).values`).

    Raises:
        UnsupportedError: Nothing would be in integers.
    """
    graph = fold(model.graph, model.tensors)
    build = _Islands(graph, model.tensors, ranges)
    build.run()
    if not build.layers:
        raise UnsupportedError(
            "no layer of this network is faster in integers, so that nothing would change",
            where=model.path,
            found=", ".join(f"{op} ({count})" for op, count in build.floats.most_common()),
            todo="--quantize rtn:int8 makes the file smaller at the same speed.",
        )
    meta: dict[str, Attr] = {**graph.meta, "kind": "network", "opset": 21, META: dict(build.floats)}
    meta["texts"] = graph.meta.get("kind") == "encoder"
    taken = {name for node in build.nodes for name in node.inputs}
    constants = {name: tensor for name, tensor in {**graph.constants, **build.constants}.items() if name in taken}
    tensors = {name: model.tensors[name] for name in model.tensors if name in taken} | build.weights
    finished = Graph(graph.inputs, graph.outputs, tuple(build.nodes), (), constants, meta)
    listed = ", ".join(f"{op} ({count})" for op, count in build.floats.most_common())
    note = f"{build.layers} layers in 8 bits; in float32: {listed or 'nothing'}"
    return Model(
        model.format,
        model.path,
        tensors,
        model.config,
        model.dialect,
        model.files,
        build_graph=lambda _: finished,
        notes=[*model.notes, note],
    )


@dataclass
class _Islands:
    """The graph that grows.

    Attributes:
        graph: The float graph, folded.
        tensors: The model's.
        ranges: Of its values.
        nodes: Of the new graph.
        constants: Of the new graph: scales and zero points.
        weights: Of the new graph, in codes.
        floats: Nodes of each op that stay float.
        layers: Nodes that are in 8 bits.
    """

    graph: Graph
    tensors: Mapping[str, QTensor]
    ranges: Mapping[str, tuple[float, float]]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, QTensor] = field(default_factory=dict)
    weights: dict[str, QTensor] = field(default_factory=dict)
    floats: Counter[str] = field(default_factory=Counter)
    layers: int = 0

    def __post_init__(self) -> None:
        self._users: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)
        self._images: set[str] = set()
        self._pairs: dict[str, str] = {}

    def run(self) -> None:
        """Adds every node, with the pairs that its inputs need."""
        for node in self.graph.nodes:
            if self._is_layer(node):
                self.layers += 1
                self._layer(node)
                if node.op == "Conv":
                    self._images.update(node.outputs)
            elif node.op in CHAINED and self._images.intersection(node.inputs):
                self._images.update(node.outputs)
                self.nodes.append(dataclasses.replace(node, inputs=tuple(map(self._chained, node.inputs))))
            else:
                self.floats[node.op] += 1
                self.nodes.append(node)

    def _is_layer(self, node: Node) -> bool:
        """Whether a layer has a float weight that is stored, and an input of known range."""
        if node.op not in _LAYERS or node.inputs[0] not in self.ranges:
            return False
        if node.op == "Conv" and not self._pays(node):
            return False
        tensors = [self._tensor(name) for name in node.inputs[1:3] if name]
        return all(tensor is not None and isinstance(view(tensor), Floats) for tensor in tensors)

    def _pays(self, node: Node) -> bool:
        """Whether a convolution is faster over codes: a dense one that sums many entries into many outputs."""
        weight = self._tensor(node.inputs[1])
        if weight is None or int(node.attrs.get("group", 1)) > 1:  # type: ignore[arg-type]
            return False
        return weight.shape[0] >= _OUTPUTS and math.prod(weight.shape[1:]) >= _SUMMED

    def _tensor(self, name: str) -> QTensor | None:
        return self.graph.constants.get(name) or self.tensors.get(name)

    def _array(self, name: str) -> Array:
        tensor = self._tensor(name)
        assert tensor is not None  # `_is_layer` has looked
        return as_value(tensor)

    # ---- values

    def _chained(self, name: str) -> str:
        """An image that goes on to a node over codes: through a pair, but between a layer and its limits."""
        users = self._users.get(name, [])
        limited = len(users) == 1 and users[0].op in ("Relu", "Clip") and name in self._images
        return name if limited or name not in self.ranges else self._rounded(name)

    def _rounded(self, name: str) -> str:
        """A value as its codes mean it."""
        if name not in self._pairs:
            scale, zero = self._grid(name)
            parts = (f"{name}/scale", f"{name}/zero")
            self.constants[parts[0]] = _scalar(np.array(scale, np.float32))
            self.constants[parts[1]] = _scalar(np.array(zero, np.uint8))
            codes, self._pairs[name] = f"{name}/codes", f"{name}/rounded"
            self.nodes.append(Node("QuantizeLinear", (name, *parts), (codes,), {}, codes))
            self.nodes.append(Node("DequantizeLinear", (codes, *parts), (self._pairs[name],), {}, f"{name}/rounded"))
        return self._pairs[name]

    def _grid(self, name: str) -> tuple[float, int]:
        """Scale and zero point: 0 lies on the grid."""
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255)) or 1.0
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))

    # ---- layers

    def _layer(self, node: Node) -> None:
        x, scale = self._rounded(node.inputs[0]), self._grid(node.inputs[0])[0]
        weight = self._array(node.inputs[1]).astype(np.float32)
        if node.op == "Linear":
            self._product(node, x, weight)
            return
        name, scales = self._coded(node.inputs[1], weight, 0)
        inputs = [x, name]
        if len(node.inputs) > 2 and node.inputs[2]:
            inputs.append(self._bias(node, self._array(node.inputs[2]).astype(np.float64), scale * scales))
        self.nodes.append(dataclasses.replace(node, inputs=tuple(inputs)))

    def _product(self, node: Node, x: str, weight: Array) -> None:
        """A Linear as MatMul and Add, which kernels take together."""
        name, _ = self._coded(node.inputs[1], np.ascontiguousarray(weight.T), 1)
        output, biased = node.outputs[0], len(node.inputs) > 2 and bool(node.inputs[2])
        product = f"{output}/product" if biased else output
        self.nodes.append(Node("MatMul", (x, name), (product,), {}, node.name))
        if biased:
            self.nodes.append(Node("Add", (product, node.inputs[2]), (output,)))

    def _coded(self, name: str, weight: Array, axis: int) -> tuple[str, Array]:
        """A weight as int8 with a scale per index of an axis: its name, and the scales in float64."""
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scales = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32) / np.float32(_MOST)
        scales[scales == 0] = 1
        coded = f"{name}/int8"
        if coded not in self.weights:
            codes = np.clip(np.rint(weight / scales), -_MOST, _MOST).astype(np.int8)
            self.weights[coded] = _scaled(codes, scales, "I8", "int8")
        return coded, scales.reshape(-1).astype(np.float64)

    def _bias(self, node: Node, bias: Array, scales: Array) -> str:
        """A bias as int32 at the scales of the sums that it is added to."""
        name, narrow = f"{node.outputs[0]}/bias", scales.astype(np.float32)
        limit = (1 << 31) - 1
        codes = np.clip(np.rint(bias / narrow), -limit, limit).astype(np.int32)
        self.weights[name] = _scaled(codes, narrow, "I32", "int32")
        return name


def _scalar(number: Array) -> QTensor:
    """A number without axes."""
    return dataclasses.replace(plain_tensor(number), shape=())


def _scaled(codes: Array, scales: Array, element: str, table: str) -> QTensor:
    """Codes with scales that are broadcast over them."""
    grid = scales.shape
    tile = tuple(n // m for n, m in zip(codes.shape, grid, strict=True))
    scale = Param(Codes(grid, (Buffer.of("scale", scales, "F32"),), PLAIN, "f32"), tile)
    data = Codes(codes.shape, (Buffer.of("codes", codes, element),), PLAIN, table, scale=scale)
    return QTensor(codes.shape, "F32", (Term(data),))
