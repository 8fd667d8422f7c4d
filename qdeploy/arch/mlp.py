"""The multilayer perceptrons of decoders.

gated   down(act(gate(x)) * up(x))     Llama and most that followed
plain   down(act(up(x)))               GPT-2, OPT, GPT-NeoX, StarCoder 2
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import Builder

_FUSED = ("silu", "gelu", "gelu_tanh")  # activations that the composite GatedMlp has


@dataclass(frozen=True)
class Mlp:
    """A block of a decoder's branch; see `decoder.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        inner: Extent between the projections.
        activation: One of `builder.ACTIVATIONS`'s values.
        bias: Every projection has a bias.
        gated: Whether there is a gate beside `up`.
        module: Of the layer; its projections are `gate_proj`, `up_proj` and `down_proj`.
    """

    hidden: int
    inner: int
    activation: str
    bias: bool = False
    gated: bool = True
    module: str = "mlp"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the projections and the activation."""
        source, name = f"model.layers.{layer}.{self.module}", f"layers.{layer}.mlp"
        sizes = {"gate": self.inner, "up": self.inner, "down": self.hidden}
        if not self.gated:
            del sizes["gate"]
        weights = {part: self._weight(builder, source, part) for part in sizes}
        biases = {
            part: builder.bias(f"{source}.{part}_proj.bias", n, self.bias, "mlp_bias") for part, n in sizes.items()
        }
        if self.gated and not any(biases.values()) and self.activation in _FUSED:
            return builder.node("GatedMlp", x, *weights.values(), name=name, activation=self.activation)
        first = "gate" if self.gated else "up"
        raised = builder.node("Linear", x, weights[first], biases[first], name=f"{name}.{first}")
        inner = builder.activation(self.activation, raised, f"{name}.act")
        if self.gated:
            up = builder.node("Linear", x, weights["up"], biases["up"], name=f"{name}.up")
            inner = builder.node("Mul", inner, up, name=f"{name}.mul")
        return builder.node("Linear", inner, weights["down"], biases["down"], name=name)

    def _weight(self, builder: Builder, source: str, part: str) -> str:
        shape = (self.hidden, self.inner) if part == "down" else (self.inner, self.hidden)
        return builder.weight(f"{source}.{part}_proj.weight", shape, "intermediate_size, hidden_size")
