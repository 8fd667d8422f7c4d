"""Mixtral (arXiv 2401.04088) and PhiMoE: Llama's attention, and experts in every layer.

mixtral   the two best experts of a softmax over all, their weights divided by their sum
phimoe    two experts, chosen one after the other (SparseMixer-v2, arXiv 2409.12136); layer norms with a bias, and
projections with biases
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import MIXTRAL, Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.stack import Norm
from qdeploy.arch.windows import window_of
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_MODULE = "block_sparse_moe"


def build(model: Model) -> Graph:
    """Builds the graph of a MixtralForCausalLM or a PhimoeForCausalLM."""
    config = Config(model.config)
    phi = config.text("model_type") == "phimoe"
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    layers, context = layer_count(model, config), config.size("max_position_embeddings", 4096 * 32)
    window = window_of(config)
    bias = phi and config.flag("attention_bias", False)
    attention = attention_layers(config, (window,) * layers, head_dim, kv_heads, context, qkv_bias=bias, o_bias=bias)
    count = config.size("num_local_experts", 16 if phi else 8)
    config.read.add("num_experts")
    routing = Routing(config.size("num_experts_per_tok", 2), normalize=True)
    if phi:
        routing = Routing(routing.top_k, "mixer", jitter=config.number("router_jitter_noise", 0.01))
    activation = config.choose("hidden_act", ACTIVATIONS, "silu")
    size, inner = config.size("hidden_size"), config.size("intermediate_size")
    experts = Experts(size, inner, count, activation, routing, parts=MIXTRAL, module=_MODULE)
    norm = Norm("layer", config.positive("rms_norm_eps", 1e-5), bias=True) if phi else rms_norm(config, 1e-5)
    refused: dict[str, tuple[object, ...]] = {"num_experts": (count,), "attention_bias": (bias,)}
    decoder = standard_decoder(
        config,
        NAMES,
        attention,
        experts,
        norm,
        refused=refused,
        head_bias=phi and config.flag("lm_head_bias", False),
    )
    return build_decoder(model, config, decoder)


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = decoder_config(metadata, shapes, interleaved=False)
    return {**config, **expert_config(metadata, "num_local_experts"), "lm_head_bias": "output.bias" in shapes}


NAMES = Names(
    (
        *DECODER_ROWS,
        *renamed(EXPERT_ROWS, ("mlp", _MODULE), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")),
    )
)
FAMILY = Family(
    name="mixtral",
    heads={"mixtral": ("MixtralForCausalLM",), "phimoe": ("PhimoeForCausalLM", "PhiMoEForCausalLM")},
    names=NAMES,
    build=build,
    gguf={"phimoe": Gguf(_gguf_config, understood=EXPERT_FIELDS)},
    genai={"phimoe": "phimoe"},
)
