"""Llama and Mistral: the plain decoder; Llama may have biases, Mistral a sliding window on every layer.

The fields and their defaults are those of `LlamaConfig` and `MistralConfig` of transformers.
"""

from __future__ import annotations

from qdeploy.arch.builder import check_architecture, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import Decoder, build_decoder, check_layer_types, heads_of
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a LlamaForCausalLM or a MistralForCausalLM."""
    config = Config(model.config)
    mistral = config.text("model_type") == "mistral"
    check_architecture(model.config, ("MistralForCausalLM" if mistral else "LlamaForCausalLM",))
    return build_decoder(model, _mistral(model, config) if mistral else _llama(model, config))


def _llama(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config)
    layers, bias = layer_count(model, config), config.flag("attention_bias", False)
    check_layer_types(config, layers, ("full_attention",))
    return Decoder(
        "llama",
        (0,) * layers,
        bias,
        bias,
        config.flag("mlp_bias", False),
        False,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 2048),
        {"sliding_window": (), "use_sliding_window": (False,)},
    )


def _mistral(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    layers = layer_count(model, config)
    absent = "sliding_window" not in config.fields  # null means none, absent means the default
    window = 4096 if absent else config.size("sliding_window") if config.has("sliding_window") else 0
    check_layer_types(config, layers, ("sliding_attention" if window else "full_attention",))
    return Decoder(
        "mistral",
        (window,) * layers,
        False,
        False,
        False,
        False,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 4096 * 32),
        {"attention_bias": (False,), "mlp_bias": (False,)},
    )
