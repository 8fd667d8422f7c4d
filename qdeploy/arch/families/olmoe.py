"""OLMoE (arXiv 2409.02060): queries and keys are normed over all heads and limited, and every layer has experts."""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of an OlmoeForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, 1e-5)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 4096),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(norm.epsilon, "width"),
        clip=config.positive("clip_qkv") if config.has("clip_qkv") else 0.0,
    )
    experts = Experts(
        config.size("hidden_size"),
        config.size("intermediate_size"),
        config.size("num_experts", 64),
        config.choose("hidden_act", ACTIVATIONS, "silu"),
        Routing(config.size("num_experts_per_tok", 8), normalize=config.flag("norm_topk_prob", False)),
    )
    return build_decoder(model, config, standard_decoder(config, NAMES, attention, experts, norm))


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    return {**decoder_config(metadata, shapes, interleaved=False), **expert_config(metadata, "num_experts")}


NAMES = Names((*DECODER_ROWS, *EXPERT_ROWS))
FAMILY = Family(
    name="olmoe",
    heads={"olmoe": ("OlmoeForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={"olmoe": Gguf(_gguf_config, understood=EXPERT_FIELDS)},
)
