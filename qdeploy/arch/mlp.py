"""The multilayer perceptrons of decoders.

gated   down(norm(act(gate(x)) * up(x)))     Llama and most that followed
plain   down(act(up(x)))                     GPT-2, OPT, GPT-NeoX, StarCoder 2
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qdeploy.arch.builder import Builder

_FUSED = ("silu", "gelu", "gelu_tanh")  # activations that the composite GatedMlp has


@dataclass(frozen=True)
class MlpParts:
    """What the parameters of an MLP are called within its module.

    Attributes:
        gate: The projection that is activated; likewise up and down.
        up: The projection that is multiplied with it, or the first one of a plain MLP.
        down: The projection back to the hidden axis.
        fused: One projection in the place of gate and up, in this order; "" for none.
        norm: An RMS norm before `down`; "" for none.
    """

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: str = ""
    norm: str = ""


@dataclass(frozen=True)
class Mlp:
    """A block of a decoder's branch; see `stack.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        inner: Extent between the projections.
        activation: One of `builder.ACTIVATIONS`'s values.
        bias: Every projection has a bias.
        gated: Whether there is a gate beside `up`.
        outliers: Of what the gate gives, only what is above mean + outliers * deviation is activated; None: all.
        norm_epsilon: Of the norm before `down`, where `parts` has one.
        parts: What the parameters are called.
        module: Of the layer; "" where its parts stand in the layer itself.
        layers: The module that holds the layers.
    """

    hidden: int
    inner: int
    activation: str
    bias: bool = False
    gated: bool = True
    outliers: float | None = None
    norm_epsilon: float = 1e-6
    parts: MlpParts = field(default_factory=MlpParts)
    module: str = "mlp"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the projections and the activation."""
        source, name = f"{self.layers}.{layer}.{self.module}".rstrip("."), f"layers.{layer}.mlp"
        if self.parts.fused:
            return self._down(builder, source, name, self._fused(builder, source, name, x))
        sizes = {"gate": self.inner, "up": self.inner, "down": self.hidden}
        if not self.gated:
            del sizes["gate"]
        modules = {part: f"{source}.{getattr(self.parts, part)}" for part in sizes}
        weights = {part: self._weight(builder, modules[part], part) for part in sizes}
        biases = {
            part: builder.bias(f"{modules[part]}.bias", size, self.bias, "mlp_bias") for part, size in sizes.items()
        }
        whole = self.outliers is None and not self.parts.norm
        if self.gated and not any(biases.values()) and self.activation in _FUSED and whole:
            return builder.node("GatedMlp", x, *weights.values(), name=name, activation=self.activation)
        first = "gate" if self.gated else "up"
        raised = builder.node("Linear", x, weights[first], biases[first], name=f"{name}.{first}")
        if self.outliers is not None:
            raised = builder.node("Outliers", raised, name=f"{name}.outliers", factor=self.outliers)
        inner = builder.activation(self.activation, raised, f"{name}.act")
        if self.gated:
            up = builder.node("Linear", x, weights["up"], biases["up"], name=f"{name}.up")
            inner = builder.node("Mul", inner, up, name=f"{name}.mul")
        return self._down(builder, source, name, inner)

    def _fused(self, builder: Builder, source: str, name: str, x: str) -> str:
        """One projection for gate and up: the activated first half times the second."""
        module = f"{source}.{self.parts.fused}"
        weight = builder.weight(f"{module}.weight", (2 * self.inner, self.hidden), "intermediate_size, hidden_size")
        bias = builder.bias(f"{module}.bias", 2 * self.inner, self.bias, "mlp_bias")
        both = builder.node("Linear", x, weight, bias, name=f"{name}.gate_up")
        gate = builder.node("Slice", both, name=f"{name}.gate", starts=[0], ends=[self.inner], axes=[2])
        up = builder.node("Slice", both, name=f"{name}.up", starts=[self.inner], ends=[2 * self.inner], axes=[2])
        active = builder.activation(self.activation, gate, f"{name}.act")
        return builder.node("Mul", active, up, name=f"{name}.mul")

    def _down(self, builder: Builder, source: str, name: str, inner: str) -> str:
        if self.parts.norm:
            norm = builder.weight(f"{source}.{self.parts.norm}.weight", (self.inner,), "intermediate_size")
            inner = builder.node("RMSNormalization", inner, norm, name=f"{name}.norm", epsilon=self.norm_epsilon)
        module = f"{source}.{self.parts.down}"
        weight = self._weight(builder, module, "down")
        bias = builder.bias(f"{module}.bias", self.hidden, self.bias, "mlp_bias")
        return builder.node("Linear", inner, weight, bias, name=name)

    def _weight(self, builder: Builder, module: str, part: str) -> str:
        shape = (self.hidden, self.inner) if part == "down" else (self.inner, self.hidden)
        return builder.matrix(f"{module}.weight", shape, "intermediate_size, hidden_size")
