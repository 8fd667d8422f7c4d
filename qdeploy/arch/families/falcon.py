"""Falcon-H1 (arXiv 2507.22448): attention and Mamba-2 side by side in every layer, with multipliers throughout.

x = x + ssm_out * mamba(ssm_in * norm(x)) + attention_out * attention(attention_in * norm(x))
x = x + down * mlp(norm(x)), whose gate is multiplied before its activation
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import ACTIVATIONS, Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.names import DECODER_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm
from qdeploy.arch.recurrent import Mamba2, linear
from qdeploy.arch.recurrent_config import limits
from qdeploy.arch.stack import Block, Decoder, Modules
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_PLACEMENT = Placement(before_mixer="input_layernorm", before_mlp="pre_ff_layernorm")


@dataclass(frozen=True)
class _Scaled:
    """A block between two multipliers."""

    block: Block
    before: float
    after: float

    def add(self, builder: Builder, layer: int, x: str, name: str) -> str:
        if self.before != 1:
            x = builder.scaled(x, self.before, f"layers.{layer}.{name}.before")
        out = self.block.add(builder, layer, x)
        return out if self.after == 1 else builder.scaled(out, self.after, f"layers.{layer}.{name}.after")


@dataclass(frozen=True)
class _Both:
    """Two blocks on one value, added up."""

    mamba: _Scaled
    attention: _Scaled

    def add(self, builder: Builder, layer: int, x: str) -> str:
        first = self.mamba.add(builder, layer, x, "mamba")
        second = self.attention.add(builder, layer, x, "self_attn")
        return builder.node("Add", first, second, name=f"layers.{layer}.mixers")


@dataclass(frozen=True)
class _Mlp:
    """The MLP: down(up(x) * act(gate(x) * first)) * last."""

    hidden: int
    inner: int
    activation: str
    bias: bool
    first: float
    last: float

    def add(self, builder: Builder, layer: int, x: str) -> str:
        source, name = f"model.layers.{layer}.feed_forward", f"layers.{layer}.mlp"
        shape = (self.inner, self.hidden)
        gate = linear(builder, x, f"{source}.gate_proj", shape, f"{name}.gate", self.bias)
        up = linear(builder, x, f"{source}.up_proj", shape, f"{name}.up", self.bias)
        gate = gate if self.first == 1 else builder.scaled(gate, self.first, f"{name}.gate.scaled")
        inner = builder.node("Mul", up, builder.activation(self.activation, gate, f"{name}.act"), name=f"{name}.mul")
        out = linear(builder, inner, f"{source}.down_proj", shape[::-1], f"{name}.down", self.bias)
        return out if self.last == 1 else builder.scaled(out, self.last, name)


def build(model: Model) -> Graph:
    """Builds the graph of a FalconH1ForCausalLM."""
    config = Config(model.config)
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    bias = config.flag("attention_bias", False)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 8192),
        qkv_bias=bias,
        o_bias=bias,
        key_multiplier=config.number("key_multiplier", 1.0),
    )
    mamba = _Scaled(_mamba(config, hidden), 1.0, config.number("ssm_out_multiplier", 1.0))
    between = [config.number(f"attention_{side}_multiplier", 1.0) for side in ("in", "out")]
    first, last = config.entries("mlp_multipliers", 2, (int, float)) if config.has("mlp_multipliers") else (1.0, 1.0)
    activation = config.choose("hidden_act", ACTIVATIONS, "silu")
    inner = config.size("intermediate_size")
    mlp = _Mlp(hidden, inner, activation, config.flag("mlp_bias", False), float(first), float(last))
    decoder = Decoder(
        config.text("model_type"),
        NAMES,
        _PLACEMENT.layers([_Both(mamba, _Scaled(block, between[0], between[1])) for block in attention], mlp),
        attention[0].capacity,
        rms_norm(config, 1e-5),
        embedding_multiplier=config.number("embedding_multiplier", 1.0),
        logits_multiplier=config.number("lm_head_multiplier", 1.0),
        modules=Modules(norm="model.final_layernorm"),
        refused={"projectors_bias": (config.flag("mamba_proj_bias", False), False)},
    )
    return build_decoder(model, config, decoder)


def _mamba(config: Config, hidden: int) -> Mamba2:
    heads, groups = config.size("mamba_n_heads", 128), config.size("mamba_n_groups", 1)
    inner = config.size("mamba_d_ssm", config.size("mamba_expand", 2) * hidden)
    absent = config.fields.get("mamba_d_head", "auto") == "auto"
    multipliers = config.entries("ssm_multipliers", 5, (int, float)) if config.has("ssm_multipliers") else ()
    return Mamba2(
        hidden,
        heads,
        inner // heads if absent else config.size("mamba_d_head"),
        groups,
        config.size("mamba_d_state", 256),
        config.size("mamba_d_conv", 4),
        config.positive("rms_norm_eps", 1e-5),
        config.flag("mamba_conv_bias", True),
        config.flag("mamba_proj_bias", False),
        config.flag("mamba_rms_norm", False),
        norm_groups=groups,
        norm_first=config.flag("mamba_norm_before_gate", True),
        limits=limits(config),
        multipliers=tuple(float(m) for m in multipliers),
        in_multiplier=config.number("ssm_in_multiplier", 1.0),
    )


NAMES = Names(
    (
        *renamed(DECODER_ROWS, (".mlp.", ".feed_forward."), ("post_attention_layernorm", "pre_ff_layernorm")),
        ("model.final_layernorm", "output_norm"),
        ("model.layers.{i}.mamba.in_proj", "blk.{i}.ssm_in"),
        ("model.layers.{i}.mamba.conv1d", "blk.{i}.ssm_conv1d"),
        ("model.layers.{i}.mamba.norm", "blk.{i}.ssm_norm"),
        ("model.layers.{i}.mamba.out_proj", "blk.{i}.ssm_out"),
    )
)
FAMILY = Family(name="falcon", heads={"falcon_h1": ("FalconH1ForCausalLM",)}, names=NAMES, build=build)
