"""Granite: the Llama decoder with multipliers on embeddings, attention scores, branches and logits.

The fields are those of `GraniteConfig` of transformers: `attention_multiplier` is the scale of the scores, and logits
are divided by `logits_scaling`.
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a GraniteForCausalLM."""
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
        gated_mlp(config, bias=config.flag("mlp_bias", False)),
        rms_norm(config),
        residual_multiplier=config.number("residual_multiplier", 1.0),
        embedding_multiplier=config.number("embedding_multiplier", 1.0),
        logits_multiplier=1 / config.positive("logits_scaling", 1.0),
    )
    return build_decoder(model, config, decoder)


NAMES = Names(DECODER_ROWS)
FAMILY = Family(
    name="granite",
    heads={"granite": ("GraniteForCausalLM",)},
    names=NAMES,
    build=build,
    genai={"granite": "granite"},
)
