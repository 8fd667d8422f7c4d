"""Cohere (Command R) and Cohere 2 (Command R7B): attention and MLP in parallel behind one layer norm without a bias.

    cohere    heads of queries and keys may be normed, each with a weight of its own
    cohere2   of four layers, three have a window and rotary positions, the fourth has neither

Rotary pairs are neighbours, and logits are multiplied by `logit_scale`.
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PARALLEL_ONE_NORM
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, standard_decoder, without_rotation
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.stack import Norm
from qdeploy.arch.windows import layer_windows
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a CohereForCausalLM or a Cohere2ForCausalLM."""
    config = Config(model.config)
    second = config.text("model_type") == "cohere2"
    head_dim, kv_heads = heads_of(config)
    layers, bias = layer_count(model, config), config.flag("attention_bias", False)
    windows = layer_windows(config, layers, default_window=4096 if second else None, default_pattern=4)
    norm = Norm("layer", config.positive("layer_norm_eps", 1e-5))
    normed = not second and config.flag("use_qk_norm", False)
    attention = attention_layers(
        config,
        windows,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 8192),
        interleaved=True,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(norm.epsilon, "heads", "layer") if normed else None,
    )
    if second:
        attention = without_rotation(attention, [bool(window) for window in windows])
    decoder = standard_decoder(
        config,
        NAMES,
        attention,
        gated_mlp(config),
        norm,
        placement=PARALLEL_ONE_NORM,
        logits_multiplier=config.number("logit_scale", 0.0625),
        refused={"mlp_bias": (False,)},
    )
    return build_decoder(model, config, decoder)


NAMES = Names(tuple(row for row in DECODER_ROWS if "post_attention" not in row[0]))
FAMILY = Family(
    name="cohere",
    heads={"cohere": ("CohereForCausalLM",), "cohere2": ("Cohere2ForCausalLM",)},
    names=NAMES,
    build=build,
)
