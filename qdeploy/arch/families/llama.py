"""Llama and Mistral: the plain decoder; Llama may have biases, Mistral a sliding window on every layer.

The fields and their defaults are those of `LlamaConfig` and `MistralConfig` of transformers.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import Decoder, build_decoder, check_layer_types, heads_of
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import decoder_config
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, prenorm_decoder
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a LlamaForCausalLM or a MistralForCausalLM."""
    config = Config(model.config)
    mistral = config.text("model_type") == "mistral"
    return build_decoder(model, config, _mistral(model, config) if mistral else _llama(model, config))


def _llama(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config)
    layers, bias = layer_count(model, config), config.flag("attention_bias", False)
    check_layer_types(config, layers, ("full_attention",))
    context = config.size("max_position_embeddings", 2048)
    attention = attention_layers(config, (0,) * layers, head_dim, kv_heads, context, qkv_bias=bias, o_bias=bias)
    refused: dict[str, tuple[object, ...]] = {"sliding_window": (), "use_sliding_window": (False,)}
    return prenorm_decoder(config, NAMES, attention, mlp_bias=config.flag("mlp_bias", False), refused=refused)


def _mistral(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    layers = layer_count(model, config)
    absent = "sliding_window" not in config.fields  # null means none, absent means the default
    window = 4096 if absent else config.size("sliding_window") if config.has("sliding_window") else 0
    check_layer_types(config, layers, ("sliding_attention" if window else "full_attention",))
    context = config.size("max_position_embeddings", 4096 * 32)
    attention = attention_layers(config, (window,) * layers, head_dim, kv_heads, context)
    return prenorm_decoder(config, NAMES, attention, refused={"attention_bias": (False,), "mlp_bias": (False,)})


def _gguf_type(metadata: Metadata) -> str:
    """Files of Mistral call themselves `llama`; a sliding window tells them apart."""
    return "mistral" if metadata.get("attention.sliding_window") else "llama"


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = decoder_config(metadata, shapes, interleaved=True)
    return {**config, "sliding_window": metadata["attention.sliding_window"]} if kind == "mistral" else config


NAMES = Names(DECODER_ROWS)
FAMILY = Family(
    name="llama",
    heads={"llama": ("LlamaForCausalLM",), "mistral": ("MistralForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={"llama": Gguf(_gguf_config, _gguf_type, understood=frozenset({"attention.sliding_window"}))},
    genai={"llama": "llama", "mistral": "mistral"},
)
