"""An OpenVINO network as a graph of ours: layers as rows of the table of ops, constants as tensors.

Values keep the names of their layers; a layer with several outputs adds the port. Converts between floats, and between
integers, have no number to change, since values are float32 and int64 here. Constants that a row takes as attributes
become such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.consumed import Consumed
from qdeploy.formats.openvino.constants import Constant, Weights
from qdeploy.formats.openvino.document import Layer, Port
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.tensor import Buffer, QTensor, plain
from qdeploy.ir.tensor import Shape as Extents

_STATIC = 4096
"""Constants up to this many elements can become attributes."""
_HARMLESS = {"output_type": (), **dict.fromkeys(("allow_axis_skip", "no_clamp", "use_rounding"), ("false",))}
"""Settings of operators that change no number, with these values, or with any (which integers hold a shape)."""
_INTEGER = re.compile(r"([iu])(\d+)")
_OPERATION_SET = re.compile(r"opset\d+|")
ELEMENTS = {
    "i64": "I64",
    "i32": "I64",
    "i16": "I64",
    "i8": "I64",
    "u8": "I64",
    "u16": "I64",
    "u32": "I64",
    "u64": "I64",
    "f16": "F32",
    "bf16": "F32",
    "f32": "F32",
    "f64": "F32",
    "boolean": "BOOL",
}
"""The element type of values in the graph, by OpenVINO's."""


