"""Llama 4 (text): attention within chunks, and experts of which a token takes one.

Of four layers, three attend within chunks of the sequence, with rotary positions; the fourth sees all keys, without
rotary positions, and scales queries by their position (arXiv 2501.19399).
Heads of queries and keys are normed behind the rotation, without a weight. Every `interleave_moe_layer_step`-th layer
has experts, whose weights (sigmoids) are multiplied into what they take, and a shared expert.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.self_attention import QueryKeyNorm, SelfAttention
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_KINDS = ("chunked_attention", "full_attention")


def build(model: Model) -> Graph:
    """Builds the graph of a Llama4ForCausalLM."""
    config = Config(model.config)
    layers = layer_count(model, config)
    norm = rms_norm(config, 1e-5)
    decoder = standard_decoder(config, NAMES, _attention(config, layers), _mlps(config, layers), norm)
    return build_decoder(model, config, decoder)


def _attention(config: Config, layers: int) -> list[SelfAttention]:
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(8, config.size("num_attention_heads")))
    interval = config.size("no_rope_layer_interval", 4)
    has_rope = [(i + 1) % interval != 0 for i in range(layers)]
    if config.fields.get("no_rope_layers"):  # the name notwithstanding, 1 stands for a layer with rotary positions
        has_rope = [bool(flag) for flag in config.entries("no_rope_layers", layers, int)]
    config.read.add("no_rope_layers")
    kinds = check_layer_types(config, layers, _KINDS) or [_KINDS[not rope] for rope in has_rope]
    chunk = config.size("attention_chunk_size", 8192) if _KINDS[0] in kinds else 0
    config.read.add("attention_chunk_size")
    bias, norm = config.flag("attention_bias", False), QueryKeyNorm(config.positive("rms_norm_eps", 1e-5), weight=False)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 131072),
        interleaved=True,
        qkv_bias=bias,
        o_bias=bias,
    )
    rotated = {"qk_norm": replace(norm, after_rotation=True) if config.flag("use_qk_norm", True) else None}
    plain = {"rotation": None, "position_scale": _position_scale(config)}
    return [
        replace(block, chunk=chunk if kind == _KINDS[0] else 0, **(rotated if rope else plain))
        for block, rope, kind in zip(attention, has_rope, kinds, strict=True)
    ]


def _position_scale(config: Config) -> dict[str, float] | None:
    length, beta = config.size("floor_scale", 8192), config.number("attn_scale", 0.1)
    tuned = config.fields.get("attn_temperature_tuning", True)
    config.read.add("attn_temperature_tuning")
    if not isinstance(tuned, bool | int):
        raise config.contradiction("attn_temperature_tuning", tuned, "true or false")
    return {"beta": beta, "length": float(length), "offset": 1.0} if tuned else None


def _mlps(config: Config, layers: int) -> list[Block]:
    hidden, inner = config.size("hidden_size"), config.size("intermediate_size")
    activation = config.choose("hidden_act", ACTIVATIONS, "silu")
    dense = Mlp(hidden, config.size("intermediate_size_mlp", 16384), activation, module="feed_forward")
    count = config.size("num_local_experts", 16)
    experts = Experts(
        hidden,
        inner,
        count,
        activation,
        Routing(config.size("num_experts_per_tok", 1), "sigmoid"),
        weighted="inputs",
        shared=Mlp(hidden, inner, activation, module="feed_forward.shared_expert"),
        parts=ExpertParts(router="router"),
        module="feed_forward",
    )
    step = config.size("interleave_moe_layer_step", 1)
    sparse = set(range(step - 1, layers, step))
    if config.has("moe_layers"):
        sparse = {int(i) for i in config.fields["moe_layers"]}
        if not sparse <= set(range(layers)):
            raise config.contradiction("moe_layers", sorted(sparse), f"layers 0..{layers - 1}")
    return [experts if i in sparse else dense for i in range(layers)]


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = {**decoder_config(metadata, shapes, interleaved=True), **expert_config(metadata, "num_local_experts")}
    config["intermediate_size_mlp"] = metadata.get("feed_forward_length", 16384)
    return {**config, "intermediate_size": metadata.get("expert_feed_forward_length", 8192)}


NAMES = Names(
    (
        *renamed(DECODER_ROWS, (".mlp.", ".feed_forward.")),
        *renamed(EXPERT_ROWS, ("mlp.gate", "mlp.router"), ("mlp", "feed_forward"), ("shared_experts", "shared_expert")),
    ),
    prefixes=("", "language_model."),
)
FAMILY = Family(
    name="llama4",
    heads={"llama4_text": ("Llama4ForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={
        "llama4": Gguf(
            _gguf_config,
            lambda metadata: "llama4_text",
            fields={"interleave_moe_layer_step": "interleave_moe_layer_step"},
            understood=EXPERT_FIELDS,
        )
    },
)
