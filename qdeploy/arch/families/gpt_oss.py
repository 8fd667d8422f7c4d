"""gpt-oss: attention with sinks, every other layer with a window, and experts with a limited SwiGLU.

    softmax over the scores and one number per head, which has no value
    glu = min(gate, limit) * sigmoid(alpha * min(gate, limit)),  (clip(up, -limit, limit) + 1) * glu

Rows of gate and up alternate in one tensor. As floats it is stored [experts, in, out]; as MXFP4, [experts, out, in].
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, decoder_config, expert_config
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.self_attention import Parts
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_KINDS = ("sliding_attention", "full_attention")
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
    "rope_theta": 150000.0,
}


def build(model: Model) -> Graph:
    """Builds the graph of a GptOssForCausalLM."""
    config = _with_default_rope(Config(model.config))
    head_dim, kv_heads = heads_of(config, head_dim=64, kv_heads=min(8, config.size("num_attention_heads")))
    layers, window = layer_count(model, config), config.size("sliding_window", 128)
    kinds = check_layer_types(config, layers, _KINDS) or [_KINDS[i % 2] for i in range(layers)]
    bias, count = config.flag("attention_bias", True), config.size("num_local_experts", 128)
    config.read.add("num_experts")
    attention = attention_layers(
        config,
        [window if kind == _KINDS[0] else 0 for kind in kinds],
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 131072),
        qkv_bias=bias,
        o_bias=bias,
        parts=Parts(sinks="sinks"),
    )
    experts = Experts(
        config.size("hidden_size"),
        config.size("intermediate_size"),
        count,
        config.choose("hidden_act", ACTIVATIONS, "silu"),
        Routing(config.size("num_experts_per_tok", config.size("experts_per_token", 4)), "softmax_of_chosen"),
        bias=True,
        router_bias=True,
        alpha=config.positive("swiglu_alpha", 1.702),
        limit=config.positive("swiglu_limit", 7.0),
        parts=ExpertParts(router="router", pairs=True),
    )
    refused: dict[str, tuple[object, ...]] = {"num_experts": (count,)}
    decoder = standard_decoder(config, NAMES, attention, experts, rms_norm(config, 1e-5), refused=refused)
    return build_decoder(model, config, decoder)


def _with_default_rope(config: Config) -> Config:
    if config.fields.get("rope_parameters") or config.fields.get("rope_scaling"):
        return config
    return Config({**config.fields, "rope_parameters": _ROPE}, config.where)


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = {**decoder_config(metadata, shapes, interleaved=False), **expert_config(metadata, "num_local_experts")}
    if "rope_scaling" in config:
        config["rope_scaling"] = {**config["rope_scaling"], "truncate": False}
    inner = metadata.get("expert_feed_forward_length")
    return config if inner is None else {**config, "intermediate_size": inner}


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if "post_attention" not in row[0]),
        ("model.layers.{i}.post_attention_layernorm", "blk.{i}.post_attention_norm"),
        *renamed(EXPERT_ROWS, ("mlp.gate", "mlp.router")),
    ),
    parameters=(("model.layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight"),),
)
FAMILY = Family(
    name="gpt_oss",
    heads={"gpt_oss": ("GptOssForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={
        "gpt-oss": Gguf(
            _gguf_config,
            lambda metadata: "gpt_oss",
            fields={"attention.sliding_window": "sliding_window"},
            understood=EXPERT_FIELDS,
        )
    },
    genai={"gpt_oss": "gptoss"},
)
