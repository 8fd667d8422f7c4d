"""Mixers with a state of fixed size: short convolutions (LFM2), gated delta rules (Qwen3-Next) and Mamba-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qdeploy.arch.builder import Builder
from qdeploy.ir.graph import State

_LINEAR = "linear_num_key_heads, linear_num_value_heads, linear_key_head_dim, linear_value_head_dim, hidden_size"
_MAMBA = "the heads, groups and state size of Mamba, hidden_size"


def part(builder: Builder, x: str, start: int, stop: int, name: str) -> str:
    """Columns [start, stop) of a value."""
    return builder.node("Slice", x, name=name, starts=[start], ends=[stop], axes=[2])


def of_heads(builder: Builder, x: str, heads: tuple[int, int], places: tuple[int, int], name: str) -> str:
    """Elements [start, stop) of each head; heads: how many, and of what extent."""
    (count, size), (start, stop) = heads, places
    split = builder.node("Reshape", x, name=f"{name}.split", shape=[0, 0, count, size])
    cut = builder.node("Slice", split, name=f"{name}.heads", starts=[start], ends=[stop], axes=[3])
    return builder.node("Reshape", cut, name=name, shape=[0, 0, count * (stop - start)])


def linear(builder: Builder, x: str, module: str, shape: tuple[int, int], name: str, bias: bool = False) -> str:
    """A stored projection."""
    return builder.linear(x, module, shape, _MAMBA, name, bias=bias)


def conv(
    builder: Builder,
    x: str,
    module: str,
    size: tuple[int, int],
    layer: int,
    bias: bool,
    activation: str = "",
    side: str = "",
) -> str:
    """A short convolution over `size` channels and tokens, and its state; `side` tells several of a layer apart."""
    channels, taps = size
    weight = builder.weight(f"{module}.weight", (channels, 1, taps), "the convolution's extents")
    stored = builder.bias(f"{module}.bias", channels, bias, "the convolution's bias")
    name = f"conv.{layer}.{side}".rstrip(".")
    builder.states.append(State(name, channels, taps - 1, kind="conv"))
    more = {"activation": activation} if activation else {}
    return builder.node("ShortConv", x, weight, stored, name=f"layers.{name}", state=name, **more)


def gated(builder: Builder, x: str, gate: str, name: str, kind: Literal["silu", "sigmoid"] = "silu") -> str:
    """X times an activation of the gate."""
    opened = builder.node("Sigmoid", gate, name=f"{name}.opened")
    if kind == "silu":
        opened = builder.node("Mul", gate, opened, name=f"{name}.active")
    return builder.node("Mul", x, opened, name=name)


@dataclass(frozen=True)
class ShortConv:
    """A block of a decoder's branch: out(c * conv(b * x)), where b, c, x = in(hidden).

    Attributes:
        hidden: Extent of the hidden axis.
        taps: Tokens that the convolution sees.
        bias: Whether projections and convolution have a bias.
        module: Of the layer.
        layers: The module that holds the layers.
    """

    hidden: int
    taps: int
    bias: bool = False
    module: str = "conv"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the projections and the convolution."""
        source, name, size = f"{self.layers}.{layer}.{self.module}", f"layers.{layer}.mixer", self.hidden
        wide = linear(builder, x, f"{source}.in_proj", (3 * size, size), f"{name}.in", self.bias)
        b, c, inner = (part(builder, wide, i * size, (i + 1) * size, f"{name}.{n}") for i, n in enumerate("bcx"))
        taken = builder.node("Mul", b, inner, name=f"{name}.taken")
        mixed = conv(builder, taken, f"{source}.conv", (size, self.taps), layer, self.bias)
        out = builder.node("Mul", c, mixed, name=f"{name}.given")
        return linear(builder, out, f"{source}.out_proj", (size, size), name, self.bias)


