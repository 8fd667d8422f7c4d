"""LFM2: most layers mix tokens by a short convolution, the others by attention with normed heads.

lfm2       a gated MLP, whose extent may be adjusted (`block_auto_adjust_ff_dim`)
lfm2_moe   from layer `num_dense_layers` on, experts by sigmoid scores, perhaps with a bias for the choice
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import MIXTRAL, Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import attention_layers
from qdeploy.arch.recurrent import ShortConv
from qdeploy.arch.self_attention import Parts, QueryKeyNorm
from qdeploy.arch.stack import Block, Decoder, Modules, Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_PLACEMENT = Placement(before_mixer="operator_norm", before_mlp="ffn_norm")
_KINDS = ("conv", "full_attention")
_REFUSED: dict[str, tuple[object, ...]] = {
    "use_pos_enc": (True,),
    "conv_use_xavier_init": (True, False),
    "sliding_window": (),
}


def build(model: Model) -> Graph:
    """Builds the graph of an Lfm2ForCausalLM or an Lfm2MoeForCausalLM."""
    config = _in_newer_keys(Config(model.config))
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    head_dim, kv_heads = heads_of(config, kv_heads=min(8, config.size("num_attention_heads")))
    epsilon, context = config.positive("norm_eps", 1e-5), config.size("max_position_embeddings", 128000)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        context,
        qk_norm=QueryKeyNorm(epsilon),
        parts=Parts(o="out_proj", q_norm="q_layernorm", k_norm="k_layernorm"),
    )
    conv = ShortConv(hidden, config.size("conv_L_cache", 3), config.flag("conv_bias", False))
    kinds = check_layer_types(config, layers, _KINDS) or _kinds(config, layers)
    mixers: list[Block] = [conv if kind == "conv" else attention[i] for i, kind in enumerate(kinds)]
    mlps = _experts(config, layers) if config.text("model_type") == "lfm2_moe" else [_mlp(config)] * layers
    decoder = Decoder(
        config.text("model_type"),
        NAMES,
        _PLACEMENT.layers(mixers, mlps),
        attention[0].capacity,
        Norm("rms", epsilon),
        modules=Modules(norm="model.embedding_norm"),
        refused={**_REFUSED, "conv_dim": (hidden,), "block_dim": (hidden,), "conv_dim_out": (hidden,)},
    )
    return build_decoder(model, config, decoder)


def _in_newer_keys(config: Config) -> Config:
    """`theta` under the name that other families have for it."""
    fields = dict(config.fields)
    if "theta" in fields and "rope_theta" not in fields:
        fields["rope_theta"] = fields["theta"]
    return Config(fields, config.where)


def _kinds(config: Config, layers: int) -> list[str]:
    """Attention in the layers of `full_attn_idxs`, in all where it is absent."""
    listed = config.fields.get("full_attn_idxs")
    config.read.add("full_attn_idxs")
    if listed is not None and not (isinstance(listed, list) and all(i in range(layers) for i in listed)):
        raise config.contradiction("full_attn_idxs", listed, f"layers 0..{layers - 1}")
    return ["full_attention" if listed is None or i in listed else "conv" for i in range(layers)]


def _inner(config: Config) -> int:
    """The extent of the MLP: two thirds of what stands there, times a factor, rounded up to a multiple."""
    inner = config.size("block_ff_dim", config.size("intermediate_size", 12288))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return inner
    inner = int(2 * inner / 3)
    if config.fields.get("block_ffn_dim_multiplier", 1.0) is not None:
        unit = config.size("block_multiple_of", 256)
        inner = int(config.positive("block_ffn_dim_multiplier", 1.0) * inner)
        inner = -(-inner // unit) * unit
    return inner


def _mlp(config: Config, inner: int = 0) -> Mlp:
    parts = MlpParts(gate="w1", up="w3", down="w2")
    return Mlp(config.size("hidden_size"), inner or _inner(config), "silu", parts=parts, module="feed_forward")


def _experts(config: Config, layers: int) -> list[Block]:
    biased = config.flag("use_expert_bias", True)
    routing = Routing(
        config.size("num_experts_per_tok", 4),
        "sigmoid",
        normalize=config.flag("norm_topk_prob", True),
        epsilon=1e-6,
        scale=config.number("routed_scaling_factor", 1.0),
        bias="expert_bias" if biased else "",
    )
    inner, count = config.size("moe_intermediate_size", 1792), config.size("num_experts", 32)
    experts = Experts(config.size("hidden_size"), inner, count, "silu", routing, parts=MIXTRAL, module="feed_forward")
    dense = _mlp(config, config.size("intermediate_size", 7168))
    first = int(config.number("num_dense_layers", 2))
    return [dense if i < first else experts for i in range(layers)]


NAMES = Names(
    (
        ("model.embed_tokens", "token_embd"),
        ("model.embedding_norm", "token_embd_norm"),
        ("model.layers.{i}.operator_norm", "blk.{i}.attn_norm"),
        ("model.layers.{i}.ffn_norm", "blk.{i}.ffn_norm"),
        ("model.layers.{i}.conv.conv", "blk.{i}.shortconv.conv"),
        ("model.layers.{i}.conv.in_proj", "blk.{i}.shortconv.in_proj"),
        ("model.layers.{i}.conv.out_proj", "blk.{i}.shortconv.out_proj"),
        ("model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
        ("model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
        ("model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
        ("model.layers.{i}.self_attn.out_proj", "blk.{i}.attn_output"),
        ("model.layers.{i}.self_attn.q_layernorm", "blk.{i}.attn_q_norm"),
        ("model.layers.{i}.self_attn.k_layernorm", "blk.{i}.attn_k_norm"),
        ("model.layers.{i}.feed_forward.w1", "blk.{i}.ffn_gate"),
        ("model.layers.{i}.feed_forward.w3", "blk.{i}.ffn_up"),
        ("model.layers.{i}.feed_forward.w2", "blk.{i}.ffn_down"),
        ("lm_head", "output"),
    )
)
FAMILY = Family(
    name="lfm2",
    heads={"lfm2": ("Lfm2ForCausalLM",), "lfm2_moe": ("Lfm2MoeForCausalLM",)},
    names=NAMES,
    build=build,
)
