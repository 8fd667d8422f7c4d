"""Self-attention with grouped heads and rotary positions: causal with a key/value cache, or of encoders.

    q, k, v = linear(x);  q, k = norm(q), norm(k)  where the family has such norms
    o(norm(softmax(scores(rope(q), rope(k))) v)),   scores = q k^T * scale, softcapped where the family says so

Parameters are `<module>.{q,k,v,o}_proj` and `<module>.{q,k}_norm` of the layer, or what `Parts` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.arch.names import ROPE_FACTORS
from qdeploy.arch.rope import Rope
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.graph import Attr, State
from qdeploy.ir.tensor import Float32


@dataclass(frozen=True)
class Rotation:
    """Rotary positions of some layers.

    Attributes:
        rope: Frequencies, extent and factor.
        interleaved: Whether neighbours are pairs; otherwise halves are.
        name: Of the constant that holds the frequencies; layers with the same rotation share it.
    """

    rope: Rope
    interleaved: bool = False
    name: str = "rope.inv_freq"


@dataclass(frozen=True)
class QueryKeyNorm:
    """A norm of queries and of keys.

    Attributes:
        epsilon: Of the norm.
        over: "head": each head on its own, all with one weight [head_dim] (Qwen3); "heads": each with a weight of its
            own, [heads, head_dim] (Cohere); "separate": the same as a module per head (StableLM); "width": all heads
            together (OLMo 2).
        kind: "rms" or "layer".
        offset: Added to the stored weights.
        after_rotation: Whether it stands behind the rotary positions (HunYuan).
        weight: Whether there is a weight (Llama 4 has none).
    """

    epsilon: float
    over: Literal["head", "heads", "separate", "width"] = "head"
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    after_rotation: bool = False
    weight: bool = True


@dataclass(frozen=True)
class Parts:
    """What the parameters of attention are called within its module.

    Attributes:
        q: The query projection; likewise k, v and o.
        k: The key projection.
        v: The value projection.
        o: The output projection.
        q_norm: The norm of queries; likewise k_norm.
        k_norm: The norm of keys.
        fused: One projection in the place of q, k and v; "" for none.
        fused_by_head: Whether its rows are ordered by head: q, k and v of the first head, then of the next.
        norm: A norm before the output projection; "" for none.
        sinks: A score per head that has no value; "" for none.
        head_gate: A projection to one number per head, whose sigmoid the head's result is multiplied with; "" for none.
        unbiased: Of "q", "k" and "v", those without a bias where the others have one (Whisper's keys).
    """

    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    fused: str = ""
    fused_by_head: bool = False
    norm: str = ""
    sinks: str = ""
    head_gate: str = ""
    unbiased: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelfAttention:
    """A block of a decoder's branch; see `stack.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Extent of a head.
        window: How many keys a query sees; 0 for all.
        capacity: Positions that the cache must hold.
        scale: Multiplied into the scores.
        rotation: Rotary positions; None for a layer without.
        qkv_bias: Query, key and value projections have a bias.
        o_bias: The output projection has one.
        qk_norm: None for none.
        softcap: c of c * tanh(scores / c); 0 for none.
        clip: Limit of queries, keys and values on either side; 0 for none.
        norm_epsilon: Of the norm before the output projection, where `parts` has one.
        position_scale: As for `ir/attention.py`; None for none.
        key_multiplier: Multiplied into keys.
        value_norm: Epsilon of a norm without a weight of every head of values; 0 for none.
        values_are_keys: Whether values are the keys before their norm and rotation.
        shared_with: The layer whose keys, values and cache it takes; None: it has its own.
        gated: The query projection gives a gate besides, [q | gate] per head, and the result is multiplied with its
            sigmoid.
        chunk: Of how many positions a query sees only those of its own run; 0 for all.
        bidirectional: Whether every token sees the whole sequence; only without a cache.
        cached: Whether there is a cache.
        memory: The value [B, S, hidden] that keys and values are made of, as cross attention has it; "" for the tokens.
        bias: A value that is added to the scores, [1, heads, T, S]; "" for none.
        mask: Without a cache, the graph's input that says which tokens may be seen; "" for all.
        parts: What the parameters are called.
        module: Of the layer.
        layers: The module that holds the layers.
        size_field: The field of config.json that says `head_dim`; for errors.
        label: What the names of its nodes say.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    capacity: int
    scale: float
    rotation: Rotation | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QueryKeyNorm | None = None
    softcap: float = 0.0
    clip: float = 0.0
    norm_epsilon: float = 1e-6
    position_scale: Mapping[str, float] | None = None
    chunk: int = 0
    bidirectional: bool = False
    cached: bool = True
    mask: str = "attention_mask"
    memory: str = ""
    bias: str = ""
    value_norm: float = 0.0
    values_are_keys: bool = False
    shared_with: int | None = None
    gated: bool = False
    key_multiplier: float = 1.0
    parts: Parts = field(default_factory=Parts)
    module: str = "self_attn"
    layers: str = "model.layers"
    size_field: str = "num_attention_heads"
    label: str = "self_attn"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, attention over the layer's cache, and the output projection."""
        source, label = f"{self.layers}.{layer}.{self.module}", f"layers.{layer}.{self.label}"
        gate = ""
        if self.gated:
            q, gate = self._gated_query(builder, x, source, label)
            k, v = self._key_and_value(builder, x, source, label)
        else:
            q, k, v = self._projected(builder, x, source, label)
        builder.keys_and_values[f"kv.{layer}"] = k, v
        if self.cached and self.shared_with is None:
            builder.states.append(State(f"kv.{layer}", self.kv_heads, self.head_dim, capacity=self.capacity))
        attributes = self._attributes(builder, layer)
        if self.qk_norm is not None and self.qk_norm.after_rotation:
            if not self.cached:
                raise UnsupportedError("norms behind rotary positions need a cache", where=source)
            rope = attributes.pop("rope")
            q, k = (self._rotated(builder, y, name, layer, rope) for y, name in ((q, f"{label}.q"), (k, f"{label}.k")))
            q, k = self._both_normed(builder, (q, k), source, label, self.qk_norm)
        inputs = [q, k, v, ""] if self.cached else [q, k, v, self.mask]
        if self.parts.sinks:
            inputs += [builder.weight(f"{source}.{self.parts.sinks}", (self.heads,), "num_attention_heads")]
        if self.bias:
            inputs += [""] * (5 - len(inputs)) + [self.bias]
        mixed = builder.node("Attention", *inputs, name=label, **attributes)
        if gate:
            opened = builder.node("Sigmoid", gate, name=f"{label}.opened")
            mixed = builder.node("Mul", mixed, opened, name=f"{label}.gated")
        if self.parts.head_gate:
            mixed = self._gated_heads(builder, mixed, x, source, label)
        if self.parts.norm:
            width = self.heads * self.head_dim
            weight = builder.weight(f"{source}.{self.parts.norm}.weight", (width,), "num_attention_heads, head_dim")
            mixed = builder.node("RMSNormalization", mixed, weight, name=f"{label}.norm", epsilon=self.norm_epsilon)
        fields = "hidden_size, num_attention_heads, head_dim"
        weight = builder.matrix(f"{source}.{self.parts.o}.weight", (self.hidden, self.heads * self.head_dim), fields)
        bias = builder.bias(f"{source}.{self.parts.o}.bias", self.hidden, self.o_bias, "attention_bias")
        return builder.node("Linear", mixed, weight, bias, name=f"{label}.o")

    def _attributes(self, builder: Builder, layer: int) -> dict[str, Attr]:
        attributes: dict[str, Attr] = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "causal": not self.bidirectional,
            "scale": self.scale,
            "window": self.window,
        }
        cache = layer if self.shared_with is None else self.shared_with
        attributes |= {"state": f"kv.{cache}"} if self.cached else {"head_dim": self.head_dim}
        if self.rotation is not None:
            attributes["rope"] = rotation_attribute(builder, self.rotation)
        if self.softcap:
            attributes["softcap"] = self.softcap
        if self.chunk:
            attributes["chunk"] = self.chunk
        if self.position_scale is not None:
            attributes["position_scale"] = dict(self.position_scale)
        return attributes

    # ---- projections

    def _projected(self, builder: Builder, x: str, source: str, label: str) -> tuple[str, str, str]:
        parts = self.parts
        if parts.fused:
            q, k, v = self._split(builder, x, f"{source}.{parts.fused}", label)
        else:
            q = self._linear(builder, x, f"{source}.{parts.q}", f"{label}.q", self.heads, "num_attention_heads")
            if self._norm_follows():
                q = self._normed(builder, q, f"{source}.{parts.q_norm}", f"{label}.q", self.heads)
            k, v = self._key_and_value(builder, self.memory or x, source, label)
        if parts.fused and self._norm_follows() and self.qk_norm is not None:
            q, k = self._both_normed(builder, (q, k), source, label, self.qk_norm)
        if self.clip:
            q, k, v = (builder.node("Clip", y, name=f"{y}.clipped", min=-self.clip, max=self.clip) for y in (q, k, v))
        return q, k, v

    def _key_and_value(self, builder: Builder, x: str, source: str, label: str) -> tuple[str, str]:
        parts, field = self.parts, "num_key_value_heads"
        if self.shared_with is not None:
            unused = (parts.k, parts.v, parts.k_norm)
            names = (f"{source}.{module}.{kind}" for module in unused for kind in ("weight", "bias"))
            builder.leave_out(names, "their layers take the keys and values of others")
            return builder.keys_and_values[f"kv.{self.shared_with}"]
        k = self._linear(builder, x, f"{source}.{parts.k}", f"{label}.k", self.kv_heads, field)
        if self.key_multiplier != 1:
            k = builder.scaled(k, self.key_multiplier, f"{label}.k.scaled")
        v = k
        if self._norm_follows():
            k = self._normed(builder, k, f"{source}.{parts.k_norm}", f"{label}.k", self.kv_heads)
        if not self.values_are_keys:
            v = self._linear(builder, x, f"{source}.{parts.v}", f"{label}.v", self.kv_heads, field)
        if self.value_norm:
            norm = QueryKeyNorm(self.value_norm, weight=False)
            v = self._normed(builder, v, "", f"{label}.v", self.kv_heads, norm)
        return k, v

    def _gated_query(self, builder: Builder, x: str, source: str, label: str) -> tuple[str, str]:
        both = self._linear(
            builder, x, f"{source}.{self.parts.q}", f"{label}.qg", 2 * self.heads, "num_attention_heads"
        )
        size, width = self.head_dim, self.heads * self.head_dim
        split = builder.node("Reshape", both, name=f"{label}.qg.heads", shape=[0, 0, self.heads, 2 * size])
        joined = []
        for part, start in (("q", 0), ("gate", size)):
            name = f"{label}.{part}"
            cut = builder.node("Slice", split, name=f"{name}.heads", starts=[start], ends=[start + size], axes=[3])
            joined.append(builder.node("Reshape", cut, name=name, shape=[0, 0, width]))
        q, gate = joined
        if self._norm_follows():
            q = self._normed(builder, q, f"{source}.{self.parts.q_norm}", f"{label}.q", self.heads)
        return q, gate

    def _gated_heads(self, builder: Builder, mixed: str, x: str, source: str, label: str) -> str:
        """Each head times one number."""
        shape = (self.heads, self.hidden)
        gate = builder.linear(
            x,
            f"{source}.{self.parts.head_gate}",
            shape,
            "num_attention_heads, hidden_size",
            f"{label}.gate",
            bias=False,
        )
        opened = builder.node("Sigmoid", gate, name=f"{label}.gate.opened")
        factors = builder.node("Reshape", opened, name=f"{label}.gate.heads", shape=[0, 0, self.heads, 1])
        split = builder.node("Reshape", mixed, name=f"{label}.heads", shape=[0, 0, self.heads, self.head_dim])
        gated = builder.node("Mul", split, factors, name=f"{label}.heads.gated")
        return builder.node("Reshape", gated, name=f"{label}.gated", shape=[0, 0, self.heads * self.head_dim])

    def _norm_follows(self) -> bool:
        """Whether queries and keys are normed right behind their projections."""
        return self.qk_norm is not None and not self.qk_norm.after_rotation

    def _linear(self, builder: Builder, x: str, module: str, name: str, heads: int, field: str) -> str:
        fields = ", ".join(dict.fromkeys((field, self.size_field, "hidden_size")))
        weight = builder.weight(f"{module}.weight", (heads * self.head_dim, self.hidden), fields)
        biased = self.qkv_bias and name.rpartition(".")[2] not in self.parts.unbiased
        bias = builder.bias(f"{module}.bias", heads * self.head_dim, biased, "attention_bias")
        return builder.node("Linear", x, weight, bias, name=name)

    def _split(self, builder: Builder, x: str, module: str, label: str) -> tuple[str, ...]:
        """One projection for queries, keys and values, and the three as slices of its result."""
        counts = (self.heads, self.kv_heads, self.kv_heads)
        rows = sum(counts) * self.head_dim
        fields = "num_attention_heads, num_key_value_heads, head_dim, hidden_size"
        weight = builder.matrix(f"{module}.weight", (rows, self.hidden), fields)
        bias = builder.bias(f"{module}.bias", rows, self.qkv_bias, "attention_bias")
        out = builder.node("Linear", x, weight, bias, name=f"{label}.qkv")
        names = tuple(f"{label}.{part}" for part in "qkv")
        if not self.parts.fused_by_head:
            stops = np.cumsum([count * self.head_dim for count in counts]).tolist()
            return tuple(
                builder.node("Slice", out, name=name, starts=[start], ends=[stop], axes=[2])
                for name, start, stop in zip(names, [0, *stops], stops, strict=False)
            )
        split = builder.node("Reshape", out, name=f"{label}.heads", shape=[0, 0, self.heads, 3 * self.head_dim])
        sliced = [
            builder.node(
                "Slice",
                split,
                name=f"{name}.heads",
                starts=[i * self.head_dim],
                ends=[(i + 1) * self.head_dim],
                axes=[3],
            )
            for i, name in enumerate(names)
        ]
        width = self.heads * self.head_dim
        return tuple(
            builder.node("Reshape", part, name=name, shape=[0, 0, width])
            for part, name in zip(sliced, names, strict=True)
        )

    # ---- norms of queries and keys

    def _both_normed(
        self, builder: Builder, both: tuple[str, str], source: str, label: str, norm: QueryKeyNorm
    ) -> tuple[str, str]:
        suffix = ".turned" if norm.after_rotation else ""
        q = self._normed(builder, both[0], f"{source}.{self.parts.q_norm}", f"{label}.q{suffix}", self.heads)
        k = self._normed(builder, both[1], f"{source}.{self.parts.k_norm}", f"{label}.k{suffix}", self.kv_heads)
        return q, k

    def _rotated(self, builder: Builder, x: str, name: str, layer: int, rope: Attr) -> str:
        heads = self.heads if name.endswith(".q") else self.kv_heads
        return builder.node("Rotary", x, name=f"{name}.turned", heads=heads, rope=rope, length_of=f"kv.{layer}")

    def _normed(
        self, builder: Builder, x: str, module: str, name: str, heads: int, norm: QueryKeyNorm | None = None
    ) -> str:
        norm, size = norm or self.qk_norm, self.head_dim
        if norm is None:
            return x
        op = "RMSNormalization" if norm.kind == "rms" else "LayerNormalization"
        shape = {"head": (size,), "heads": (heads, size), "width": (heads * size,)}
        if not norm.weight:
            stored = builder.constant(f"{name}.norm.ones", np.ones(size, np.float32))
        elif norm.over == "separate":
            stored = _stacked(builder, module, heads, size)
        else:
            stored = builder.weight(f"{module}.weight", shape[norm.over], "head_dim")
        stored = builder.shifted(stored, norm.offset)
        if norm.over == "width":
            return builder.node(op, x, stored, name=f"{name}.norm", epsilon=norm.epsilon)
        split = builder.node("Reshape", x, name=f"{name}.split", shape=[0, 0, heads, size])  # [B, T, heads, D]
        if norm.over in ("heads", "separate"):
            ones = builder.constant(f"{name}.ones", np.ones(size, np.float32))
            split = builder.node(op, split, ones, name=f"{name}.norm", epsilon=norm.epsilon)
            split = builder.node("Mul", split, stored, name=f"{name}.weighted")
        else:
            split = builder.node(op, split, stored, name=f"{name}.norm", epsilon=norm.epsilon)
        return builder.node("Reshape", split, name=f"{name}.joined", shape=[0, 0, heads * size])  # [B, T, heads * D]