@dataclass(frozen=True)
class DeltaNet:
    """A block of a decoder's branch: the gated delta rule behind a short convolution; see `ir/recurrent.py`.

    Attributes:
        hidden: Extent of the hidden axis.
        key_heads: Of queries and keys.
        heads: Of values.
        key_dim: Extent of a head of queries and keys.
        value_dim: Extent of a head of values.
        taps: Tokens that the convolution sees.
        epsilon: Of the norm of the result.
        fused: Whether projections of queries, keys, values and gates are one, ordered by key head.
        module: Of the layer.
        layers: The module that holds the layers.
    """

    hidden: int
    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    taps: int
    epsilon: float
    fused: bool
    module: str = "linear_attn"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, convolution, the delta rule, a gated norm and the output projection."""
        source, name = f"{self.layers}.{layer}.{self.module}", f"layers.{layer}.mixer"
        keys, values = self.key_heads * self.key_dim, self.heads * self.value_dim
        qkv, z, a, b = (self._fused if self.fused else self._apart)(builder, x, source, name)
        mixed = conv(builder, qkv, f"{source}.conv1d", (2 * keys + values, self.taps), layer, False, "silu")
        q, k = (part(builder, mixed, i * keys, (i + 1) * keys, f"{name}.{n}.mixed") for i, n in enumerate("qk"))
        v = part(builder, mixed, 2 * keys, 2 * keys + values, f"{name}.v.mixed")
        stored = [builder.weight(f"{source}.{n}", (self.heads,), _LINEAR) for n in ("A_log", "dt_bias")]
        state = f"delta.{layer}"
        builder.states.append(State(state, self.heads, self.key_dim, kind="recurrent", value_dim=self.value_dim))
        heads: dict[str, Any] = {"heads": self.heads, "key_heads": self.key_heads, "state": state}
        out = builder.node("GatedDeltaNet", q, k, v, a, b, *stored, name=f"{name}.delta", **heads)
        split = builder.node("Reshape", out, name=f"{name}.split", shape=[0, 0, self.heads, self.value_dim])
        weight = builder.weight(f"{source}.norm.weight", (self.value_dim,), _LINEAR)
        normed = builder.node("RMSNormalization", split, weight, name=f"{name}.norm", epsilon=self.epsilon)
        joined = builder.node("Reshape", normed, name=f"{name}.joined", shape=[0, 0, values])
        out = gated(builder, joined, z, f"{name}.gated")
        return linear(builder, out, f"{source}.out_proj", (self.hidden, values), name)

    def _apart(self, builder: Builder, x: str, source: str, name: str) -> tuple[str, str, str, str]:
        values = self.heads * self.value_dim
        sizes = {"qkv": 2 * self.key_heads * self.key_dim + values, "z": values, "a": self.heads, "b": self.heads}
        return tuple(  # type: ignore[return-value]
            linear(builder, x, f"{source}.in_proj_{n}", (rows, self.hidden), f"{name}.{n}") for n, rows in sizes.items()
        )

    def _fused(self, builder: Builder, x: str, source: str, name: str) -> tuple[str, str, str, str]:
        """One projection for q, k, v and z, one for b and a; each ordered by key head."""
        count, size, each = self.key_heads, self.key_dim, self.heads // self.key_heads
        wide = 2 * size + 2 * each * self.value_dim
        both = linear(builder, x, f"{source}.in_proj_qkvz", (count * wide, self.hidden), f"{name}.qkvz")
        ends = np.cumsum([size, size, each * self.value_dim, each * self.value_dim]).tolist()
        places = list(zip([0, *ends], ends, strict=False))
        q, k, v, z = (
            of_heads(builder, both, (count, wide), place, f"{name}.{n}")
            for n, place in zip("qkvz", places, strict=True)
        )
        ba = linear(builder, x, f"{source}.in_proj_ba", (2 * self.heads, self.hidden), f"{name}.ba")
        b = of_heads(builder, ba, (count, 2 * each), (0, each), f"{name}.b")
        a = of_heads(builder, ba, (count, 2 * each), (each, 2 * each), f"{name}.a")
        qk = builder.node("Concat", q, k, name=f"{name}.qk", axis=2)
        return builder.node("Concat", qk, v, name=f"{name}.qkv", axis=2), z, a, b


@dataclass(frozen=True)
class Mamba2:
    """A block of a decoder's branch: a selective state space behind a short convolution; see `ir/recurrent.py`.

    Attributes:
        hidden: Extent of the hidden axis.
        heads: Of the state space.
        head_dim: Extent of a head.
        groups: Of what goes into the states and comes out of them.
        state: Extent of a state.
        taps: Tokens that the convolution sees.
        epsilon: Of the norm of the result.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections have one.
        norm: Whether the gated result is normed, by groups.
        norm_groups: How many.
        norm_first: Whether the norm stands before the gate.
        limits: The least and the greatest step; 0 for no greatest.
        multipliers: Of gate, x, b, c and dt; empty for none.
        in_multiplier: Multiplied into what the block takes.
        module: Of the layer.
        layers: The module that holds the layers.
    """

    hidden: int
    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    epsilon: float
    conv_bias: bool = True
    bias: bool = False
    norm: bool = True
    norm_groups: int = 1
    norm_first: bool = False
    limits: tuple[float, float] = (0.0, 0.0)
    multipliers: tuple[float, ...] = ()
    in_multiplier: float = 1.0
    module: str = "mamba"
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, convolution, the state space, a gated norm and the output projection."""
        source, name = f"{self.layers}.{layer}.{self.module}", f"layers.{layer}.mamba"
        inner, wide = self.heads * self.head_dim, self.groups * self.state
        if self.in_multiplier != 1:
            x = builder.scaled(x, self.in_multiplier, f"{name}.scaled")
        rows = 2 * inner + 2 * wide + self.heads
        every = linear(builder, x, f"{source}.in_proj", (rows, self.hidden), f"{name}.in", self.bias)
        if self.multipliers:
            sizes = (inner, inner, wide, wide, self.heads)
            factors = np.repeat(np.array(self.multipliers, np.float32), sizes)
            every = builder.node("Mul", every, builder.constant(f"{name}.factors", factors), name=f"{name}.multiplied")
        gate = part(builder, every, 0, inner, f"{name}.gate")
        mixed = part(builder, every, inner, 2 * inner + 2 * wide, f"{name}.xbc")
        dt = part(builder, every, rows - self.heads, rows, f"{name}.dt")
        size = (inner + 2 * wide, self.taps)
        mixed = conv(builder, mixed, f"{source}.conv1d", size, layer, self.conv_bias, "silu")
        ends = [0, inner, inner + wide, inner + 2 * wide]
        parts = [part(builder, mixed, ends[i], ends[i + 1], f"{name}.{n}") for i, n in enumerate("xbc")]
        scanned = self._scanned(builder, source, name, layer, dt, *parts)
        return self._out(builder, source, name, scanned, gate)

    def _scanned(self, builder: Builder, source: str, name: str, layer: int, dt: str, x: str, b: str, c: str) -> str:
        stored = [builder.weight(f"{source}.{n}", (self.heads,), _MAMBA) for n in ("A_log", "D", "dt_bias")]
        state = f"ssm.{layer}"
        builder.states.append(State(state, self.heads, self.head_dim, kind="recurrent", value_dim=self.state))
        least, most = self.limits
        limits = {n: value for n, value in (("least", least), ("most", most)) if value}
        attributes: dict[str, Any] = {"heads": self.heads, "groups": self.groups, "state": state, **limits}
        return builder.node("Mamba2", x, dt, b, c, *stored, name=f"{name}.scan", **attributes)

    def _out(self, builder: Builder, source: str, name: str, x: str, gate: str) -> str:
        inner = self.heads * self.head_dim
        if not self.norm_first or not self.norm:
            x = gated(builder, x, gate, f"{name}.gated")
        if self.norm:
            x = self._normed(builder, source, name, x, inner)
        if self.norm_first and self.norm:
            x = gated(builder, x, gate, f"{name}.gated")
        return linear(builder, x, f"{source}.out_proj", (self.hidden, inner), name, self.bias)

    def _normed(self, builder: Builder, source: str, name: str, x: str, inner: int) -> str:
        weight, size = builder.weight(f"{source}.norm.weight", (inner,), _MAMBA), inner // self.norm_groups
        if self.norm_groups == 1:
            return builder.node("RMSNormalization", x, weight, name=f"{name}.norm", epsilon=self.epsilon)
        split = builder.node("Reshape", x, name=f"{name}.groups", shape=[0, 0, self.norm_groups, size])
        ones = builder.constant(f"{name}.ones", np.ones(size, np.float32))
        split = builder.node("RMSNormalization", split, ones, name=f"{name}.norm", epsilon=self.epsilon)
        joined = builder.node("Reshape", split, name=f"{name}.normed", shape=[0, 0, inner])
        return builder.node("Mul", joined, weight, name=f"{name}.weighted")
