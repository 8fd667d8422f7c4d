"""GLM-4.5 (GLM-4-MoE): sigmoid scores with a bias for the choice, groups of experts, and shared experts.

The first `first_k_dense_replace` layers have a plain MLP. Half of each head is rotated; heads of queries and keys may
be normed, and queries, keys and values may have a bias.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts_config import REFUSED, deepseek_layers
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import EXPERT_FIELDS, ROUTING_FIELDS, decoder_config, expert_config, routing_config
from qdeploy.arch.names import CHOICE_BIAS, DECODER_ROWS, EXPERT_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.rope import with_default_part
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Glm4MoeForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    layers, norm = layer_count(model, config), rms_norm(config, 1e-5)
    attention = attention_layers(
        with_default_part(config, 0.5),
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 131072),
        qkv_bias=config.flag("attention_bias", False),
        qk_norm=QueryKeyNorm(norm.epsilon) if config.flag("use_qk_norm", False) else None,
    )
    mlps = deepseek_layers(config, layers, dense=1, scores="sigmoid")
    decoder = standard_decoder(config, NAMES, attention, mlps, norm, refused=REFUSED)
    return build_decoder(model, config, decoder)


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config = {**decoder_config(metadata, shapes, interleaved=False), **routing_config(metadata)}
    named = {"use_qk_norm": "blk.0.attn_q_norm.weight" in shapes}
    return {**config, **named, **expert_config(metadata, "n_routed_experts")}


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if "post_attention" not in row[0]),
        ("model.layers.{i}.post_attention_layernorm", "blk.{i}.post_attention_norm"),
        *EXPERT_ROWS,
    ),
    parameters=(CHOICE_BIAS,),
)
FAMILY = Family(
    name="glm_moe",
    heads={"glm4_moe": ("Glm4MoeForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={"glm4moe": Gguf(_gguf_config, lambda metadata: "glm4_moe", understood=EXPERT_FIELDS | ROUTING_FIELDS)},
)
