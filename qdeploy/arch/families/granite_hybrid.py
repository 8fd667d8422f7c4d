"""Granite 4: Mamba-2 in most layers, attention in the others, often without positions; experts and a shared MLP.

The multipliers are those of Granite. `layer_types` says "mamba" or "linear_attention", "attention" or "full_attention".
"""

from __future__ import annotations

from dataclasses import replace

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PRE
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, rms_norm
from qdeploy.arch.recurrent import Mamba2
from qdeploy.arch.recurrent_config import limits
from qdeploy.arch.stack import Block, Decoder
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_KINDS = ("mamba", "linear_attention", "attention", "full_attention")


def build(model: Model) -> Graph:
    """Builds the graph of a GraniteMoeHybridForCausalLM."""
    config = Config(model.config)
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    head_dim, kv_heads = heads_of(config)
    bias = config.flag("attention_bias", False)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 2048),
        scale=config.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        o_bias=bias,
    )
    if config.fields.get("position_embedding_type") != "rope":
        config.refuse({"position_embedding_type": ("nope",)})
        attention = [replace(block, rotation=None) for block in attention]
    mamba = _mamba(config, hidden)
    kinds = check_layer_types(config, layers, _KINDS) or ["mamba"] * layers
    mixers: list[Block] = [attention[i] if kind in _KINDS[2:] else mamba for i, kind in enumerate(kinds)]
    decoder = Decoder(
        config.text("model_type"),
        NAMES,
        PRE.layers(mixers, _mlp(config, hidden)),
        attention[0].capacity,
        rms_norm(config, 1e-6),
        residual_multiplier=config.number("residual_multiplier", 1.0),
        embedding_multiplier=config.number("embedding_multiplier", 1.0),
        logits_multiplier=1 / config.positive("logits_scaling", 1.0),
        refused={"mlp_bias": (False,), "normalization_function": ("rmsnorm",)},
    )
    return build_decoder(model, config, decoder)


def _mamba(config: Config, hidden: int) -> Mamba2:
    heads = config.size("mamba_n_heads", 128)
    inner = config.size("mamba_expand", 2) * hidden
    absent = config.fields.get("mamba_d_head", "auto") == "auto"
    return Mamba2(
        hidden,
        heads,
        inner // heads if absent else config.size("mamba_d_head"),
        config.size("mamba_n_groups", 1),
        config.size("mamba_d_state", 256),
        config.size("mamba_d_conv", 4),
        config.positive("rms_norm_eps", 1e-6),
        config.flag("mamba_conv_bias", True),
        config.flag("mamba_proj_bias", False),
        norm_groups=config.size("mamba_n_groups", 1),
        limits=limits(config),
    )


def _mlp(config: Config, hidden: int) -> Block:
    activation = config.choose("hidden_act", ACTIVATIONS, "silu")
    parts = MlpParts(fused="input_linear", down="output_linear")
    shared = Mlp(hidden, config.size("shared_intermediate_size", 1024), activation, parts=parts, module="shared_mlp")
    count = int(config.number("num_local_experts", 8))
    config.read |= {"num_experts", "num_experts_per_tok"}
    if not count:
        return shared
    return Experts(
        hidden,
        config.size("intermediate_size"),
        count,
        activation,
        Routing(config.size("num_experts_per_tok", 2), "softmax_of_chosen"),
        shared=shared,
        parts=ExpertParts("router.layer", "", fused="input_linear", fused_down="output_linear", suffix=".weight"),
        module="block_sparse_moe",
    )


NAMES = Names(DECODER_ROWS)
FAMILY = Family(
    name="granite_hybrid",
    heads={"granitemoehybrid": ("GraniteMoeHybridForCausalLM",)},
    names=NAMES,
    build=build,
)
