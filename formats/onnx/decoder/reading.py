"""The walk over a network that may be a decoder.

Nodes are read in their order, from the inputs to the logits; what only says how long sequences are (masks, positions)
is no node of a decoder, and is not walked: it is run with a few lengths, and must say what a decoder means by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.errors import QdeployError
from qdeploy.formats.onnx.decoder.gates import with_gated_mlps
from qdeploy.formats.onnx.decoder.generator import decoder_meta
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Attr, Graph, Node, State, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array, Buffer, Float32, QTensor, plain

IDS, LOGITS = "input_ids", "logits"
_ATTENTION = frozenset({"GroupQueryAttention"})
"""Operators that take and give a cache."""
_UNREAD = frozenset({"MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "PagedAttention", "SparseAttention"})
"""Attention that may do so too, but is not read."""
_LENGTHS = ((5, 0), (2, 5), (1, 3))
"""New tokens and those before them, which lengths and positions are tried with."""


class ObstacleError(Exception):
    """A node that no decoder has."""

    def __init__(self, node: Node, reason: str) -> None:
        kind = node.attrs["type"] if node.op == "Opaque" else node.op
        super().__init__(f"node {node.name or node.outputs[0]} ({kind}): {reason}")


@dataclass(frozen=True)
class Heads:
    """A value seen as heads: how many, and the elements of each."""

    count: int
    size: int


def is_decoder(graph: Graph) -> bool:
    """Whether a network has attention that keeps keys and values, in an input of four axes each."""
    kept = any(len(value.shape) == 4 for value in graph.inputs)
    return kept and any(node.op == "Opaque" and node.attrs["type"] in _ATTENTION | _UNREAD for node in graph.nodes)


def as_decoder(
    graph: Graph, tensors: Mapping[str, QTensor], attributes: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]
) -> Graph:
    """The decoder that a network is.

    Args:
        graph: The network.
        tensors: The model's tensors.
        attributes: Attributes of nodes without a row, by their first output.
        config: As `generator.genai_config` gives it.

    Raises:
        ObstacleError: Something in it has no place in a decoder.
    """
    reading = Reading(graph, tensors, attributes)
    reading.walk()
    decoder = reading.decoder(config)
    try:
        check_graph(decoder, tensors)
    except QdeployError as error:
        raise ObstacleError(graph.nodes[-1], str(error)) from error
    return decoder


class Reading:
    """A decoder under construction.

    Attributes:
        graph: The network.
        tensors: The model's tensors.
        widths: Elements of the last axis of every value that was read, [B, T, width].
        heads: Those that are seen as heads, [B, T, count, size].
        constants: Tensors of the decoder's own.
        states: Caches so far.
        contexts: The most positions that each rotation has rows for.
        rotated: What stood before a rotation, the rotation, and its heads, by its result: attention does it itself,
            and only for others it is a node.
    """

    def __init__(
        self, graph: Graph, tensors: Mapping[str, QTensor], attributes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.graph, self.tensors, self._attributes = graph, tensors, attributes
        self.widths: dict[str, int] = {}
        self.heads: dict[str, Heads] = {}
        self.constants: dict[str, QTensor] = {}
        self.states: list[State] = []
        self.contexts: list[int] = []
        self.rotated: dict[str, tuple[str, dict[str, Any], int]] = {}
        self.makers = {name: node for node in graph.nodes for name in node.outputs if name}
        self.nodes: list[Node] = []
        self._alias: dict[str, str] = {}
        self._transposed: dict[str, str] = {}

    def walk(self) -> None:
        """Reads every node that the logits need; raises ObstacleError."""
        from qdeploy.formats.onnx.decoder.rows import READERS

        nodes = self._needed()
        unread = next((node for node in nodes if self.kind(node) in _UNREAD), None)
        if unread is not None:
            raise ObstacleError(unread, "only GroupQueryAttention is read with its caches")
        for node in nodes:
            reader = READERS.get(self.kind(node))
            if reader is None:
                raise ObstacleError(node, "decoders have no such operator")
            try:
                reader(self, node)
            except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:  # of other types, or absent
                raise ObstacleError(node, f"its inputs or attributes do not fit: {error!r}") from error

    def decoder(self, config: Mapping[str, Any]) -> Graph:
        """The finished graph."""
        logits = self._logits
        result = self.name(logits.name)
        if result not in self.widths:
            raise ObstacleError(self.graph.nodes[-1], f"the output {logits.name} is none of its values")
        if result != logits.name:
            self.nodes.append(Node("Identity", (result,), (logits.name,)))
        context = min(self.contexts, default=0)
        meta = decoder_meta(config, self.widths[result], context)
        states = tuple(replace(state, capacity=int(meta["context"])) for state in self.states)  # type: ignore[arg-type]
        inputs = (Value(IDS, "I64", ("batch", "sequence")),)
        outputs = (Value(logits.name, "F32", ("batch", "sequence", self.widths[result])),)
        nodes = with_gated_mlps(tuple(self.nodes), {v.name for v in outputs})
        return Graph(inputs, outputs, nodes, states, self.constants, meta)

    # ---- what readers ask for

    @staticmethod
    def kind(node: Node) -> str:
        """The operator of a node."""
        return str(node.attrs["type"]) if node.op == "Opaque" else node.op

    def attributes(self, node: Node) -> Mapping[str, Any]:
        """Attributes of a node, with a row or without."""
        return self._attributes[_first(node.outputs)] if node.op == "Opaque" else node.attrs

    def name(self, name: str) -> str:
        """What a name stands for."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def alias(self, name: str, of: str) -> None:
        """Lets a name stand for another value, or for a tensor."""
        self._alias[name] = self.name(of)

    def tensor(self, name: str) -> QTensor | None:
        """A tensor of the model, or a constant of the graph; None for a computed value."""
        name = self.name(name)
        return self.tensors.get(name) or self.graph.constants.get(name) or self.constants.get(name)

    def floats(self, name: str) -> Float32 | None:
        """A tensor of floats as an array, or a number that a node says."""
        tensor, maker = self.tensor(name), self.makers.get(self.name(name))
        if tensor is None and maker is not None and maker.op == "Constant" and "value_float" in maker.attrs:
            return np.array(maker.attrs["value_float"], np.float32)
        return None if tensor is None else np.asarray(as_value(tensor), np.float32)

    def integers(self, name: str) -> list[int] | None:
        """A tensor of integers as a list, or a number that a node says."""
        tensor, maker = self.tensor(name), self.makers.get(self.name(name))
        if tensor is None and maker is not None and maker.op == "Constant" and "value_int" in maker.attrs:
            return [int(maker.attrs["value_int"])]  # type: ignore[arg-type]
        return None if tensor is None else [int(n) for n in as_value(tensor).reshape(-1)]

    def width(self, name: str, node: Node) -> int:
        """Elements of a computed value; ObstacleError where it is none."""
        name = self.name(name)
        if name not in self.widths:
            raise ObstacleError(node, f"its input {name} is no value of every token")
        return self.widths[name]

    def add(self, op: str, inputs: Iterable[str], output: str, width: int, **attrs: Attr) -> str:
        """Adds a node with one output; returns that."""
        names = [self.name(name) for name in inputs]
        for name in names if op != "Attention" else ():
            self._rotate(name)
        for name in names:
            if name in self.graph.constants and name not in self.constants:
                self.constants[name] = self.graph.constants[name]
        while not names[-1]:
            names.pop()
        self.nodes.append(Node(op, tuple(names), (output,), dict(attrs), output))
        self.widths[output] = width
        return output

    def normed(self, x: str, weight: str, heads: int, epsilon: float) -> str:
        """Adds a norm of every head of a value."""
        x, width = self.name(x), self.widths[self.name(x)]
        split = self.add("Reshape", (x,), f"{x}/heads", width // heads, shape=[0, 0, heads, width // heads])
        normal = self.add("RMSNormalization", (split, weight), f"{x}/normal", width // heads, epsilon=epsilon)
        return self.add("Reshape", (normal,), f"{x}/joined", width, shape=[0, 0, width])

    def _rotate(self, name: str) -> None:
        """Adds the rotation that a value stands for."""
        if name in self.rotated:
            x, rope, heads = self.rotated.pop(name)
            attrs: dict[str, Attr] = {"heads": heads, "rope": rope, "length_of": f"kv.{len(self.states)}"}
            self.nodes.append(Node("Rotary", (x,), (name,), attrs, name))

    def constant(self, name: str, array: Array) -> str:
        """Adds a constant of floats."""
        self.constants[name] = plain(Buffer.of("data", np.ascontiguousarray(array, np.float32), "F32"), "f32")
        return name

    def transposed(self, name: str) -> str:
        """The transpose [out, in] of a matrix that products take as [in, out]."""
        name = self.name(name)
        if name not in self._transposed:
            self._transposed[name] = f"{name}.turned"
            self.nodes.append(Node("Transpose", (name,), (f"{name}.turned",), {"perm": [1, 0]}, f"{name}.turned"))
        return self._transposed[name]

    def transposed_from(self, name: str) -> str:
        """The matrix of the model whose transpose a value is; "" for any other."""
        maker = self.makers.get(self.name(name))
        if maker is None or maker.op != "Transpose" or self.tensor(maker.inputs[0]) is None:
            return ""
        return self.name(maker.inputs[0])

    def expect(self, node: Node, name: str, meaning: Callable[[int, int], Any], what: str) -> None:
        """Raises ObstacleError unless a value is what decoders mean by it, for a few lengths of new and past tokens."""
        for new, past in _LENGTHS:
            values = self._trial(self.name(name), new, past)
            if values is None or not np.array_equal(values.reshape(-1), np.reshape(meaning(new, past), -1)):
                raise ObstacleError(node, f"its input {name} is not {what}")

    # ---- trials of lengths

    def _trial(self, name: str, new: int, past: int) -> Array | None:
        if name in self._inputs:
            return self._input(self._inputs[name], new, past)
        nodes = self._cone([name])
        if any(n.op == "Opaque" for n in nodes) or name not in self.makers:
            return None
        taken = {n for each in nodes for n in each.inputs}
        inputs = {k: self._input(v, new, past) for k, v in self._inputs.items() if k in taken}
        values = {k: as_value(self.tensors[k]) for k in taken if k in self.tensors}
        part = replace(
            self.graph,
            inputs=tuple(
                replace(v, shape=tuple(map(str, range(inputs[k].ndim)))) for k, v in self._inputs.items() if k in inputs
            ),
            outputs=(Value(name, "I64", ()),),
            nodes=tuple(nodes),
        )
        try:
            return run(part, inputs, None, values)[0][name]
        except QdeployError:
            return None

    @cached_property
    def _inputs(self) -> Mapping[str, Value]:
        return {value.name: value for value in self.graph.inputs}

    def _input(self, value: Value, new: int, past: int) -> Array:
        """Ids, a mask of ones, positions, or an empty cache of the right length."""
        kind = element_dtype(value.dtype)
        if len(value.shape) == 4:
            sizes = [axis if isinstance(axis, int) else 1 for axis in value.shape]
            return np.zeros((1, sizes[1], past, sizes[3]), kind)
        if value.name == "position_ids":
            return np.arange(past, past + new, dtype=kind)[None]
        return np.ones((1, new if value.name == IDS else past + new), kind)

    # ---- the part that is walked

    @cached_property
    def _logits(self) -> Value:
        outputs = {value.name: value for value in self.graph.outputs}
        return outputs.get(LOGITS) or self.graph.outputs[0]

    def _needed(self) -> list[Node]:
        return self._cone([self._logits.name])

    def _cone(self, names: Iterable[str]) -> list[Node]:
        """Nodes that values need, in order."""
        waiting, seen = list(names), set[int]()
        places = {id(node): place for place, node in enumerate(self.graph.nodes)}
        while waiting:
            node = self.makers.get(waiting.pop())
            if node is not None and places[id(node)] not in seen:
                seen.add(places[id(node)])
                waiting.extend(_taken(node))
        return [self.graph.nodes[place] for place in sorted(seen)]


def _taken(node: Node) -> Sequence[str]:
    """Inputs whose makers are walked: of attention only what is mixed, and not what says how long it is."""
    if node.op != "Opaque":
        return [name for name in node.inputs if name]
    kind, inputs = node.attrs["type"], node.inputs
    if kind in _ATTENTION:
        return [name for place, name in enumerate(inputs) if name and place in (0, 1, 2, 11, 14, 15)]
    return inputs[:1] if kind == "RotaryEmbedding" else [name for name in inputs if name]


def _first(names: Sequence[str]) -> str:
    return next(name for name in names if name)
