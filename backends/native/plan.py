"""A graph as nodes of the runtime: which matrices and small tensors they take, and where their values lie.

Every inner value has a slot in one arena, counted in floats per token; a slot is used again once its last reader has
run. Nodes never write where they read. `Identity` disappears; composites become the few ops of layout.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.backends.native import heads, measures, mixtures, recurrence, tables
from qdeploy.backends.native.heads import HeadView
from qdeploy.backends.native.layout import FEATURES, NONE, Activation, Feature, Op, Role, ValueKind, aligned
from qdeploy.backends.native.parts import Array
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import OBSTACLE, Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor

_ACTIVATIONS = {"silu": Activation.SILU, "gelu": Activation.GELU, "gelu_tanh": Activation.GELU_TANH}
_UNARY = {"Relu": Activation.RELU, "Tanh": Activation.TANH, "Sigmoid": Activation.SIGMOID}


@dataclass
class PlannedValue:
    """A value: its kind, floats per token (per sequence), and its slot once it has one."""

    name: str
    kind: ValueKind
    width: int
    role: Role = Role.INNER
    slot: int = 0


@dataclass(frozen=True)
class PlannedNode:
    """A node; numbers are indices into the plan's lists, NONE where there is nothing."""

    op: Op
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    matrix: int = NONE
    tensors: tuple[int, ...] = ()
    state: int = NONE
    attrs: tuple[int | float, ...] = ()

    def words(self) -> list[int]:
        """The attributes as 32-bit words: floats by their bits."""
        return [struct.unpack("<I", struct.pack("<f", a))[0] if isinstance(a, float) else int(a) for a in self.attrs]


@dataclass
class Plan:
    """The network.

    Attributes:
        matrices: Names of the tensors that are matrices, in order of first use.
        tensors: Small tensors.
        values: Values.
        nodes: In an order in which they can run.
        slot_width: Floats per token of the arena.
        value_dims: Whether heads of values have extents of their own.
        ladders: Whether a matrix has params for every level.
    """

    matrices: list[str] = field(default_factory=list)
    tensors: list[Array] = field(default_factory=list)
    values: list[PlannedValue] = field(default_factory=list)
    nodes: list[PlannedNode] = field(default_factory=list)
    slot_width: int = 0
    value_dims: bool = False
    ladders: bool = False

    @property
    def features(self) -> Feature:
        """What a reader must know of."""
        needed = Feature.ATTENTION if self.value_dims else Feature(0)
        needed |= Feature.LADDER if self.ladders else Feature(0)
        for node in self.nodes:
            needed |= FEATURES.get(node.op, Feature(0))
            needed |= Feature.HEADS if node.op == Op.POSITIONS and node.attrs else Feature(0)
            second = self.values[node.inputs[1]].width if len(node.inputs) > 1 else 0
            needed |= Feature.MEASURES if measures.measures(node, second) else Feature(0)
            needed |= Feature.ATTENTION if node.op == Op.ATTENTION and len(node.attrs) > 9 else Feature(0)
        return needed


def plan_graph(model: Model) -> Plan:
    """Plans the graph of a model; UnsupportedError names an op that the runtime does not have."""
    return Planning(model).run()


