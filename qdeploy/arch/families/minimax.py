"""MiniMax-M2: sigmoid scores with a bias for the choice, and norms over all heads of queries and of keys.

A part of each head is rotated: `rotary_dim` of published configurations, or `partial_rotary_factor`.
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import MIXTRAL, Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.names import CHOICE_BIAS, DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.rope import with_default_part
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_MODULE = "block_sparse_moe"
_REFUSED: dict[str, tuple[object, ...]] = {
    "sliding_window": (),
    "attn_type_list": (),
    "shared_intermediate_size": (0,),
    "scoring_func": ("sigmoid",),
    "use_routing_bias": (True,),
    "qk_norm_type": ("per_layer",),
}


def build(model: Model) -> Graph:
    """Builds the graph of a MiniMaxM2ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(8, config.size("num_attention_heads")))
    config.read |= {"num_experts", "use_qk_norm"}
    norm = rms_norm(config, 1e-6)
    part = config.size("rotary_dim", head_dim) / head_dim
    attention = attention_layers(
        with_default_part(config, part),
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 196608),
        qk_norm=QueryKeyNorm(norm.epsilon, "width"),
    )
    count = config.size("num_local_experts", 256)
    experts = Experts(
        config.size("hidden_size"),
        config.size("intermediate_size"),
        count,
        config.choose("hidden_act", ACTIVATIONS, "silu"),
        Routing(config.size("num_experts_per_tok", 8), "sigmoid", normalize=True, bias="e_score_correction_bias"),
        parts=MIXTRAL,
        module=_MODULE,
    )
    refused = {**_REFUSED, "num_experts": (count,), "use_qk_norm": (True,)}
    decoder = standard_decoder(config, NAMES, attention, experts, norm, refused=refused)
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        *DECODER_ROWS,
        *renamed(EXPERT_ROWS, ("mlp", _MODULE), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")),
    ),
    parameters=(("model.layers.{i}.block_sparse_moe.e_score_correction_bias", CHOICE_BIAS[1]),),
)
FAMILY = Family(name="minimax", heads={"minimax_m2": ("MiniMaxM2ForCausalLM",)}, names=NAMES, build=build)
