"""HunYuan dense: heads of queries and keys are normed behind the rotation; dynamic scaling has one theta (`alpha`)."""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import Parts, QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a HunYuanDenseV1ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, 1e-5)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 2048),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(norm.epsilon, after_rotation=True),
        parts=Parts(q_norm="query_layernorm", k_norm="key_layernorm"),
    )
    config.read.add("qk_norm")
    decoder = standard_decoder(config, NAMES, attention, gated_mlp(config), norm, refused={"qk_norm": (True,)})
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if not row[0].endswith(("q_norm", "k_norm"))),
        ("model.layers.{i}.self_attn.query_layernorm", "blk.{i}.attn_q_norm"),
        ("model.layers.{i}.self_attn.key_layernorm", "blk.{i}.attn_k_norm"),
    )
)
FAMILY = Family(name="hunyuan", heads={"hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM",)}, names=NAMES, build=build)