class Planning:
    """A plan under construction.

    Attributes:
        model: Whose graph it is.
        graph: That graph.
        plan: What there is so far.
        heads: Values that are seen as heads (see heads.py).
    """

    def __init__(self, model: Model) -> None:
        self.model, self.graph, self.plan = model, model.graph, Plan()
        self.plan.value_dims = any(state.value_dim for state in self.graph.states if state.kind == "kv")
        self._values: dict[str, int] = {}
        self._small: dict[str, int] = {}
        self._states = {state.name: place for place, state in enumerate(self.graph.states)}
        self._outputs = {value.name for value in self.graph.outputs}
        self._skip: set[int] = set()
        self._alias = _aliases(self.graph)
        self.heads: dict[str, HeadView] = {}
        self.makers = {name: node for node in self.graph.nodes for name in node.outputs}

    def run(self) -> Plan:
        """Plans every node; raises as `plan_graph`."""
        if self.graph.meta.get("kind") not in ("decoder", "encoder"):
            raise UnsupportedError(
                "the native runtime runs decoders and encoders",
                found=self.graph.meta.get("kind"),
                allowed="decoder, encoder",
                todo=str(self.graph.meta.get(OBSTACLE, "")),
            )
        for value in self.graph.inputs:
            self._values[value.name] = len(self.plan.values)
            self.plan.values.append(PlannedValue(value.name, ValueKind.IDS, 1, Role.INPUT))
        nodes = self.graph.nodes
        for place, node in enumerate(nodes):
            if place not in self._skip:
                self._node(node, nodes[place + 1 : place + 3], place)
        missing = self._outputs - set(self._values)
        if missing:
            raise UnsupportedError("an output that no node makes", found=", ".join(sorted(missing)))
        _place(self.plan, self.graph.meta.get("kind") != "encoder")
        return self.plan

    def _node(self, node: Node, following: tuple[Node, ...], place: int) -> None:
        if node.op in _SILENT or _is_alias(node):
            return
        if node.op == "Slice" and [n.op for n in following[:1]] == ["Squeeze"] and _is_first(node):
            source = self.source(node.inputs[0])
            self.emit(Op.FIRST, (source,), following[0].outputs[0], self.width(source), ValueKind.PER_SEQUENCE)
            self._skip.add(place + 1)
        elif node.op in _OPS:
            _OPS[node.op](self, node)
        else:
            raise UnsupportedError("an op that the native runtime does not have", where=node.name, found=node.op)

    # ---- names

    def source(self, name: str) -> int:
        """The value that a name stands for; UnsupportedError where none does."""
        name = self._alias.get(name, name)
        if name not in self._values:
            raise UnsupportedError("a value that no node has made", found=name)
        return self._values[name]

    def rename(self, name: str, value: int) -> None:
        """A further name of a value."""
        self._values[name] = value

    def is_computed(self, name: str) -> bool:
        """Whether a name stands for a value."""
        return self._alias.get(name, name) in self._values

    def width(self, value: int) -> int:
        """Floats of a value per token."""
        return self.plan.values[value].width

    def new_value(self, name: str, width: int, kind: ValueKind = ValueKind.PER_TOKEN) -> int:
        """A value under a name."""
        name = self._alias.get(name, name)
        role = Role.OUTPUT if name in self._outputs else Role.INNER
        self._values[name] = len(self.plan.values)
        self.plan.values.append(PlannedValue(name, kind, width, role))
        return self._values[name]

    def tensor_of(self, name: str) -> QTensor:
        """A constant, or a tensor of the model."""
        return self.graph.constants[name] if name in self.graph.constants else self.model.tensors[name]

    def matrix(self, name: str) -> int:
        """The number of a matrix."""
        if len(self.model.tensors[name].shape) != 2:
            raise UnsupportedError("a weight that is not a matrix", where=name, found=self.model.tensors[name].shape)
        if name not in self.plan.matrices:
            self.plan.matrices.append(name)
        return self.plan.matrices.index(name)

    def rows(self, name: str) -> int:
        """Rows of a matrix."""
        return self.model.tensors[name].shape[0]

    def tensor(self, name: str) -> int:
        """The number of a small tensor."""
        if name not in self._small:
            self._small[name] = len(self.plan.tensors)
            values = self.tensor_of(name).decode().reshape(-1)
            self.plan.tensors.append(np.ascontiguousarray(values, np.float32))
        return self._small[name]

    def _number(self, name: str) -> int:
        """The number of a small tensor, which may be one float that a node says."""
        maker = self.makers.get(name)
        if maker is None or maker.op != "Constant" or "value_float" not in maker.attrs:
            return self.tensor(name)
        return self.new_tensor(name, np.array([maker.attrs["value_float"]], np.float32))

    def new_tensor(self, name: str, values: Array) -> int:
        """The number of a small tensor that is made here."""
        if name not in self._small:
            self._small[name] = len(self.plan.tensors)
            self.plan.tensors.append(np.ascontiguousarray(values, np.float32).reshape(-1))
        return self._small[name]

    def keeping(
        self,
        op: Op,
        inputs: tuple[int, ...],
        node: Node,
        width: int,
        tensors: tuple[int, ...],
        attrs: tuple[int | float, ...],
    ) -> None:
        """Adds a node that keeps the state of a graph's node."""
        value, state = self.new_value(node.outputs[0], width), self._states[str(node.attrs["state"])]
        self.plan.nodes.append(PlannedNode(op, inputs, (value,), NONE, tensors, state, attrs))

    def emit(
        self,
        op: Op,
        inputs: tuple[int, ...],
        output: str,
        width: int,
        kind: ValueKind = ValueKind.PER_TOKEN,
        matrix: int = NONE,
        tensors: tuple[int, ...] = (),
        attrs: tuple[int | float, ...] = (),
    ) -> int:
        """Adds a node with one output, and returns that."""
        value = self.new_value(output, width, kind)
        self.plan.nodes.append(PlannedNode(op, inputs, (value,), matrix, tensors, NONE, attrs))
        return value

    # ---- ops

    def _linear(self, node: Node) -> None:
        x, weight, *bias = node.inputs
        tensors = tuple(self.tensor(b) for b in bias if b)
        self.emit(
            Op.LINEAR,
            (self.source(x),),
            node.outputs[0],
            self.rows(weight),
            self.plan.values[self.source(x)].kind,
            matrix=self.matrix(weight),
            tensors=tensors,
        )

    def _norm(self, node: Node) -> None:
        if node.inputs[0] in self.heads:
            heads.norm(self, node)
            return
        x, *parameters = node.inputs
        source, epsilon = self.source(x), float(node.attrs["epsilon"])  # type: ignore[arg-type]
        rms = node.op == "RMSNormalization"
        self.emit(
            Op.RMS_NORM if rms else Op.LAYER_NORM,
            (source,),
            node.outputs[0],
            self.width(source),
            self.plan.values[source].kind,
            tensors=tuple(self.tensor(p) for p in parameters if p),
            attrs=(epsilon, 0) if rms else (epsilon,),
        )

    def _skip_norm(self, node: Node) -> None:
        x, skip, *parameters = node.inputs
        inputs, rms = (self.source(x), self.source(skip)), node.attrs["kind"] == "rms"
        width, epsilon = self.width(inputs[0]), float(node.attrs["epsilon"])  # type: ignore[arg-type]
        outputs = [self.new_value(node.outputs[0], width)]
        if len(node.outputs) > 1 and node.outputs[1]:
            outputs.append(self.new_value(node.outputs[1], width))
        tensors = tuple(self.tensor(p) for p in parameters if p)
        self.plan.nodes.append(
            PlannedNode(
                Op.SKIP_RMS_NORM if rms else Op.SKIP_LAYER_NORM,
                inputs,
                tuple(outputs),
                NONE,
                tensors,
                NONE,
                (epsilon, 0) if rms else (epsilon,),
            )
        )

    def _attention(self, node: Node) -> None:
        a: Mapping[str, Any] = node.attrs
        inputs = tuple(self.source(name) for name in node.inputs[:4] if name)
        if len(node.inputs) > 5:
            raise UnsupportedError("attention with biases of distances", where=node.name)
        heads, kv_heads, width = int(a["heads"]), int(a["kv_heads"]), self.width(inputs[0])
        rope = a.get("rope")
        tensors, rotation = (), (0, 0, 1.0)
        if isinstance(rope, dict):
            tensors = (self.tensor(str(rope["inv_freq"])),)  # type: ignore[assignment]
            rotation = (int(rope["rotary_dim"]), int(bool(rope["interleaved"])), float(rope["factor"]))
        state = self._states[str(a["state"])] if a.get("state") else NONE
        causal, window = int(bool(a.get("causal"))), int(a.get("window") or 0)
        attrs = (heads, kv_heads, width // heads, float(a["scale"]), causal, window, *rotation, *self._kind(node))
        value = self.new_value(node.outputs[0], heads * self.width(inputs[2]) // kv_heads)
        self.plan.nodes.append(PlannedNode(Op.ATTENTION, inputs, (value,), NONE, tensors, state, attrs))

    def _kind(self, node: Node) -> tuple[int | float, ...]:
        """What stands behind the attributes of plain attention, where there is anything."""
        a: Mapping[str, Any] = node.attrs
        sinks = node.inputs[4] if len(node.inputs) > 4 else ""
        scale, rope = a.get("position_scale"), a.get("rope") or {}
        long = rope.get("long") or {}
        if not (sinks or scale or long or a.get("softcap") or a.get("chunk")):
            return ()
        place = [float(scale.get(key, 0.0)) for key in ("beta", "length", "offset")] if scale else [0.0, 1.0, 0.0]
        return (
            float(a.get("softcap", 0.0)),
            int(a.get("chunk", 0)),
            *place,
            self.tensor(sinks) if sinks else NONE,
            int(long.get("beyond", 0)),
            self.tensor(str(long["inv_freq"])) if "inv_freq" in long else NONE,
            *(float(long.get(key, 0.0)) for key in ("theta", "factor")),
        )

    def _gated_mlp(self, node: Node) -> None:
        x, gate, up, down, *biases = node.inputs
        of_gate, of_up, of_down = (
            (self.tensor(bias),) if bias else () for bias in (*biases, *("",) * (3 - len(biases)))
        )
        source, name, inner = self.source(x), node.name or node.outputs[0], self.rows(gate)
        kind = _ACTIVATIONS[str(node.attrs["activation"])]
        gated = self.emit(Op.LINEAR, (source,), f"{name}/gate", inner, matrix=self.matrix(gate), tensors=of_gate)
        raised = self.emit(Op.LINEAR, (source,), f"{name}/up", inner, matrix=self.matrix(up), tensors=of_up)
        product = self.emit(Op.GATE, (gated, raised), f"{name}/product", inner, attrs=(int(kind),))
        self.emit(Op.LINEAR, (product,), node.outputs[0], self.rows(down), matrix=self.matrix(down), tensors=of_down)

    def _activate(self, node: Node, kind: Activation) -> None:
        source = self.source(node.inputs[0])
        value_kind = self.plan.values[source].kind
        self.emit(Op.ACTIVATE, (source,), node.outputs[0], self.width(source), value_kind, attrs=(int(kind),))

    def _pick(self, node: Node) -> None:
        """One vector of the tokens' vectors."""
        sources = self.source(node.inputs[0]), self.source(node.inputs[1])
        op = Op.LAST if node.op == "LastToken" else Op.GREATEST
        self.emit(op, sources, node.outputs[0], self.width(sources[0]), ValueKind.PER_SEQUENCE)

    def _gelu(self, node: Node) -> None:
        self._activate(node, Activation.GELU_TANH if node.attrs.get("approximate") == "tanh" else Activation.GELU)

    def _unary(self, node: Node) -> None:
        self._activate(node, _UNARY[node.op])

    def _binary(self, node: Node) -> None:
        if heads.are_positions(self, node):
            return  # what takes them is a table of positions
        op = Op.ADD if node.op == "Add" else Op.MUL
        if any(name in self.heads for name in node.inputs):
            heads.binary(self, node)
            return
        a, b = node.inputs if self.is_computed(node.inputs[0]) else node.inputs[::-1]  # both commute
        first = self.source(a)
        width, kind = self.width(first), self.plan.values[first].kind
        if self.is_computed(b):
            second = self.source(b)
            if op == Op.MUL and 1 in (self.width(second), width) and self.width(second) != width:
                pair = (first, second) if self.width(second) == 1 else (second, first)
                self.emit(Op.SCALE, pair, node.outputs[0], max(width, self.width(second)), kind)
                return
            if self.width(second) != width or self.plan.values[second].kind != kind:
                raise UnsupportedError("a sum or product of two widths", where=node.name)
            self.emit(op, (first, second), node.outputs[0], width, kind)
            return
        tensor = self._number(b)
        if len(self.plan.tensors[tensor]) not in (1, width):
            raise UnsupportedError("a constant of another width", where=node.name, found=self.tensor_of(b).shape)
        self.emit(op, (first,), node.outputs[0], width, kind, tensors=(tensor,))

    def _mean_pool(self, node: Node) -> None:
        hidden, mask = (self.source(name) for name in node.inputs)
        self.emit(Op.MEAN_POOL, (hidden, mask), node.outputs[0], self.width(hidden), ValueKind.PER_SEQUENCE)

    def _normalize(self, node: Node) -> None:
        source = self.source(node.inputs[0])
        if node.attrs.get("p", 2) != 2 or self.plan.values[source].kind != ValueKind.PER_SEQUENCE:
            raise UnsupportedError("a normalization that is not of a sequence's vector", where=node.name)
        self.emit(Op.L2_NORM, (source,), node.outputs[0], self.width(source), ValueKind.PER_SEQUENCE)


_OPS: Mapping[str, Callable[[Planning, Node], None]] = {
    "Linear": Planning._linear,
    "RMSNormalization": Planning._norm,
    "LayerNormalization": Planning._norm,
    "SkipNorm": Planning._skip_norm,
    "Attention": Planning._attention,
    "GatedMlp": Planning._gated_mlp,
    "Gelu": Planning._gelu,
    "Relu": Planning._unary,
    "Tanh": Planning._unary,
    "Sigmoid": Planning._unary,
    "Add": Planning._binary,
    "Mul": Planning._binary,
    "MeanPool": Planning._mean_pool,
    "Outliers": measures.outliers,
    "Magnitude": measures.magnitude,
    "LastToken": Planning._pick,
    "GreatestToken": Planning._pick,
    "LpNormalization": Planning._normalize,
    "Gather": tables.gather,
    "Reshape": heads.reshape,
    "Slice": heads.cut,
    "Concat": heads.join,
    "Rotary": heads.rotary,
    "Clip": heads.clip,
    "XIELU": heads.xielu,
    "Hadamard": heads.hadamard,
    "Route": mixtures.route,
    "Experts": mixtures.experts,
    "ShortConv": recurrence.conv,
    "GatedDeltaNet": recurrence.delta,
    "Mamba2": recurrence.scan,
}
"""How each op is planned, for those that stand alone."""
_SILENT = frozenset({"Identity", "Positions", "PositionsBehind", "TokenPositions", "IdsWithin", "Constant", "Stack"})
"""What is no node: an alias, positions, which the Gather of a table takes the place of, a list of matrices."""


def lowered_ops() -> frozenset[str]:
    """Every op that the runtime has, some of them only around others: norms of heads, the first token."""
    return frozenset(_OPS) | _SILENT | {"Squeeze"}


def _is_first(node: Node) -> bool:
    return all(node.attrs.get(key) == want for key, want in (("starts", [0]), ("ends", [1]), ("axes", [1])))


def _is_alias(node: Node) -> bool:
    """Whether a node gives the value that it takes: an axis of one behind the tokens is none of the runtime's."""
    return node.op == "Identity" or (node.op == "Squeeze" and node.attrs.get("axes") == [2])


def _aliases(graph: Graph) -> dict[str, str]:
    """Names that are one value, under the output's name where it is one."""
    outputs, aliases = {value.name for value in graph.outputs}, dict[str, str]()
    for node in graph.nodes:
        if _is_alias(node):
            source, output = aliases.get(node.inputs[0], node.inputs[0]), node.outputs[0]
            if output in outputs and source not in outputs:
                aliases[source] = output
            else:
                aliases[output] = source
    return aliases


def _place(plan: Plan, decoder: bool) -> None:
    """Gives every value a slot, first fit; outputs keep theirs to the end.

    A decoder's logits that nothing reads need no slot: the caller's array takes them.
    """
    last = {v: place for place, node in enumerate(plan.nodes) for v in (*node.outputs, *node.inputs)}
    live: list[tuple[int, int, int]] = []  # (slot, end, value)
    for place, node in enumerate(plan.nodes):
        for value in node.outputs:
            unread = decoder and plan.values[value].name == "logits" and last[value] == place
            if unread and node.op == Op.LINEAR:
                plan.values[value].slot = NONE
                continue
            width, at = aligned(plan.values[value].width, 16), 0
            for slot, end, _ in sorted(live):
                if at + width <= slot:
                    break
                at = max(at, end)
            plan.values[value].slot = at
            plan.slot_width = max(plan.slot_width, at + width)
            live.append((at, at + width, value))
        live = [x for x in live if last[x[2]] > place or plan.values[x[2]].role == Role.OUTPUT]
