"""OLMo 2 and 3, and EXAONE 4: norms behind the branches, and norms of queries and keys.

olmo2     all heads of queries (keys) are normed together
olmo3     the same; layers with a window have the plain rotary frequencies, the others the scaled ones
exaone4   every head is normalised on its own; where there is a window, layers without one have no rotary positions
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import POST
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import (
    attention_layers,
    gated_mlp,
    rms_norm,
    standard_decoder,
    with_local_rotation,
    without_rotation,
)
from qdeploy.arch.rope import for_layers
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.windows import layer_windows
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of an Olmo2ForCausalLM, Olmo3ForCausalLM or Exaone4ForCausalLM."""
    config = Config(model.config)
    kind = config.text("model_type")
    head_dim, kv_heads = heads_of(config)
    layers, epsilon = layer_count(model, config), config.positive("rms_norm_eps", 1e-5)
    window = {"olmo2": None, "olmo3": 4096, "exaone4": 4096}[kind]
    windows = layer_windows(config, layers, default_window=window, default_pattern=4)
    context, bias = config.size("max_position_embeddings", 2048), config.flag("attention_bias", False)
    attention = attention_layers(
        for_layers(config, "full_attention"),
        windows,
        head_dim,
        kv_heads,
        context,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(epsilon, "head" if kind == "exaone4" else "width"),
    )
    if kind == "olmo3":
        attention = with_local_rotation(attention, _unscaled(config), head_dim, context)
    if kind == "exaone4" and any(windows):
        attention = without_rotation(attention, [bool(window) for window in windows])
    refused: dict[str, tuple[object, ...]] = {"mlp_bias": (False,), "clip_qkv": ()}
    norm = rms_norm(config, 1e-5)
    decoder = standard_decoder(config, NAMES, attention, gated_mlp(config), norm, placement=POST, refused=refused)
    return build_decoder(model, config, decoder)


def _unscaled(config: Config) -> Config:
    """The configuration of layers with a window: the entry of `sliding_attention`, or unscaled frequencies."""
    local = for_layers(config, "sliding_attention")
    if local is config:
        local = Config({**config.fields, "rope_scaling": None, "rope_parameters": _theta(config)}, config.where)
    return local


def _theta(config: Config) -> dict[str, object]:
    parameters = config.fields.get("rope_parameters")
    theta = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return {} if theta is None else {"rope_theta": theta}


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if not row[0].endswith("layernorm")),
        ("model.layers.{i}.post_attention_layernorm", "blk.{i}.post_attention_norm"),
        ("model.layers.{i}.post_feedforward_layernorm", "blk.{i}.post_ffw_norm"),
    )
)
FAMILY = Family(
    name="olmo",
    heads={"olmo2": ("Olmo2ForCausalLM",), "olmo3": ("Olmo3ForCausalLM",), "exaone4": ("Exaone4ForCausalLM",)},
    names=NAMES,
    build=build,
    genai={"olmo2": "olmo"},
)
