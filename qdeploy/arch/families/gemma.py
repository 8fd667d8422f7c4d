"""Gemma 2 and 3 (text): norms before and behind the branches, stored less one, and scaled embeddings.

    gemma2        scores and logits are softcapped; every other layer has a window
    gemma3_text   heads of queries and keys are normed; of six layers, five have a window, and frequencies of their own

EmbeddingGemma (arXiv 2509.20354) is a gemma3_text whose tokens see the whole sequence; its windows are half of
`sliding_window` on either side.

Scores are scaled by query_pre_attn_scalar ^ -1/2, embeddings by the square root of the hidden extent.
"""

from __future__ import annotations

from qdeploy.arch.bidirectional import Bidirectional, build_bidirectional
from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import BOTH
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder, with_local_rotation
from qdeploy.arch.rope import for_layers
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.stack import Decoder, Modules
from qdeploy.arch.windows import layer_windows
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Gemma2ForCausalLM, a Gemma3ForCausalLM (text), or a bidirectional Gemma3TextModel."""
    config = Config(model.config)
    third = config.text("model_type") == "gemma3_text"
    if third and config.flag("use_bidirectional_attention", False):
        encoder = _decoder(model, config, third, layers_in="layers")
        return build_bidirectional(model, config, Bidirectional(encoder, {"Gemma3TextModel": None}))
    return build_decoder(model, config, _decoder(model, config, third))


def _decoder(model: Model, config: Config, third: bool, layers_in: str = "") -> Decoder:
    """The layers; those of an encoder stand in the module `layers_in`."""
    head_dim, kv_heads = heads_of(config, head_dim=256, kv_heads=min(4, config.size("num_attention_heads")))
    layers, bias = layer_count(model, config), config.flag("attention_bias", False)
    windows = layer_windows(config, layers, default_window=4096, default_pattern=6 if third else 2)
    context = config.size("max_position_embeddings", 131072 if third else 8192)
    if layers_in:
        windows = tuple(window // 2 + 1 if window else 0 for window in windows)
    softcap = 0.0 if third else _softcap(config, "attn_logit_softcapping", 50.0)
    if third:
        config.read.add("attn_logit_softcapping")  # transformers has the field and does not use it
    attention = attention_layers(
        for_layers(config, "full_attention"),
        windows,
        head_dim,
        kv_heads,
        context,
        scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=bias,
        o_bias=bias,
        softcap=softcap,
        qk_norm=QueryKeyNorm(config.positive("rms_norm_eps", 1e-6), offset=1.0) if third else None,
        bidirectional=bool(layers_in),
        cached=not layers_in,
        layers=layers_in or "model.layers",
    )
    if third:
        attention = with_local_rotation(attention, _local(config), head_dim, context)
    return standard_decoder(
        config,
        BARE_NAMES if layers_in else NAMES,
        attention,
        gated_mlp(config, "hidden_activation", "gelu_pytorch_tanh", layers=layers_in or "model.layers"),
        rms_norm(config, offset=1.0),
        placement=BOTH,
        embedding_multiplier=config.size("hidden_size") ** 0.5,
        logits_softcap=_softcap(config, "final_logit_softcapping", None if third else 30.0),
        refused={"use_bidirectional_attention": (bool(layers_in),)},
        modules=Modules("embed_tokens", layers_in, "norm") if layers_in else Modules(),
    )


def _softcap(config: Config, field: str, default: float | None) -> float:
    """Null means none, absent means the default."""
    if field not in config.fields:
        config.read.add(field)
        return default or 0.0
    return config.positive(field) if config.has(field) else 0.0


def _local(config: Config) -> Config:
    """The configuration of layers with a window: the entry of `sliding_attention`, or `rope_local_base_freq`."""
    local = for_layers(config, "sliding_attention")
    if local is config:
        theta = config.positive("rope_local_base_freq", 10000.0)
        fields = {**config.fields, "rope_scaling": None, "rope_parameters": None, "rope_theta": theta}
        local = Config(fields, config.where)
    return local


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if not row[0].endswith("layernorm")),
        ("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        ("model.layers.{i}.post_attention_layernorm", "blk.{i}.post_attention_norm"),
        ("model.layers.{i}.pre_feedforward_layernorm", "blk.{i}.ffn_norm"),
        ("model.layers.{i}.post_feedforward_layernorm", "blk.{i}.post_ffw_norm"),
    )
)
BARE_NAMES = Names((), prefixes=("", "model."))
"""Of a model without a head."""
FAMILY = Family(
    name="gemma",
    heads={"gemma2": ("Gemma2ForCausalLM",), "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextModel")},
    names=NAMES,
    build=build,
    genai={"gemma2": "gemma2", "gemma3_text": "gemma3_text"},
)