class Network:
    """A network that is being translated.

    Attributes:
        file: Its name, for errors.
        layers: In an order in which they can run.
        constants: By the number of their layer.
        weights: Which ports are tensors.
        nodes: Of the graph.
        own: Constants of the graph.
    """

    def __init__(self, file: str, layers: Sequence[Layer], constants: Mapping[int, Constant], weights: Weights) -> None:
        self.file, self.layers, self.constants, self.weights = file, layers, constants, weights
        self.by_number = {layer.number: layer for layer in layers}
        self.nodes: list[Node] = []
        self.own: dict[str, QTensor] = {}
        self._names: dict[Port, str] = dict(weights.names)
        self._outputs: set[str] = set()

    # ---- what importers of operators ask for

    def where(self, layer: Layer) -> str:
        """A layer as errors name it."""
        return f"{self.file}: {layer.name}"

    def name(self, port: Port) -> str:
        """What the values of a port are called."""
        if port not in self._names:
            layer = self.by_number[port[0]]
            self._names[port] = layer.name if len(layer.outputs) < 2 else f"{layer.name}.{port[1]}"
        return self._names[port]

    def inputs(self, layer: Layer) -> list[str]:
        """The names of a layer's inputs."""
        return [self.name(port) for port in layer.inputs]

    def alias(self, layer: Layer, port: Port) -> None:
        """Lets a layer's values be those of another."""
        self._names[layer.result] = self.name(port)

    def add(self, layer: Layer, op: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Adds a node; without a name it gives the values of the layer."""
        output = output or self.name(layer.result)
        self.nodes.append(Node(op, tuple(inputs), (output,), attrs, output))
        return output

    def fresh(self, layer: Layer, part: str) -> str:
        """A name for what a layer computes on its way."""
        return f"{layer.name}/{part}"

    def array(self, name: str, values: Any, dtype: str) -> str:
        """Adds numbers as a constant of the graph."""
        table = {"F32": "f32", "I64": "int64"}[dtype]
        self.own[name] = plain(Buffer.of("data", values, dtype), table)
        return name

    def shape(self, port: Port) -> Extents:
        """The extents of a port, -1 where one is free."""
        return self.by_number[port[0]].outputs[port[1]].shape

    def rank(self, port: Port) -> int:
        """How many axes the values of a port have."""
        return len(self.shape(port))

    def element(self, port: Port) -> str:
        """The element type of a port in the graph."""
        precision = self.by_number[port[0]].outputs[port[1]].precision.lower()
        kind = {"fp16": "f16", "fp32": "f32", "fp64": "f64", "bool": "boolean"}.get(precision, precision)
        if kind not in ELEMENTS:
            raise UnsupportedError(
                "values of this element type are not read", where=self.where(self.by_number[port[0]]), found=kind
            )
        return ELEMENTS[kind]

    def holds(self, port: Port, kind: str) -> bool:
        """Whether integers of a kind ("u8") hold every value that a port may have."""
        precision = self.by_number[port[0]].outputs[port[1]].precision.lower()
        kinds = {"bool": "u1", "boolean": "u1"}
        own, wanted = (_INTEGER.fullmatch(kinds.get(name, name)) for name in (precision, kind))
        if own is None or wanted is None or (own[1] == "i" and wanted[1] == "u"):
            return False
        return int(own[2]) + (own[1] != wanted[1]) <= int(wanted[2])

    def is_constant(self, port: Port) -> bool:
        """Whether the values of a port are stored integers or floats, and few."""
        constant = self.constants.get(port[0])
        return constant is not None and constant.stored.dtype.bits >= 8 and constant.stored.count <= _STATIC

    def static(self, layer: Layer, place: int) -> list[int]:
        """A constant list of integers.

        Raises:
            UnsupportedError: It is computed by the network.
        """
        if place >= len(layer.inputs) or not self.is_constant(layer.inputs[place]):
            raise UnsupportedError(
                "an operand that must be a constant is computed", where=self.where(layer), found=f"input {place}"
            )
        stored = self.constants[layer.inputs[place][0]].stored
        return [int(n) for n in stored.array().reshape(-1)]

    def integers(self, layer: Layer, place: int, default: int | None = None) -> int:
        """A constant integer."""
        if place >= len(layer.inputs) and default is not None:
            return default
        values = self.static(layer, place)
        if len(values) != 1:
            raise BadFileError("an operand is not one number", where=self.where(layer), found=values[:8])
        return values[0]

    # ---- the graph

    def graph(self) -> Graph:
        """The whole graph.

        Raises:
            UnsupportedError: An operator has no row here; it is named.
            BadFileError: An operator contradicts its operands.
        """
        from qdeploy.formats.openvino.operators import OPERATORS

        if not any(layer.kind == "Result" for layer in self.layers):
            raise BadFileError("a network without outputs", where=self.file, found="no layer of type Result")
        inputs, outputs = [], []
        needed = self._leading_to_results()
        self._name_outputs(needed)
        for layer in self.layers:
            if layer.kind == "Parameter":
                inputs.append(self._value(layer.result))
            elif layer.kind == "Result":
                outputs.append(self._output(layer))
            elif layer.kind != "Const" and layer.number in needed:
                self._translate(layer, OPERATORS)
        used = self._needed(outputs)
        graph = Graph(tuple(inputs), tuple(outputs), used, (), self._taken(used), {"kind": "network"})
        check_graph(graph, list(self.weights.tensors))
        return graph

    def _leading_to_results(self) -> set[int]:
        """Layers whose values an output depends on, and that are not part of a tensor."""
        needed: set[int] = set()
        stack = [port for layer in self.layers if layer.kind == "Result" for port in layer.inputs]
        while stack:
            port = stack.pop()
            if port not in self.weights.names and port[0] not in needed:
                needed.add(port[0])
                stack.extend(self.by_number[port[0]].inputs)
        return needed

    def _translate(self, layer: Layer, table: Mapping[str, Any]) -> None:
        if layer.kind not in table or not _OPERATION_SET.fullmatch(layer.version):
            raise UnsupportedError(
                "an operator that is not read",
                where=self.where(layer),
                found=f"{layer.kind} ({layer.version})",
                allowed=", ".join(sorted(table)),
                todo="Convert its tensors with --to ir.",
            )
        settings = Consumed(layer.data)
        try:
            table[layer.kind](self, replace(layer, data=settings))
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:  # attributes or operands are missing
            raise BadFileError(
                f"an operator does not fit its kind: {error}", where=self.where(layer), found=layer.kind
            ) from error
        settings.refuse_rest(_HARMLESS, f"{self.where(layer)} ({layer.kind})")

    def _value(self, port: Port) -> Value:
        layer = self.by_number[port[0]]
        name = (*layer.outputs[port[1]].names, layer.name)[0]
        self._names[port] = name
        axes = tuple(n if n >= 0 else f"{name}.{i}" for i, n in enumerate(self.shape(port)))
        return Value(name, self.element(port), axes)

    def _name_outputs(self, needed: set[int]) -> None:
        """Values that are outputs have the names of these, where no layer has it."""
        layers = {layer.name for layer in self.layers}
        for layer in self.layers:
            port = layer.inputs[0] if layer.kind == "Result" else (-1, -1)
            names = self.by_number[port[0]].outputs[port[1]].names if port[0] in needed else ()
            if names and names[0] not in layers and self.by_number[port[0]].kind != "Parameter":
                self._names.setdefault(port, names[0])

    def _output(self, layer: Layer) -> Value:
        """An output is what a node gives, once: an input, a weight or another output passes through one more."""
        port = layer.inputs[0]
        name = self.name(port)
        if name in self._outputs or not any(name in node.outputs for node in self.nodes):
            name = self.add(layer, "Identity", [name], layer.name)
        self._outputs.add(name)
        axes = tuple(n if n >= 0 else f"{name}.{i}" for i, n in enumerate(self.shape(port)))
        return Value(name, self.element(port), axes)

    def _needed(self, outputs: Sequence[Value]) -> tuple[Node, ...]:
        """The nodes that lead to an output: those that only computed attributes are gone."""
        needed, kept = {value.name for value in outputs}, []
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        return tuple(reversed(kept))

    def _taken(self, nodes: Sequence[Node]) -> dict[str, QTensor]:
        names = {name for node in nodes for name in node.inputs}
        return {name: tensor for name, tensor in self.own.items() if name in names}
