"""Qwen3-Next and Qwen3.5: of four layers, three have a gated delta rule, the fourth attention with a gate.

    qwen3_next         experts with a shared one; projections of the delta rule are one, ordered by key head
    qwen3_5_text       a gated MLP
    qwen3_5_moe_text   experts with a shared one

Norms are stored less one, but for the one behind the delta rule. For text, the sections of `mrope` say nothing.
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PRE
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import DECODER_ROWS, EXPERT_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm
from qdeploy.arch.recurrent import DeltaNet
from qdeploy.arch.rope import with_default_part
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.arch.stack import Block, Decoder
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_KINDS = ("linear_attention", "full_attention")
_REFUSED: dict[str, tuple[object, ...]] = {"attn_output_gate": (True,), "mlp_bias": (False,), "sliding_window": ()}


def build(model: Model) -> Graph:
    """Builds the graph of a Qwen3NextForCausalLM, a Qwen3_5ForCausalLM or a Qwen3_5MoeForCausalLM."""
    config = _for_text(Config(model.config))
    kind, layers = config.text("model_type"), layer_count(model, config)
    heads = config.size("num_attention_heads")
    default_heads = 4 if kind == "qwen3_5_text" else 2
    head_dim, kv_heads = heads_of(config, head_dim=256, kv_heads=min(default_heads, heads))
    config.read.add("attn_output_gate")
    norm, bias = rms_norm(config, offset=1.0), config.flag("attention_bias", False)
    attention = attention_layers(
        with_default_part(config, 0.25),
        (0,) * layers,
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 32768),
        qkv_bias=bias,
        o_bias=bias,
        gated=True,
        qk_norm=QueryKeyNorm(norm.epsilon, offset=1.0),
    )
    delta = _delta(config, norm.epsilon, kind == "qwen3_next")
    mixers: list[Block] = [
        attention[i] if name == "full_attention" else delta for i, name in enumerate(_layer_kinds(config, layers))
    ]
    mlps = [gated_mlp(config)] * layers if kind == "qwen3_5_text" else _experts(config, layers, kind)
    placed = PRE.layers(mixers, mlps)
    return build_decoder(model, config, Decoder(kind, NAMES, placed, attention[0].capacity, norm, refused=_REFUSED))


def _for_text(config: Config) -> Config:
    """The configuration without the sections of rotary positions that images have: for text, all sections are one."""
    fields = dict(config.fields)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(fields.get(name), dict):
            fields[name] = {key: value for key, value in fields[name].items() if not key.startswith("mrope_")}
    return Config(fields, config.where)


def _layer_kinds(config: Config, layers: int) -> list[str]:
    interval = config.size("full_attention_interval", 4)
    default = [_KINDS[(i + 1) % interval == 0] for i in range(layers)]
    return check_layer_types(config, layers, _KINDS) or default


def _delta(config: Config, epsilon: float, fused: bool) -> DeltaNet:
    if config.text("hidden_act", "silu") != "silu":
        config.refuse({"hidden_act": ("silu",)})
    return DeltaNet(
        config.size("hidden_size"),
        config.size("linear_num_key_heads", 16),
        config.size("linear_num_value_heads", 32),
        config.size("linear_key_head_dim", 128),
        config.size("linear_value_head_dim", 128),
        config.size("linear_conv_kernel_dim", 4),
        epsilon,
        fused,
    )


def _experts(config: Config, layers: int, kind: str) -> list[Block]:
    hidden, activation = config.size("hidden_size"), config.choose("hidden_act", ACTIVATIONS, "silu")
    inner, shared = (config.size(f"{n}intermediate_size", 512) for n in ("moe_", "shared_expert_"))
    count = config.size("num_experts", 512 if kind == "qwen3_next" else 256)
    normalize = config.flag("norm_topk_prob", True) if kind == "qwen3_next" else True
    config.refuse({"norm_topk_prob": (normalize,)})
    routing = Routing(config.size("num_experts_per_tok", 10 if kind == "qwen3_next" else 8), normalize=normalize)
    wide = Mlp(hidden, shared, activation, module="mlp.shared_expert")
    experts = Experts(hidden, inner, count, activation, routing, shared=wide, shared_gate="shared_expert_gate")
    step, plain = config.size("decoder_sparse_step", 1), config.fields.get("mlp_only_layers") or []
    return [experts if i not in plain and (i + 1) % step == 0 else gated_mlp(config) for i in range(layers)]


NAMES = Names(
    (
        *DECODER_ROWS,
        *renamed(EXPERT_ROWS, ("shared_experts", "shared_expert")),
        ("model.layers.{i}.mlp.shared_expert_gate", "blk.{i}.ffn_gate_inp_shexp"),
    )
)
FAMILY = Family(
    name="qwen_next",
    heads={
        "qwen3_next": ("Qwen3NextForCausalLM",),
        "qwen3_5_text": ("Qwen3_5ForCausalLM",),
        "qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM",),
    },
    names=NAMES,
    build=build,
)
