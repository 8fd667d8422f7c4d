"""An ML program as a graph of ours: operations as rows of the table of ops, constants as tensors.

Values keep their names. Parameters that a row takes as attributes are read from their constants; casts between floats
have no number to change, since values are float32 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.consumed import Consumed
from qdeploy.formats.coreml.constants import CONSTEXPR, Values
from qdeploy.formats.coreml.program import Constant, Function, Operation, Type
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.tensor import Buffer, QTensor, plain

FLOATS = ("f16", "bf16", "f32", "f64")
_ELEMENTS = {"bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64"}
_HARMLESS: Mapping[str, tuple[Any, ...]] = {"name": (), "validate_indices": (), "dtype": (), "num_splits": ()}
"""Parameters that change no number, or say again what the outputs say."""


class Network:
    """A program that is being translated.

    Attributes:
        file: Its name, for errors.
        function: What the file says.
        values: Stored values.
        nodes: Of the graph.
        own: Constants of the graph.
    """

    def __init__(self, file: str, function: Function, values: Values) -> None:
        self.file, self.function, self.values = file, function, values
        self.types: dict[str, Type] = dict(function.inputs)
        for operation in function.operations:
            self.types.update(operation.outputs)
        self.nodes: list[Node] = []
        self.own: dict[str, QTensor] = {}
        self._alias: dict[str, str] = {}

    # ---- what importers of operators ask for

    def where(self, operation: Operation) -> str:
        """An operation as errors name it."""
        return f"{self.file}: {operation.name}"

    def name(self, operation: Operation, key: str, place: int = 0) -> str:
        """The name of a value that an operation takes; constants that stand in it become constants of the graph."""
        values = operation.inputs.get(key, ())
        if place >= len(values):
            raise BadFileError("an operand is missing", where=self.where(operation), found=key)
        value = values[place]
        if isinstance(value, str):
            return self._alias.get(value, value)
        name = f"{operation.name}/{key}"
        self.own[name] = self.values.open(value, name).tensor("coreml")
        return name

    def names(self, operation: Operation, key: str) -> list[str]:
        """The names of all values of a parameter."""
        return [self.name(operation, key, place) for place in range(len(operation.inputs.get(key, ())))]

    def type(self, operation: Operation, key: str) -> Type:
        """The type of a value that an operation takes."""
        value = operation.inputs[key][0]
        return value.type if isinstance(value, Constant) else self.types[value]

    def listed(self, operation: Operation, key: str) -> list[int]:
        """A parameter that is a list of stored integers; empty where it is absent."""
        return [int(n) for n in self.values.listed(operation, key)] if operation.inputs.get(key) else []

    def number(self, operation: Operation, key: str, default: float) -> float:
        """A parameter that is one stored number."""
        return self.values.listed(operation, key)[0] if operation.inputs.get(key) else default

    def text(self, operation: Operation, key: str, default: str = "") -> str:
        """A parameter that is a stored text."""
        value = operation.inputs.get(key, ("",))[0]
        constant = self.values.constants.get(value) if isinstance(value, str) else value
        return constant.texts[0] if constant is not None and constant.texts else default

    def add(self, operation: Operation, op: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Adds a node; without a name it gives the first output of the operation."""
        output = output or operation.name
        self.nodes.append(Node(op, tuple(inputs), (output,), attrs, output))
        return output

    def fresh(self, operation: Operation, part: str) -> str:
        """A name for what an operation computes on its way."""
        return f"{operation.name}/{part}"

    def alias(self, operation: Operation, name: str) -> None:
        """Lets an operation's value be another."""
        self._alias[operation.name] = name

    def scalar(self, operation: Operation, part: str, value: float) -> str:
        """Adds a float as a constant of the graph."""
        name = self.fresh(operation, part)
        self.own[name] = plain(Buffer.of("data", np.array([value], np.float32), "F32"), "f32")
        return name

    def integers(self, operation: Operation, key: str) -> str:
        """Adds a parameter that is a list of stored integers as I64, as ONNX takes shapes and counts."""
        name = self.fresh(operation, key)
        numbers = np.array(self.listed(operation, key), np.int64)
        self.own[name] = plain(Buffer.of("data", numbers, "I64"), "int64")
        return name

    # ---- the graph

    def graph(self) -> Graph:
        """The whole graph.

        Raises:
            UnsupportedError: An operation has no row here; it is named.
            BadFileError: An operation contradicts its operands.
        """
        from qdeploy.formats.coreml.operators import OPERATORS

        for operation in self.function.operations:
            if operation.kind != "const" and not operation.kind.startswith(CONSTEXPR):
                self._translate(operation, OPERATORS)
        inputs = tuple(self._value(name) for name, _ in self.function.inputs)
        outputs = tuple(self._output(name) for name in self.function.outputs)
        graph = Graph(inputs, outputs, tuple(self.nodes), (), self.own, {"kind": "network"})
        check_graph(graph, list(self.values.tensors))
        return graph

    def _translate(self, operation: Operation, table: Mapping[str, Any]) -> None:
        if operation.kind not in table or operation.has_blocks:
            raise UnsupportedError(
                "an operator that is not read",
                where=self.where(operation),
                found=operation.kind,
                allowed=", ".join(sorted(table)),
                todo="Convert its tensors with --to ir.",
            )
        parameters = Consumed(operation.inputs)
        try:
            table[operation.kind](self, replace(operation, inputs=parameters))
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:  # parameters are missing
            raise BadFileError(
                f"an operator does not fit its kind: {error}", where=self.where(operation), found=operation.kind
            ) from error
        parameters.refuse_rest(_HARMLESS, f"{self.where(operation)} ({operation.kind})")

    def element(self, kind: Type, where: str) -> str:
        """The element type of a value in the graph."""
        if kind.element in FLOATS:
            return "F32"
        if kind.element not in _ELEMENTS:
            raise UnsupportedError("values of this element type are not read", where=where, found=kind.element)
        return _ELEMENTS[kind.element]

    def _value(self, name: str) -> Value:
        kind = self.types[name]
        axes = tuple(n if n >= 0 else f"{name}.{i}" for i, n in enumerate(kind.shape))
        return Value(name, self.element(kind, f"{self.file}: {name}"), axes)

    def _output(self, name: str) -> Value:
        if name not in self.types:
            raise BadFileError("an output that nothing gives", where=self.file, found=name)
        value = self._value(name)
        if not any(name in node.outputs for node in self.nodes):
            source = self._alias.get(name, name)
            output = name if source != name else f"{name}/output"
            self.nodes.append(Node("Identity", (source,), (output,), {}, output))
            return Value(output, value.dtype, value.shape)
        return value
