"""Latent attention (MLA, arXiv 2405.04434, section 2.1): queries, keys and values from low-rank projections.

    q = q_b(norm(q_a(x)))                       or q_proj(x)
    latent, k_rope = kv_a(x)                    k_rope is shared by all heads
    k_nope, v = kv_b(norm(latent))

A head of queries and keys has a part that is rotated and one that is not. The parts stand the other way round here, the
rotated one first, which changes no dot product. Heads of values have another extent than those of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import Builder
from qdeploy.arch.self_attention import Rotation, rotation_attribute
from qdeploy.ir.graph import Attr, State

_EPSILON = 1e-6
_FIELDS = "num_attention_heads, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, hidden_size"


@dataclass(frozen=True)
class LatentAttention:
    """A block of a decoder's branch; see `stack.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        heads: Of queries, keys and values.
        plain: Extent of the part of a head that is not rotated.
        rotated: Extent of the part that is.
        value: Extent of a head of values.
        latent: Extent of the latent of keys and values.
        query_latent: The same of queries; 0 where they have a projection of their own.
        capacity: Positions that the cache must hold.
        scale: Multiplied into the scores.
        rotation: Rotary positions; None for none.
        bias: The projections from the hidden axis, and the output projection, have a bias.
        epsilon: Of the norms of the latents.
        module: Of the layer.
        layers: The module that holds the layers.
    """

    hidden: int
    heads: int
    plain: int
    rotated: int
    value: int
    latent: int
    query_latent: int
    capacity: int
    scale: float
    rotation: Rotation | None
    bias: bool = False
    epsilon: float = _EPSILON
    module: str = "self_attn"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, attention over the layer's cache, and the output projection."""
        source, label = f"{self.layers}.{layer}.{self.module}", f"layers.{layer}.self_attn"
        query = self._query(builder, x, source, label)
        key, value = self._key_and_value(builder, x, source, label)
        size, state = self.plain + self.rotated, f"kv.{layer}"
        builder.states.append(State(state, self.heads, size, capacity=self.capacity, value_dim=self.value))
        attributes: dict[str, Attr] = {
            "heads": self.heads,
            "kv_heads": self.heads,
            "causal": True,
            "scale": self.scale,
            "window": 0,
        }
        if self.rotation is not None:
            attributes["rope"] = rotation_attribute(builder, self.rotation)
        mixed = builder.node("Attention", query, key, value, name=label, state=state, **attributes)
        weight = builder.weight(f"{source}.o_proj.weight", (self.hidden, self.heads * self.value), _FIELDS)
        bias = builder.bias(f"{source}.o_proj.bias", self.hidden, self.bias, "attention_bias")
        return builder.node("Linear", mixed, weight, bias, name=f"{label}.o")

    def _query(self, builder: Builder, x: str, source: str, label: str) -> str:
        rows = self.heads * (self.plain + self.rotated)
        if not self.query_latent:
            weight = builder.weight(f"{source}.q_proj.weight", (rows, self.hidden), _FIELDS)
            q = builder.node("Linear", x, weight, name=f"{label}.q")
        else:
            low = self._down(builder, x, f"{source}.q_a_proj", self.query_latent, f"{label}.q_a")
            low = self._normed(builder, low, f"{source}.q_a_layernorm", self.query_latent, f"{label}.q_a.norm")
            weight = builder.weight(f"{source}.q_b_proj.weight", (rows, self.query_latent), _FIELDS)
            q = builder.node("Linear", low, weight, name=f"{label}.q")
        size = self.plain + self.rotated
        plain = self._cut(builder, q, size, (0, self.plain), f"{label}.q.plain")
        rotary = self._cut(builder, q, size, (self.plain, size), f"{label}.q.rotated")
        return self._joined(builder, rotary, plain, f"{label}.q.heads")

    def _key_and_value(self, builder: Builder, x: str, source: str, label: str) -> tuple[str, str]:
        both = self._down(builder, x, f"{source}.kv_a_proj_with_mqa", self.latent + self.rotated, f"{label}.kv_a")
        ends = [self.latent, self.latent + self.rotated]
        low = builder.node("Slice", both, name=f"{label}.latent", starts=[0], ends=ends[:1], axes=[2])
        low = self._normed(builder, low, f"{source}.kv_a_layernorm", self.latent, f"{label}.latent.norm")
        shape = (self.heads * (self.plain + self.value), self.latent)
        weight = builder.weight(f"{source}.kv_b_proj.weight", shape, _FIELDS)
        kv = builder.node("Linear", low, weight, name=f"{label}.kv")
        shared = builder.node("Slice", both, name=f"{label}.k.shared", starts=ends[:1], ends=ends[1:], axes=[2])
        tiled = builder.node("Concat", *[shared] * self.heads, name=f"{label}.k.repeated", axis=2)
        rotary = builder.node("Reshape", tiled, name=f"{label}.k.rotated", shape=[0, 0, self.heads, self.rotated])
        size = self.plain + self.value
        plain = self._cut(builder, kv, size, (0, self.plain), f"{label}.k.plain")
        value = self._cut(builder, kv, size, (self.plain, size), f"{label}.v")
        value = builder.node("Reshape", value, name=f"{label}.v.heads", shape=[0, 0, self.heads * self.value])
        return self._joined(builder, rotary, plain, f"{label}.k.heads"), value

    def _down(self, builder: Builder, x: str, module: str, rows: int, name: str) -> str:
        weight = builder.weight(f"{module}.weight", (rows, self.hidden), _FIELDS)
        return builder.node(
            "Linear", x, weight, builder.bias(f"{module}.bias", rows, self.bias, "attention_bias"), name=name
        )

    def _normed(self, builder: Builder, x: str, module: str, size: int, name: str) -> str:
        weight = builder.weight(f"{module}.weight", (size,), _FIELDS)
        return builder.node("RMSNormalization", x, weight, name=name, epsilon=self.epsilon)

    # ---- heads, [B, T, heads, D]

    def _cut(self, builder: Builder, x: str, size: int, part: tuple[int, int], name: str) -> str:
        split = builder.node("Reshape", x, name=f"{name}.split", shape=[0, 0, self.heads, size])
        return builder.node("Slice", split, name=name, starts=[part[0]], ends=[part[1]], axes=[3])

    def _joined(self, builder: Builder, first: str, second: str, name: str) -> str:
        """Two parts of every head as [B, T, heads * D]."""
        heads = builder.node("Concat", first, second, name=f"{name}.parts", axis=3)
        return builder.node("Reshape", heads, name=name, shape=[0, 0, self.heads * (self.plain + self.rotated)])
