"""Mixtures of experts: a router, experts of which each token takes a few, and perhaps a shared one that all take.

    ids, weights = route(router(x))
    sum of weight * down(act(gate(x)) * up(x)) over the chosen experts, plus shared(x)

The weights of all experts are one value [experts, out, in]. Checkpoints keep them in three ways: a matrix per expert
(`experts.3.up_proj.weight`), which a Stack node joins; one tensor per projection, as GGUF files and some libraries have
them; or one tensor for gate and up together, [experts, out, in] or, as floats of some libraries, [experts, in, out].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qdeploy.arch.builder import Builder
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Attr
from qdeploy.ir.views import Floats, view

_FIELDS = "the number of experts, their intermediate size, hidden_size"


@dataclass(frozen=True)
class Routing:
    """How experts are chosen; see `ir/experts.py`, whose `route` has the same fields.

    Attributes:
        top_k: Experts of a token.
        scores: What logits become.
        normalize: Whether weights are divided by their sum.
        scale: Multiplied into them.
        groups: Runs of neighbours that experts are divided into.
        kept_groups: How many of them are left to choose from.
        group_score: What a group counts by.
        epsilon: Added to the sum of weights.
        least: The least that it counts as.
        jitter: Of "mixer".
        bias: The parameter that is added to the scores for the choice, within the module; "" for none.
        bias_shape: Its shape before the experts'.
        scales: The parameter with a factor for each expert's weight, within the module; "" for none.
    """

    top_k: int
    scores: Literal["softmax", "sigmoid", "softmax_of_chosen", "mixer"] = "softmax"
    normalize: bool = False
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_score: Literal["two", "best"] = "two"
    epsilon: float = 0.0
    least: float = 0.0
    jitter: float = 0.0
    bias: str = ""
    bias_shape: tuple[int, ...] = ()
    scales: str = ""

    def attributes(self) -> dict[str, Attr]:
        """Those of the node, without what is as by default."""
        values: dict[str, Attr] = {
            name: value
            for name in ("scores", "normalize", "scale", "epsilon", "least", "jitter")
            if (value := getattr(self, name)) != getattr(Routing(1), name)
        }
        if self.kept_groups < self.groups:
            values |= {"groups": self.groups, "kept_groups": self.kept_groups, "group_score": self.group_score}
        return {"top_k": self.top_k, **values}


@dataclass(frozen=True)
class ExpertParts:
    """What the parameters are called within the module.

    Attributes:
        router: The projection that gives logits.
        experts: What holds the experts.
        gate: The projection that is activated; likewise up and down.
        up: The projection that is multiplied with it, or the only one where there is no gate.
        down: The projection back to the hidden axis.
        fused: The tensor of gate and up together.
        fused_down: The tensor of down, where gate and up are one.
        pairs: Whether rows of gate and up alternate there; otherwise one is behind the other.
        rows_first: Whether floats without a suffix are [experts, out, in] there, as what is quantized always is.
        suffix: What such a tensor's name ends with.
        bias_suffix: What its bias' name ends with.
    """

    router: str = "gate"
    experts: str = "experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: str = "gate_up_proj"
    fused_down: str = "down_proj"
    pairs: bool = False
    rows_first: bool = False
    suffix: str = ""
    bias_suffix: str = "_bias"


MIXTRAL = ExpertParts(gate="w1", up="w3", down="w2")
"""What Mixtral calls them, and those that followed it."""


@dataclass(frozen=True)
class Experts:
    """A block of a decoder's branch; see `stack.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        inner: Extent between the projections of an expert.
        count: How many experts there are.
        activation: One of `builder.ACTIVATIONS`'s values.
        routing: How they are chosen.
        gated: Whether there is a gate beside `up`.
        bias: Whether projections of experts have biases.
        router_bias: Whether the router has one.
        alpha: "silu" is x * sigmoid(alpha * x).
        limit: Of gate and up; 0 for none (see `ir/experts.py`).
        weighted: What the weights are multiplied into.
        shared: The block that every token takes besides; None for none.
        shared_gate: A projection to one number whose sigmoid `shared` is multiplied with; "" for none.
        parts: What the parameters are called.
        module: Of the layer.
        layers: The module that holds the layers.
    """

    hidden: int
    inner: int
    count: int
    activation: str
    routing: Routing
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    alpha: float = 1.0
    limit: float = 0.0
    weighted: Literal["outputs", "inputs"] = "outputs"
    shared: Block | None = None
    shared_gate: str = ""
    parts: ExpertParts = field(default_factory=ExpertParts)
    module: str = "mlp"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the router, the experts and the shared block."""
        return self.add_routed(builder, layer, x, x)

    def add_routed(self, builder: Builder, layer: int, x: str, seen: str) -> str:
        """The same, where the router sees another value than the experts."""
        source, name = f"{self.layers}.{layer}.{self.module}".rstrip("."), f"layers.{layer}.moe"
        ids, weights = self._routed(builder, source, name, seen)
        attributes: dict[str, Any] = {"count": self.count, "activation": self.activation}
        attributes |= {"alpha": self.alpha} if self.alpha != 1 else {}
        attributes |= {"limit": self.limit} if self.limit else {}
        attributes |= {"weighted": self.weighted} if self.weighted != "outputs" else {}
        inputs = self._weights(builder, f"{source}.{self.parts.experts}".rstrip("."), name)
        out = builder.node("Experts", x, ids, weights, *inputs, name=f"{name}.experts", **attributes)
        if self.shared is None:
            return out
        return builder.node("Add", out, self._shared(builder, layer, source, name, x), name=f"{name}.out")

    def _routed(self, builder: Builder, source: str, name: str, x: str) -> tuple[str, str]:
        router, routing = f"{source}.{self.parts.router}", self.routing
        weight = builder.weight(f"{router}.weight", (self.count, self.hidden), _FIELDS)
        bias = builder.bias(f"{router}.bias", self.count, self.router_bias, "the number of experts")
        logits = builder.node("Linear", x, weight, bias, name=f"{name}.router")
        inputs = [logits]
        if routing.bias:
            shape = (*routing.bias_shape, self.count)
            inputs.append(builder.weight(f"{source}.{routing.bias}", shape, "the number of experts"))
        if routing.scales:
            scales = builder.weight(f"{source}.{routing.scales}", (self.count,), "the number of experts")
            inputs += [""] * (2 - len(inputs)) + [scales]
        return builder.pair("Route", tuple(inputs), f"{name}.ids", f"{name}.weights", **routing.attributes())

    def _shared(self, builder: Builder, layer: int, source: str, name: str, x: str) -> str:
        out = self.shared.add(builder, layer, x) if self.shared is not None else x
        if not self.shared_gate:
            return out
        weight = builder.weight(f"{source}.{self.shared_gate}.weight", (1, self.hidden), "hidden_size")
        gate = builder.node("Linear", x, weight, name=f"{name}.shared_gate")
        opened = builder.node("Sigmoid", gate, name=f"{name}.shared_gate.opened")  # [B, T, 1]
        return builder.node("Mul", out, opened, name=f"{name}.shared")

    # ---- weights

    def _weights(self, builder: Builder, source: str, name: str) -> list[str]:
        """Up, down and gate, and their biases in the same order."""
        parts = self.parts
        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        if self.gated and builder.model.dialect != "gguf" and builder.has(f"{source}.{parts.fused}{parts.suffix}"):
            return self._fused(builder, source, name)
        sides = [("up", up), ("down", down), *([("gate", up)] if self.gated else [])]
        weights = [self._stack(builder, source, getattr(parts, side), shape, "weight") for side, shape in sides]
        if not self.bias:
            return weights
        biases = [self._stack(builder, source, getattr(parts, side), shape[:1], "bias") for side, shape in sides]
        return [*weights, *([] if self.gated else [""]), *biases]

    def _stack(self, builder: Builder, source: str, part: str, shape: tuple[int, ...], parameter: str) -> str:
        """A stored tensor of all experts, or a node that joins the experts' own."""
        whole = f"{source}.{part}.{parameter}"
        if builder.model.dialect == "gguf" or builder.has(whole):
            return builder.weight(whole, (self.count, *shape), _FIELDS)
        each = [builder.weight(f"{source}.{i}.{part}.{parameter}", shape, _FIELDS) for i in range(self.count)]
        return builder.node("Stack", *each, name=whole)

    def _fused(self, builder: Builder, source: str, name: str) -> list[str]:
        """Gate and up as slices of one tensor."""
        parts, (inner, hidden) = self.parts, (self.inner, self.hidden)
        both = self._oriented(builder, f"{source}.{parts.fused}{parts.suffix}", (2 * inner, hidden))
        gate, up = self._halves(builder, both, f"{name}.experts")
        down = self._oriented(builder, f"{source}.{parts.fused_down}{parts.suffix}", (hidden, inner))
        if not self.bias:
            return [up, down, gate]
        stored = builder.weight(f"{source}.{parts.fused}{parts.bias_suffix}", (self.count, 2 * inner), _FIELDS)
        gate_bias, up_bias = self._halves(builder, stored, f"{name}.biases")
        down_bias = builder.weight(f"{source}.{parts.fused_down}{parts.bias_suffix}", (self.count, hidden), _FIELDS)
        return [up, down, gate, up_bias, down_bias, gate_bias]

    def _halves(self, builder: Builder, both: str, name: str) -> tuple[str, str]:
        size, pairs = self.inner, self.parts.pairs
        places = ([0], [1]) if pairs else ([0], [size])
        ends = ([2 * size], [2 * size]) if pairs else ([size], [2 * size])
        steps: dict[str, Any] = {"steps": [2]} if pairs else {}
        gate, up = (
            builder.node("Slice", both, name=f"{name}.{side}", starts=start, ends=end, axes=[1], **steps)
            for side, start, end in zip(("gate", "up"), places, ends, strict=True)
        )
        return gate, up

    def _oriented(self, builder: Builder, parameter: str, shape: tuple[int, int]) -> str:
        """A stored tensor as [experts, out, in]: floats under a name without "weight" are [experts, in, out]."""
        stored = builder.stored(parameter)
        if self.parts.suffix or self.parts.rows_first or stored is None or not isinstance(view(stored), Floats):
            return builder.weight(parameter, (self.count, *shape), _FIELDS)
        weight = builder.weight(parameter, (self.count, *shape[::-1]), _FIELDS)
        return builder.node("Transpose", weight, name=f"{parameter}.turned", perm=[0, 2, 1])