def _stacked(builder: Builder, module: str, heads: int, size: int) -> str:
    """The weights of norms that are a module per head, as one constant [heads, size]."""
    names = [builder.weight(f"{module}.norms.{head}.weight", (size,), "head_dim") for head in range(heads)]
    stacked = np.stack([builder.model.tensors[name].decode() for name in names])
    return builder.constant(f"{module}.norms", stacked)


def cacheless(hidden: int, heads: int, size: int, **more: Any) -> SelfAttention:
    """Attention over a whole sequence at once, with a key head per query head; `more` as for `SelfAttention`."""
    settings = {"scale": size**-0.5, "cached": False, "mask": "", **more}
    return SelfAttention(hidden, heads, heads, size, 0, 0, **settings)


def read_interleaved(config: Config, default: bool = False) -> bool:
    """Whether pairs of rotary positions are neighbours: `rope_interleaved`, which readers of GGUF files set."""
    return config.flag("rope_interleaved", default)


def rotation_attribute(builder: Builder, rotation: Rotation) -> dict[str, Attr]:
    """The attribute `rope`; the constant of the frequencies is made once."""
    rope = rotation.rope
    if rope.note and rope.note not in builder.model.notes:
        builder.model.notes.append(rope.note)
    if rotation.name not in builder.constants:
        builder.constant(rotation.name, rope.inv_freq / _divisors(builder, rope))
    attribute: dict[str, Any] = {
        "inv_freq": rotation.name,
        "rotary_dim": rope.rotary_dim,
        "interleaved": rotation.interleaved,
        "factor": rope.factor,
    }
    if rope.long is not None:
        attribute["long"] = _long_attribute(builder, rotation.name, rope.long)
    return attribute


def _long_attribute(builder: Builder, name: str, long: Mapping[str, Any]) -> dict[str, Any]:
    if "inv_freq" not in long:
        return dict(long)
    constant = f"{name}.long"
    if constant not in builder.constants:
        builder.constant(constant, long["inv_freq"])
    return {**long, "inv_freq": constant}


def _divisors(builder: Builder, rope: Rope) -> Float32:
    """What a GGUF file divides the frequencies by: Llama 3's scaling is kept there as a tensor."""
    tensors, shape = builder.model.tensors, rope.inv_freq.shape
    if builder.model.dialect != "gguf" or ROPE_FACTORS not in tensors:
        return np.ones(shape, np.float32)
    stored = tensors[ROPE_FACTORS]
    where = f"config.json: head_dim; tensor {ROPE_FACTORS}"
    if stored.shape != shape:
        raise BadFileError(
            "the configuration contradicts itself", where=where, found=stored.shape, allowed=f"shape {list(shape)}"
        )
    factors = stored.decode()
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise BadFileError(
            "the configuration contradicts itself",
            where=f"config.json: tensor {ROPE_FACTORS}",
            found="zero, negative or not finite",
            allowed="numbers above 0",
        )
    return factors
