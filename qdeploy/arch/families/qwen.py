"""Qwen2 and Qwen3: the decoder with a sliding window from some layer on.

Qwen2 has biases on query, key and value; Qwen3 has none by default, and an RMS norm over each head of queries and keys.
The fields and their defaults are those of `Qwen2Config` and `Qwen3Config` of transformers: `layer_types` decides where
it is given, else layers from `max_window_layers` on slide when `use_sliding_window` is set.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import decoder_config
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Qwen2ForCausalLM or a Qwen3ForCausalLM."""
    config = Config(model.config)
    third = config.text("model_type") == "qwen3"
    head_dim, kv_heads = heads_of(config, head_dim=128 if third else None)
    bias = config.flag("attention_bias", False) if third else True
    norm = QueryKeyNorm(config.positive("rms_norm_eps", 1e-6)) if third else None
    attention = attention_layers(
        config,
        _windows(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 32768),
        qkv_bias=bias,
        o_bias=bias and third,
        qk_norm=norm,
    )
    refused: dict[str, tuple[object, ...]] = {"mlp_bias": (False,), "qkv_bias": (not third,), "use_mrope": (False,)}
    decoder = standard_decoder(config, NAMES, attention, gated_mlp(config), rms_norm(config), refused=refused)
    return build_decoder(model, config, decoder)


def _windows(model: Model, config: Config) -> tuple[int, ...]:
    layers = layer_count(model, config)
    sliding = config.flag("use_sliding_window", False)
    present = config.fields.get("sliding_window", 4096) is not None  # null means none, absent means the default
    window = config.size("sliding_window", 4096) if sliding and present else 0
    kinds = check_layer_types(config, layers, ("full_attention", "sliding_attention"))
    if "sliding_attention" in kinds and not window:
        raise config.contradiction(
            "layer_types, use_sliding_window, sliding_window",
            "sliding layers without a window",
            "use_sliding_window true and a sliding_window",
        )
    if kinds:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = config.number("max_window_layers", 28)
    return tuple(window if i >= first else 0 for i in range(layers))


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = decoder_config(metadata, shapes, interleaved=False)
    if kind == "qwen2":  # its biases go without saying
        del config["attention_bias"], config["mlp_bias"]
    return config


NAMES = Names(DECODER_ROWS)
FAMILY = Family(
    name="qwen",
    heads={"qwen2": ("Qwen2ForCausalLM",), "qwen3": ("Qwen3ForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={"qwen2": Gguf(_gguf_config), "qwen3": Gguf(_gguf_config)},
    genai={"qwen2": "qwen2", "qwen3": "qwen3"},
)
