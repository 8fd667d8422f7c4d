"""Granite: the Llama decoder with multipliers on embeddings, attention scores, branches and logits.

    granite      a gated MLP
    granitemoe   experts, chosen by their logits; their weights are the softmax of those that were chosen

The fields are those of `GraniteConfig` of transformers: `attention_multiplier` is the scale of the scores, and logits
are divided by `logits_scaling`.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a GraniteForCausalLM or a GraniteMoeForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, context = config.flag("attention_bias", False), config.size("max_position_embeddings", 2048)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        context,
        scale=config.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        o_bias=bias,
    )
    decoder = standard_decoder(
        config,
        NAMES,
        attention,
        _experts(config) if config.text("model_type") == "granitemoe" else _mlp(config),
        rms_norm(config),
        residual_multiplier=config.number("residual_multiplier", 1.0),
        embedding_multiplier=config.number("embedding_multiplier", 1.0),
        logits_multiplier=1 / config.positive("logits_scaling", 1.0),
    )
    return build_decoder(model, config, decoder)


def _mlp(config: Config) -> Block:
    return gated_mlp(config, bias=config.flag("mlp_bias", False))


def _experts(config: Config) -> Block:
    count = config.size("num_local_experts", 8)
    config.read.add("num_experts")
    config.refuse({"num_experts": (count,), "mlp_bias": (False,), "shared_intermediate_size": (0,)})
    return Experts(
        config.size("hidden_size"),
        config.size("intermediate_size"),
        count,
        config.choose("hidden_act", ACTIVATIONS, "silu"),
        Routing(config.size("num_experts_per_tok", 2), "softmax_of_chosen"),
        parts=ExpertParts("router.layer", "", fused="input_linear", fused_down="output_linear", suffix=".weight"),
        module="block_sparse_moe",
    )


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = decoder_config(metadata, shapes, interleaved=True)
    return {**config, **expert_config(metadata, "num_local_experts")} if kind == "granitemoe" else config


_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
NAMES = Names(
    (
        *DECODER_ROWS,
        ("model.layers.{i}.block_sparse_moe.router.layer", "blk.{i}.ffn_gate_inp"),
        *renamed(EXPERT_ROWS[1:4], ("mlp.experts", "block_sparse_moe")),
    )
)
FAMILY = Family(
    name="granite",
    heads={"granite": ("GraniteForCausalLM",), "granitemoe": ("GraniteMoeForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={
        "granite": Gguf(_gguf_config, fields=_MULTIPLIERS),
        "granitemoe": Gguf(_gguf_config, fields=_MULTIPLIERS, understood=EXPERT_FIELDS),
    },
    genai={"granite": "granite"},
)
