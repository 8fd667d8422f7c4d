"""Causal self-attention with grouped heads, rotary positions and a key/value cache.

    q, k, v = linear(x);  q, k = norm(q), norm(k)  where the family has such norms
    o(softmax(scores(rope(q), rope(k))) v),   scores = q k^T * scale, softcapped where the family says so

Parameters are `<module>.{q,k,v,o}_proj` and `<module>.{q,k}_norm` of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.arch.names import ROPE_FACTORS
from qdeploy.arch.rope import Rope
from qdeploy.errors import BadFileError
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
    """An RMS norm of queries and of keys.

    Attributes:
        epsilon: Of the norm.
        over: "head": each head by itself (Qwen3); "width": all heads together (OLMo 2).
        offset: Added to the stored weights.
    """

    epsilon: float
    over: Literal["head", "width"] = "head"
    offset: float = 0.0


@dataclass(frozen=True)
class SelfAttention:
    """A block of a decoder's branch; see `decoder.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Extent of a head.
        window: How many keys a query sees; 0 for all.
        capacity: Positions that the cache may be asked for.
        scale: Multiplied into the scores.
        rotation: Rotary positions; None for a layer without.
        qkv_bias: Query, key and value projections have a bias.
        o_bias: The output projection has one.
        qk_norm: None for none.
        softcap: c of c * tanh(scores / c); 0 for none.
        module: Of the layer.
        size_field: The field of config.json that says `head_dim`; for errors.
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
    module: str = "self_attn"
    size_field: str = "num_attention_heads"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, attention over the layer's cache, and the output projection."""
        source, label = f"model.layers.{layer}.{self.module}", f"layers.{layer}.self_attn"
        q = self._heads(builder, x, f"{source}.q_proj", f"{label}.q", self.heads, "num_attention_heads")
        k = self._heads(builder, x, f"{source}.k_proj", f"{label}.k", self.kv_heads, "num_key_value_heads")
        v = self._heads(builder, x, f"{source}.v_proj", f"{label}.v", self.kv_heads, "num_key_value_heads")
        builder.states.append(State(f"kv.{layer}", self.kv_heads, self.head_dim, capacity=self.capacity))
        mixed = builder.node("Attention", q, k, v, name=label, **self._attributes(builder, layer))
        fields = "hidden_size, num_attention_heads, head_dim"
        weight = builder.weight(f"{source}.o_proj.weight", (self.hidden, self.heads * self.head_dim), fields)
        bias = builder.bias(f"{source}.o_proj.bias", self.hidden, self.o_bias, "attention_bias")
        return builder.node("Linear", mixed, weight, bias, name=f"{label}.o")

    def _attributes(self, builder: Builder, layer: int) -> dict[str, Attr]:
        attributes: dict[str, Attr] = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "causal": True,
            "scale": self.scale,
            "window": self.window,
            "state": f"kv.{layer}",
        }
        if self.rotation is not None:
            attributes["rope"] = _rotation(builder, self.rotation)
        if self.softcap:
            attributes["softcap"] = self.softcap
        return attributes

    def _heads(self, builder: Builder, x: str, module: str, name: str, heads: int, field: str) -> str:
        fields = ", ".join(dict.fromkeys((field, self.size_field, "hidden_size")))
        weight = builder.weight(f"{module}.weight", (heads * self.head_dim, self.hidden), fields)
        bias = builder.bias(f"{module}.bias", heads * self.head_dim, self.qkv_bias, "attention_bias")
        out = builder.node("Linear", x, weight, bias, name=name)
        if self.qk_norm is None or name.endswith(".v"):
            return out
        return self._normed(builder, out, f"{module.replace('_proj', '_norm')}.weight", name, heads, self.qk_norm)

    def _normed(self, builder: Builder, x: str, weight: str, name: str, heads: int, norm: QueryKeyNorm) -> str:
        size = self.head_dim if norm.over == "head" else heads * self.head_dim
        stored = builder.weight(weight, (size,), "head_dim")
        if norm.offset:
            effective = builder.model.tensors[stored].decode() + np.float32(norm.offset)
            stored = builder.constant(f"{stored}.effective", effective)
        if norm.over == "width":
            return builder.node("RMSNormalization", x, stored, name=f"{name}.norm", epsilon=norm.epsilon)
        split = builder.node("Reshape", x, name=f"{name}.split", shape=[0, 0, heads, size])  # [B, T, heads, D]
        split = builder.node("RMSNormalization", split, stored, name=f"{name}.norm", epsilon=norm.epsilon)
        return builder.node("Reshape", split, name=f"{name}.joined", shape=[0, 0, heads * size])  # [B, T, heads * D]


def read_interleaved(config: Config) -> bool:
    """Whether pairs of rotary positions are neighbours: `rope_interleaved`, which readers of GGUF files set."""
    return config.flag("rope_interleaved", False)


def _rotation(builder: Builder, rotation: Rotation) -> dict[str, Attr]:
    """The attribute `rope`; the constant of the frequencies is made once."""
    rope = rotation.rope
    if rope.note and rope.note not in builder.model.notes:
        builder.model.notes.append(rope.note)
    if rotation.name not in builder.constants:
        builder.constant(rotation.name, rope.inv_freq / _divisors(builder, rope))
    return {
        "inv_freq": rotation.name,
        "rotary_dim": rope.rotary_dim,
        "interleaved": rotation.interleaved,
        "factor": rope.factor,
    }


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
