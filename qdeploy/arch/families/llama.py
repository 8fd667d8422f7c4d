"""Llama and its like: the plain decoder.

    llama       may have biases                                 mistral    a sliding window on every layer
    ministral   a window per layer (`layer_types`)              seed_oss   biases on queries, keys and values
    ministral3  queries scaled by their position (Llama 4)      arcee      a plain MLP of squared ReLUs
    smollm3     layers without rotary positions                 ernie4_5   neighbours are rotary pairs

The fields and their defaults are those of the configurations of transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import decoder_config
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder, without_rotation
from qdeploy.arch.stack import Decoder
from qdeploy.arch.windows import layer_windows, one_window, window_of
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of one of the family's causal language models."""
    config = Config(model.config)
    return build_decoder(model, config, _DECODERS[config.text("model_type")](model, config))


def _llama(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config)
    layers, bias = layer_count(model, config), config.flag("attention_bias", False)
    check_layer_types(config, layers, ("full_attention",))
    context = config.size("max_position_embeddings", 2048)
    attention = attention_layers(config, (0,) * layers, head_dim, kv_heads, context, qkv_bias=bias, o_bias=bias)
    mlp = gated_mlp(config, bias=config.flag("mlp_bias", False))
    refused: dict[str, tuple[object, ...]] = {"sliding_window": (), "use_sliding_window": (False,)}
    return standard_decoder(config, NAMES, attention, mlp, rms_norm(config), refused=refused)


def _arcee(model: Model, config: Config) -> Decoder:
    decoder = _llama(model, config)
    bias = config.flag("mlp_bias", False)
    mlp = gated_mlp(config, default="relu2", gated=False, bias=bias)
    layers = tuple(
        replace(layer, branches=(layer.branches[0], replace(layer.branches[1], block=mlp))) for layer in decoder.layers
    )
    return replace(decoder, layers=layers, norm=rms_norm(config, 1e-5))


def _mistral(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    layers = layer_count(model, config)
    windows = one_window(config, layers, default=4096)
    context = config.size("max_position_embeddings", 4096 * 32)
    attention = attention_layers(config, windows, head_dim, kv_heads, context)
    refused: dict[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
    return standard_decoder(config, NAMES, attention, gated_mlp(config), rms_norm(config), refused=refused)


def _ministral(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    windows = layer_windows(config, layer_count(model, config), default_window=4096)
    context = config.size("max_position_embeddings", 4096 * 32)
    attention = attention_layers(config, windows, head_dim, kv_heads, context)
    refused: dict[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
    return standard_decoder(config, NAMES, attention, gated_mlp(config), rms_norm(config), refused=refused)


def _ministral3(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(8, config.size("num_attention_heads")))
    layers = layer_count(model, config)
    window = window_of(config)
    context = config.size("max_position_embeddings", 262144)
    name = "rope_scaling" if config.fields.get("rope_scaling") else "rope_parameters"
    rope = config.fields.get(name)
    if not isinstance(rope, dict):
        raise UnsupportedError("rotary parameters are missing", where=f"{config.where}: rope_parameters")
    parameters = Config(rope, f"{config.where}: {name}")
    scale = {
        "beta": parameters.number("llama_4_scaling_beta", 0.1),
        "length": float(parameters.size("original_max_position_embeddings")),
    }
    attention = attention_layers(config, (window,) * layers, head_dim, kv_heads, context, position_scale=scale)
    refused: dict[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
    return standard_decoder(config, NAMES, attention, gated_mlp(config), rms_norm(config, 1e-5), refused=refused)


def _smollm3(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=4)
    layers = layer_count(model, config)
    interval = config.size("no_rope_layer_interval", 4)
    rotated = [(i + 1) % interval != 0 for i in range(layers)]
    if config.has("no_rope_layers"):  # the name notwithstanding, 1 stands for a layer with rotary positions
        rotated = [bool(flag) for flag in config.entries("no_rope_layers", layers, int)]
    sliding = config.flag("use_sliding_window", False)
    kinds = check_layer_types(config, layers, ("full_attention", "sliding_attention"))
    window = config.size("sliding_window") if sliding and config.has("sliding_window") else 0
    if kinds:
        window = config.size("sliding_window") if "sliding_attention" in kinds else 0
        windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    else:
        windows = [0 if turns else window for turns in rotated]
    bias, context = config.flag("attention_bias", False), config.size("max_position_embeddings", 32768)
    attention = attention_layers(config, windows, head_dim, kv_heads, context, qkv_bias=bias, o_bias=bias)
    mlp = gated_mlp(config, bias=config.flag("mlp_bias", False))
    return standard_decoder(config, NAMES, without_rotation(attention, rotated), mlp, rms_norm(config))


def _ernie(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, kv_heads=min(4, config.size("num_attention_heads")))
    bias, layers = config.flag("use_bias", False), layer_count(model, config)
    context = config.size("max_position_embeddings", 131072)
    attention = attention_layers(
        config, (0,) * layers, head_dim, kv_heads, context, interleaved=True, qkv_bias=bias, o_bias=bias
    )
    refused: dict[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
    mlp = gated_mlp(config, bias=bias)
    return standard_decoder(config, NAMES, attention, mlp, rms_norm(config, 1e-5), refused=refused)


def _seed_oss(model: Model, config: Config) -> Decoder:
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(8, config.size("num_attention_heads")))
    layers, context = layer_count(model, config), config.size("max_position_embeddings", 524288)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        context,
        qkv_bias=config.flag("attention_bias", True),
        o_bias=config.flag("attention_out_bias", False),
    )
    mlp = gated_mlp(config, bias=config.flag("mlp_bias", False))
    return standard_decoder(config, NAMES, attention, mlp, rms_norm(config))


def _gguf_type(metadata: Metadata) -> str:
    """Files of Mistral call themselves `llama`; a sliding window tells them apart."""
    return "mistral" if metadata.get("attention.sliding_window") else "llama"


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = decoder_config(metadata, shapes, interleaved=True)
    return {**config, "sliding_window": metadata["attention.sliding_window"]} if kind == "mistral" else config


_DECODERS = {
    "llama": _llama,
    "mistral": _mistral,
    "ministral": _ministral,
    "ministral3": _ministral3,
    "smollm3": _smollm3,
    "arcee": _arcee,
    "ernie4_5": _ernie,
    "seed_oss": _seed_oss,
}
NAMES = Names(DECODER_ROWS)
FAMILY = Family(
    name="llama",
    heads={
        "llama": ("LlamaForCausalLM",),
        "mistral": ("MistralForCausalLM",),
        "ministral": ("MinistralForCausalLM",),
        "ministral3": ("Ministral3ForCausalLM",),
        "smollm3": ("SmolLM3ForCausalLM",),
        "arcee": ("ArceeForCausalLM",),
        "ernie4_5": ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        "seed_oss": ("SeedOssForCausalLM",),
    },
    names=NAMES,
    build=build,
    gguf={"llama": Gguf(_gguf_config, _gguf_type, understood=frozenset({"attention.sliding_window"}))},
    genai={"llama": "llama", "mistral": "mistral", "smollm3": "smollm3", "ernie4_5": "ernie4_5"},
)
