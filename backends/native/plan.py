"""A graph as nodes of the runtime: which matrices and small tensors they take, and where their values lie.

Every inner value has a slot in one arena, counted in floats per token; a slot is used again once its last reader has
run. Nodes never write where they read. `Identity` disappears; composites become the few ops of layout.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qdeploy.backends.native.layout import NONE, Activation, Op, Role, ValueKind, aligned
from qdeploy.backends.native.parts import Array
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph, Node
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
    """

    matrices: list[str] = field(default_factory=list)
    tensors: list[Array] = field(default_factory=list)
    values: list[PlannedValue] = field(default_factory=list)
    nodes: list[PlannedNode] = field(default_factory=list)
    slot_width: int = 0


def plan_graph(model: Model) -> Plan:
    """Plans the graph of a model; UnsupportedError names an op that the runtime does not have."""
    return _Planning(model).run()


class _Planning:
    def __init__(self, model: Model) -> None:
        self.model, self.graph, self.plan = model, model.graph, Plan()
        self._values: dict[str, int] = {}
        self._small: dict[str, int] = {}
        self._states = {state.name: place for place, state in enumerate(self.graph.states)}
        self._outputs = {value.name for value in self.graph.outputs}
        self._skip: set[int] = set()
        self._alias = _aliases(self.graph)

    def run(self) -> Plan:
        """Plans every node; raises as `plan_graph`."""
        if self.graph.meta.get("kind") not in ("decoder", "encoder"):
            raise UnsupportedError(
                "the native runtime runs decoders and encoders",
                found=self.graph.meta.get("kind"),
                allowed="decoder, encoder",
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
        kinds = [n.op for n in following]
        if node.op in ("Identity", "Positions"):
            return  # an alias; the Gather of positions takes its place
        if node.op == "Reshape" and kinds == ["RMSNormalization", "Reshape"]:
            self._inner_norm(node, following)
        elif node.op == "Slice" and kinds[:1] == ["Squeeze"] and _is_first(node):
            source = self._in(node.inputs[0])
            self._emit(Op.FIRST, (source,), following[0].outputs[0], self._width(source), ValueKind.PER_SEQUENCE)
            self._skip.add(place + 1)
            return
        elif node.op in _OPS:
            _OPS[node.op](self, node)
            return
        else:
            raise UnsupportedError("an op that the native runtime does not have", where=node.name, found=node.op)
        self._skip |= {place + 1, place + 2}

    # ---- names

    def _in(self, name: str) -> int:
        name = self._alias.get(name, name)
        if name not in self._values:
            raise UnsupportedError("a value that no node has made", found=name)
        return self._values[name]

    def _is_computed(self, name: str) -> bool:
        return self._alias.get(name, name) in self._values

    def _width(self, value: int) -> int:
        return self.plan.values[value].width

    def _value(self, name: str, width: int, kind: ValueKind = ValueKind.PER_TOKEN) -> int:
        name = self._alias.get(name, name)
        role = Role.OUTPUT if name in self._outputs else Role.INNER
        self._values[name] = len(self.plan.values)
        self.plan.values.append(PlannedValue(name, kind, width, role))
        return self._values[name]

    def _tensor_of(self, name: str) -> QTensor:
        return self.graph.constants[name] if name in self.graph.constants else self.model.tensors[name]

    def _matrix(self, name: str) -> int:
        if len(self.model.tensors[name].shape) != 2:
            raise UnsupportedError("a weight that is not a matrix", where=name, found=self.model.tensors[name].shape)
        if name not in self.plan.matrices:
            self.plan.matrices.append(name)
        return self.plan.matrices.index(name)

    def _rows(self, name: str) -> int:
        return self.model.tensors[name].shape[0]

    def _tensor(self, name: str) -> int:
        if name not in self._small:
            self._small[name] = len(self.plan.tensors)
            values = self._tensor_of(name).decode().reshape(-1)
            self.plan.tensors.append(np.ascontiguousarray(values, np.float32))
        return self._small[name]

    def _emit(
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
        value = self._value(output, width, kind)
        self.plan.nodes.append(PlannedNode(op, inputs, (value,), matrix, tensors, NONE, attrs))
        return value

    # ---- ops

    def _gather(self, node: Node) -> None:
        weight, ids = node.inputs
        maker = next((n for n in self.graph.nodes if ids in n.outputs), None)
        matrix, width = self._matrix(weight), self.model.tensors[weight].shape[1]
        if maker is not None and maker.op == "Positions":
            self._emit(Op.POSITIONS, (), node.outputs[0], width, matrix=matrix)
        else:
            self._emit(Op.EMBED, (self._in(ids),), node.outputs[0], width, matrix=matrix)

    def _linear(self, node: Node) -> None:
        x, weight, *bias = node.inputs
        tensors = tuple(self._tensor(b) for b in bias if b)
        self._emit(
            Op.LINEAR, (self._in(x),), node.outputs[0], self._rows(weight), matrix=self._matrix(weight), tensors=tensors
        )

    def _norm(self, node: Node) -> None:
        x, *parameters = node.inputs
        source, epsilon = self._in(x), float(node.attrs["epsilon"])  # type: ignore[arg-type]
        rms = node.op == "RMSNormalization"
        self._emit(
            Op.RMS_NORM if rms else Op.LAYER_NORM,
            (source,),
            node.outputs[0],
            self._width(source),
            self.plan.values[source].kind,
            tensors=tuple(self._tensor(p) for p in parameters if p),
            attrs=(epsilon, 0) if rms else (epsilon,),
        )

    def _inner_norm(self, node: Node, following: tuple[Node, ...]) -> None:
        """A norm of every head: Reshape [0, 0, heads, inner], RMSNormalization, Reshape [0, 0, heads * inner]."""
        norm, joined = following
        source, shape = self._in(node.inputs[0]), list(node.attrs["shape"])  # type: ignore[arg-type]
        back = list(joined.attrs["shape"])  # type: ignore[arg-type]
        width, chained = self._width(source), norm.inputs[0] == node.outputs[0] and joined.inputs[0] == norm.outputs[0]
        if not chained or len(shape) != 4 or shape[2] * shape[3] != width or back != [0, 0, width]:
            raise UnsupportedError("a Reshape that is not around a norm of heads", where=node.name, found=shape)
        self._emit(
            Op.RMS_NORM,
            (source,),
            joined.outputs[0],
            width,
            tensors=(self._tensor(norm.inputs[1]),),
            attrs=(float(norm.attrs["epsilon"]), int(shape[3])),  # type: ignore[arg-type]
        )

    def _skip_norm(self, node: Node) -> None:
        x, skip, *parameters = node.inputs
        inputs, rms = (self._in(x), self._in(skip)), node.attrs["kind"] == "rms"
        width, epsilon = self._width(inputs[0]), float(node.attrs["epsilon"])  # type: ignore[arg-type]
        outputs = [self._value(node.outputs[0], width)]
        if len(node.outputs) > 1 and node.outputs[1]:
            outputs.append(self._value(node.outputs[1], width))
        tensors = tuple(self._tensor(p) for p in parameters if p)
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
        a, inputs = node.attrs, tuple(self._in(name) for name in node.inputs if name)
        beyond = [name for name in ("softcap", "position_scale") if a.get(name)] + ["sinks"] * any(node.inputs[4:])
        if beyond:
            raise UnsupportedError(
                "attention of a kind that the native runtime does not have", where=node.name, found=", ".join(beyond)
            )
        heads, kv_heads, width = int(a["heads"]), int(a["kv_heads"]), self._width(inputs[0])  # type: ignore[arg-type]
        rope = a.get("rope")
        tensors, rotation = (), (0, 0, 1.0)
        if isinstance(rope, dict):
            tensors = (self._tensor(str(rope["inv_freq"])),)  # type: ignore[assignment]
            rotation = (int(rope["rotary_dim"]), int(bool(rope["interleaved"])), float(rope["factor"]))
        state = self._states[str(a["state"])] if a.get("state") else NONE
        attrs = (
            heads,
            kv_heads,
            width // heads,
            float(a["scale"]),  # type: ignore[arg-type]
            int(bool(a.get("causal"))),
            int(a.get("window") or 0),  # type: ignore[arg-type]
            *rotation,
        )
        value = self._value(node.outputs[0], width)
        self.plan.nodes.append(PlannedNode(Op.ATTENTION, inputs, (value,), NONE, tensors, state, attrs))

    def _gated_mlp(self, node: Node) -> None:
        x, gate, up, down = node.inputs
        source, name, inner = self._in(x), node.name or node.outputs[0], self._rows(gate)
        kind = _ACTIVATIONS[str(node.attrs["activation"])]
        gated = self._emit(Op.LINEAR, (source,), f"{name}/gate", inner, matrix=self._matrix(gate))
        raised = self._emit(Op.LINEAR, (source,), f"{name}/up", inner, matrix=self._matrix(up))
        product = self._emit(Op.GATE, (gated, raised), f"{name}/product", inner, attrs=(int(kind),))
        self._emit(Op.LINEAR, (product,), node.outputs[0], self._rows(down), matrix=self._matrix(down))

    def _activate(self, node: Node, kind: Activation) -> None:
        source = self._in(node.inputs[0])
        self._emit(Op.ACTIVATE, (source,), node.outputs[0], self._width(source), attrs=(int(kind),))

    def _gelu(self, node: Node) -> None:
        self._activate(node, Activation.GELU_TANH if node.attrs.get("approximate") == "tanh" else Activation.GELU)

    def _unary(self, node: Node) -> None:
        self._activate(node, _UNARY[node.op])

    def _binary(self, node: Node) -> None:
        op = Op.ADD if node.op == "Add" else Op.MUL
        a, b = node.inputs if self._is_computed(node.inputs[0]) else node.inputs[::-1]  # both commute
        first = self._in(a)
        width, kind = self._width(first), self.plan.values[first].kind
        if self._is_computed(b):
            second = self._in(b)
            if self._width(second) != width or self.plan.values[second].kind != kind:
                raise UnsupportedError("a sum or product of two widths", where=node.name)
            self._emit(op, (first, second), node.outputs[0], width, kind)
            return
        tensor = self._tensor(b)
        if len(self.plan.tensors[tensor]) not in (1, width):
            raise UnsupportedError("a constant of another width", where=node.name, found=self._tensor_of(b).shape)
        self._emit(op, (first,), node.outputs[0], width, kind, tensors=(tensor,))

    def _mean_pool(self, node: Node) -> None:
        hidden, mask = (self._in(name) for name in node.inputs)
        self._emit(Op.MEAN_POOL, (hidden, mask), node.outputs[0], self._width(hidden), ValueKind.PER_SEQUENCE)

    def _normalize(self, node: Node) -> None:
        source = self._in(node.inputs[0])
        if node.attrs.get("p", 2) != 2 or self.plan.values[source].kind != ValueKind.PER_SEQUENCE:
            raise UnsupportedError("a normalization that is not of a sequence's vector", where=node.name)
        self._emit(Op.L2_NORM, (source,), node.outputs[0], self._width(source), ValueKind.PER_SEQUENCE)


_OPS: Mapping[str, Callable[[_Planning, Node], None]] = {
    "Linear": _Planning._linear,
    "RMSNormalization": _Planning._norm,
    "LayerNormalization": _Planning._norm,
    "SkipNorm": _Planning._skip_norm,
    "Attention": _Planning._attention,
    "GatedMlp": _Planning._gated_mlp,
    "Gelu": _Planning._gelu,
    "Relu": _Planning._unary,
    "Tanh": _Planning._unary,
    "Sigmoid": _Planning._unary,
    "Add": _Planning._binary,
    "Mul": _Planning._binary,
    "MeanPool": _Planning._mean_pool,
    "LpNormalization": _Planning._normalize,
    "Gather": _Planning._gather,
}
"""How each op is planned, for those that stand alone."""
_WITHIN_PATTERNS = frozenset({"Identity", "Positions", "Reshape", "Slice", "Squeeze"})


def lowered_ops() -> frozenset[str]:
    """Every op that the runtime has, some of them only around others: norms of heads, the first token."""
    return frozenset(_OPS) | _WITHIN_PATTERNS


def _is_first(node: Node) -> bool:
    return all(node.attrs.get(key) == want for key, want in (("starts", [0]), ("ends", [1]), ("axes", [1])))


def _aliases(graph: Graph) -> dict[str, str]:
    """Names that are one value: an Identity's, under the output's name where it is one."""
    outputs, aliases = {value.name for value in graph.outputs}, dict[str, str]()
    for node in graph.nodes:
        if node.op == "Identity":
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
