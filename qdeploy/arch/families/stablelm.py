"""StableLM: layer norms with a bias, a quarter of each head rotated, attention and MLP perhaps in parallel."""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PARALLEL_ONE_NORM, PRE
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, standard_decoder
from qdeploy.arch.rope import with_default_part
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.stack import Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a StableLmForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    norm = Norm("layer", config.positive("layer_norm_eps", 1e-5), bias=True)
    normed = config.flag("qk_layernorm", False)
    attention = attention_layers(
        with_default_part(config, 0.25),
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 4096),
        qkv_bias=config.flag("use_qkv_bias", False),
        qk_norm=QueryKeyNorm(norm.epsilon, "separate", "layer") if normed else None,
    )
    placement = PARALLEL_ONE_NORM if config.flag("use_parallel_residual", False) else PRE
    decoder = standard_decoder(config, NAMES, attention, gated_mlp(config), norm, placement=placement)
    return build_decoder(model, config, decoder)


NAMES = Names(DECODER_ROWS)
FAMILY = Family(name="stablelm", heads={"stablelm": ("StableLmForCausalLM",)}, names=NAMES, build=build)
