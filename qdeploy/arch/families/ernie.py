"""ERNIE 4.5 with experts: softmax scores with a bias for the choice, and shared experts that all tokens take.

Layers from `moe_layer_start_index` to `moe_layer_end_index` have experts, each `moe_layer_interval`-th of them.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import CHOICE_BIAS, DECODER_ROWS, EXPERT_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_BIAS = "moe_statics.e_score_correction_bias"


def build(model: Model) -> Graph:
    """Builds the graph of an Ernie4_5_MoeForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config, kv_heads=min(4, config.size("num_attention_heads")))
    bias, layers = config.flag("use_bias", False), layer_count(model, config)
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
    config.read |= {"num_experts", "num_experts_per_tok"}
    refused: dict[str, tuple[object, ...]] = {
        "moe_gate": ("topk",),
        "moe_use_aux_free": (True,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    }
    mlps = _mlps(model, config, layers, bias)
    decoder = standard_decoder(config, NAMES, attention, mlps, rms_norm(config, 1e-5), refused=refused)
    return build_decoder(model, config, decoder)


def _mlps(model: Model, config: Config, layers: int, bias: bool) -> list[Block]:
    hidden, activation = config.size("hidden_size"), config.choose("hidden_act", ACTIVATIONS, "silu")
    inner, shared = config.size("moe_intermediate_size", 1536), int(config.number("moe_num_shared_experts", 2))
    wide = Mlp(hidden, inner * shared, activation, bias=bias, module="mlp.shared_experts") if shared else None
    flat = model.dialect == "gguf"  # there, the bias has one axis
    routing = Routing(
        config.size("moe_k", 6),
        normalize=True,
        least=config.number("moe_norm_min", 1e-12),
        bias=_BIAS,
        bias_shape=() if flat else (1,),
    )
    experts = Experts(hidden, inner, config.size("moe_num_experts", 64), activation, routing, bias=False, shared=wide)
    first, last = (int(config.number(f"moe_layer_{end}_index", n)) for end, n in (("start", 1), ("end", -1)))
    step = config.size("moe_layer_interval", 1)
    last = layers - 1 if last == -1 else last
    dense = gated_mlp(config, bias=bias)
    return [experts if first <= i <= last and (i + 1) % step == 0 else dense for i in range(layers)]


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = {**decoder_config(metadata, shapes, interleaved=True), **expert_config(metadata, "moe_num_experts")}
    config["moe_k"] = config.pop("num_experts_per_tok", 6)
    config["use_bias"] = config.pop("attention_bias")
    wide = metadata.get("expert_shared_feed_forward_length", 0)
    config["moe_num_shared_experts"] = wide // max(1, config.get("moe_intermediate_size", 1))
    config["moe_layer_interval"] = metadata.get("interleave_moe_layer_step", 1)
    return {**config, "moe_layer_start_index": metadata.get("leading_dense_block_count", 0)}


NAMES = Names(
    (*DECODER_ROWS, *EXPERT_ROWS),
    parameters=((f"model.layers.{{i}}.mlp.{_BIAS}", CHOICE_BIAS[1]),),
)
FAMILY = Family(
    name="ernie",
    heads={"ernie4_5_moe": ("Ernie4_5_MoeForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={
        "ernie4_5-moe": Gguf(
            _gguf_config,
            lambda metadata: "ernie4_5_moe",
            understood=EXPERT_FIELDS
            | {"expert_shared_feed_forward_length", "interleave_moe_layer_step", "leading_dense_block_count"},
        )
    },
)
