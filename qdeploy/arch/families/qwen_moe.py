"""Qwen2-MoE and Qwen3-MoE: the attention of Qwen2 and Qwen3, and experts in most layers.

Layers of `mlp_only_layers`, and those between every `decoder_sparse_step`-th, have a plain MLP. Qwen2-MoE has a shared
expert besides, times the sigmoid of a projection to one number.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Qwen2MoeForCausalLM or a Qwen3MoeForCausalLM."""
    config = Config(model.config)
    third = config.text("model_type") == "qwen3_moe"
    default = 4 if third else 16
    head_dim, kv_heads = heads_of(config, kv_heads=min(default, config.size("num_attention_heads")))
    layers, norm = layer_count(model, config), rms_norm(config)
    bias = config.flag("attention_bias", False) if third else config.flag("qkv_bias", True)
    attention = attention_layers(
        config,
        _windows(config, layers, third),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 32768),
        qkv_bias=bias,
        o_bias=bias and third,
        qk_norm=QueryKeyNorm(norm.epsilon) if third else None,
    )
    return build_decoder(model, config, standard_decoder(config, NAMES, attention, _mlps(config, layers, third), norm))


def _windows(config: Config, layers: int, third: bool) -> tuple[int, ...]:
    sliding = config.flag("use_sliding_window", False)
    window = config.size("sliding_window", 4096) if sliding and config.has("sliding_window") else 0
    kinds = [] if third else check_layer_types(config, layers, ("full_attention", "sliding_attention"))
    if kinds:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if third:
        return (window,) * layers
    last = config.number("max_window_layers", 28)
    return tuple(window if i % 2 == 0 and i < last else 0 for i in range(layers))


def _mlps(config: Config, layers: int, third: bool) -> list[Block]:
    hidden, activation = config.size("hidden_size"), config.choose("hidden_act", ACTIVATIONS, "silu")
    count = config.size("num_experts", config.size("num_local_experts", 128 if third else 60))
    config.read |= {"num_experts", "num_local_experts"}
    shared = None
    if not third:
        size = config.size("shared_expert_intermediate_size", 5632)
        shared = Mlp(hidden, size, activation, module="mlp.shared_expert")
    experts = Experts(
        hidden,
        config.size("moe_intermediate_size", 768 if third else 1408),
        count,
        activation,
        Routing(config.size("num_experts_per_tok", 8 if third else 4), normalize=config.flag("norm_topk_prob", False)),
        shared=shared,
        shared_gate="" if third else "shared_expert_gate",
    )
    step, plain = config.size("decoder_sparse_step", 1), config.fields.get("mlp_only_layers") or []
    dense = gated_mlp(config)
    return [experts if i not in plain and (i + 1) % step == 0 else dense for i in range(layers)]


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = {**decoder_config(metadata, shapes, interleaved=False), **expert_config(metadata)}
    if kind == "qwen2_moe":
        del config["attention_bias"], config["mlp_bias"]
        shared = metadata.get("expert_shared_feed_forward_length", metadata.get("feed_forward_length"))
        return {**config, "shared_expert_intermediate_size": shared}
    return {**config, "norm_topk_prob": True}  # as llama.cpp has it


NAMES = Names(
    (
        *DECODER_ROWS,
        *renamed(EXPERT_ROWS, ("shared_experts", "shared_expert")),
        ("model.layers.{i}.mlp.shared_expert_gate", "blk.{i}.ffn_gate_inp_shexp"),
    )
)
FAMILY = Family(
    name="qwen_moe",
    heads={"qwen2_moe": ("Qwen2MoeForCausalLM",), "qwen3_moe": ("Qwen3MoeForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={
        "qwen2moe": Gguf(
            _gguf_config,
            lambda metadata: "qwen2_moe",
            understood=EXPERT_FIELDS | {"expert_shared_feed_forward_length"},
        ),
        "qwen3moe": Gguf(_gguf_config, lambda metadata: "qwen3_moe", understood=EXPERT_FIELDS),
    },
)
