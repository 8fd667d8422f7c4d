"""GLM-4 (dense): norms before and behind the branches, and one projection for gate and up.

Half of each head is rotated, with neighbours as pairs; queries, keys and values may have a bias, the output has none.
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.rope import with_default_part
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_PLACEMENT = Placement("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


def build(model: Model) -> Graph:
    """Builds the graph of a Glm4ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(2, config.size("num_attention_heads")))
    attention = attention_layers(
        with_default_part(config, 0.5),
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 131072),
        interleaved=True,
        qkv_bias=config.flag("attention_bias", True),
    )
    mlp = gated_mlp(config, parts=MlpParts(fused="gate_up_proj"))
    norm = rms_norm(config, 1.5625e-07)
    return build_decoder(model, config, standard_decoder(config, NAMES, attention, mlp, norm, placement=_PLACEMENT))


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if "gate_proj" not in row[0] and "up_proj" not in row[0]),
        ("model.layers.{i}.post_self_attn_layernorm", "blk.{i}.post_attention_norm"),
        ("model.layers.{i}.post_mlp_layernorm", "blk.{i}.post_ffw_norm"),
        ("model.layers.{i}.mlp.gate_up_proj", "blk.{i}.ffn_up"),
    )
)
FAMILY = Family(name="glm", heads={"glm4": ("Glm4ForCausalLM",)}, names=NAMES, build=build)
