"""HunYuan: heads of queries and keys are normed behind the rotation; dynamic scaling has one theta (`alpha`).

hunyuan_v1_dense   a gated MLP
hunyuan_v1_moe     experts, and a shared one as wide as each of them; layers may take different numbers of them
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import Parts, QueryKeyNorm
from qdeploy.arch.stack import Block
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a HunYuanDenseV1ForCausalLM or a HunYuanMoEV1ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, 1e-5)
    layers, dense = layer_count(model, config), config.text("model_type") == "hunyuan_v1_dense"
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 2048),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(norm.epsilon, after_rotation=True),
        parts=Parts(q_norm="query_layernorm", k_norm="key_layernorm"),
    )
    config.read.add("qk_norm")
    refused: dict[str, tuple[object, ...]] = {"qk_norm": (True,), "use_qk_norm": (True,), "use_cla": (False,)}
    config.read.add("use_qk_norm")
    mlps = [gated_mlp(config)] * layers if dense else _experts(config, layers)
    decoder = standard_decoder(config, NAMES, attention, mlps, norm, refused=refused)
    return build_decoder(model, config, decoder)


def _experts(config: Config, layers: int) -> list[Block]:
    inner = _each(config, "moe_intermediate_size", layers, config.size("intermediate_size"))
    counts, chosen = _each(config, "num_experts", layers, 1), _each(config, "moe_topk", layers, 1)
    shared = _each(config, "num_shared_expert", layers, 1)
    config.read |= {"num_local_experts", "num_experts_per_tok"}
    hidden, activation = config.size("hidden_size"), config.choose("hidden_act", ACTIVATIONS, "silu")
    return [
        Experts(
            hidden,
            inner[i],
            counts[i],
            activation,
            Routing(chosen[i], normalize=True),
            shared=Mlp(hidden, config.size("intermediate_size") * shared[i], activation, module="mlp.shared_mlp"),
            parts=ExpertParts(router="gate.wg"),
        )
        for i in range(layers)
    ]


def _each(config: Config, name: str, layers: int, default: int) -> list[int]:
    """A number for every layer: one for all, or a list."""
    if not isinstance(config.fields.get(name), list):
        return [config.size(name, default)] * layers
    return config.entries(name, layers, int)


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if not row[0].endswith(("q_norm", "k_norm"))),
        ("model.layers.{i}.self_attn.query_layernorm", "blk.{i}.attn_q_norm"),
        ("model.layers.{i}.self_attn.key_layernorm", "blk.{i}.attn_k_norm"),
        *renamed(EXPERT_ROWS, ("mlp.gate", "mlp.gate.wg"), ("shared_experts", "shared_mlp")),
    )
)
FAMILY = Family(
    name="hunyuan",
    heads={
        "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM",),
        "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM",),
    },
    names=NAMES,
    build=build,
)
