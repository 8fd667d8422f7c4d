"""Networks of the feature "measures": streams and outliers, factors per expert, factors per head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
_KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_GEMMA = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "layer_types": _KINDS,
    "tie_word_embeddings": True,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "streams": _GEMMA
    | {"model_type": "gemma3n_text", "vocab_size_per_layer_input": 80, "hidden_size_per_layer_input": 16}
    | {"altup_num_inputs": 2, "laurel_rank": 16, "num_kv_shared_layers": 2}
    | {"activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0], "final_logit_softcapping": 30.0},
    "expert-factors": _GEMMA
    | {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4}
    | {"top_k_experts": 2, "moe_intermediate_size": 48, "global_head_dim": 32, "attention_k_eq_v": True},
    "head-gates": _GEMMA
    | {"model_type": "lfm3", "conv_L_cache": 3}
    | {"layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
}


def shapes(name: str) -> Shapes:
    """The parameters of a network, by their names."""
    return {"streams": _streams, "expert-factors": _experts, "head-gates": _gates}[name]()


def _around(norm: str) -> dict[str, tuple[int, ...]]:
    return {"model.embed_tokens.weight": (90, 64), norm: (64,)}


def _attention(source: str, size: int, parts: str) -> dict[str, tuple[int, ...]]:
    widths = {"q": 4 * size, "k": 2 * size, "v": 2 * size}
    norms = {f"{source}.{part}_norm.weight": (size,) for part in parts if part != "v"}
    return (
        {f"{source}.{p}_proj.weight": (widths[p], 64) for p in parts}
        | norms
        | {f"{source}.o_proj.weight": (64, 4 * size)}
    )


def _mlp(source: str, names: tuple[str, str, str], inner: int = 96) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{source}.{name}.weight" for name in names)
    return {gate: (inner, 64), up: (inner, 64), down: (64, inner)}


_GATED = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _streams() -> Shapes:
    whole = _around("model.norm.weight") | {
        "model.embed_tokens_per_layer.weight": (80, 64),
        "model.per_layer_model_projection.weight": (64, 64),
        "model.per_layer_projection_norm.weight": (16,),
        "model.altup_projections.0.weight": (64, 64),
        "model.altup_unembed_projections.0.weight": (64, 64),
    }
    for i in range(4):
        layer = f"model.layers.{i}"
        whole |= _attention(f"{layer}.self_attn", 16, "qkv" if i < 2 else "q") | _mlp(f"{layer}.mlp", _GATED)
        whole |= {f"{layer}.{norm}.weight": (64,) for norm in (*_NORMS, "post_per_layer_input_norm")}
        whole |= {
            f"{layer}.laurel.linear_left.weight": (16, 64),
            f"{layer}.laurel.linear_right.weight": (64, 16),
            f"{layer}.laurel.post_laurel_norm.weight": (64,),
            f"{layer}.per_layer_input_gate.weight": (16, 64),
            f"{layer}.per_layer_projection.weight": (64, 16),
            f"{layer}.altup.correct_output_scale": (64,),
            f"{layer}.altup.router_norm.weight": (64,),
            f"{layer}.altup.modality_router.weight": (2, 64),
            f"{layer}.altup.correction_coefs.weight": (2, 2),
            f"{layer}.altup.prediction_coefs.weight": (4, 2),
        }
    return whole


def _experts() -> Shapes:
    whole = _around("model.norm.weight")
    more = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    for i, kind in enumerate(_KINDS):
        layer, full = f"model.layers.{i}", kind == "full_attention"
        whole |= _attention(f"{layer}.self_attn", 32 if full else 16, "qk" if full else "qkv")
        whole |= _mlp(f"{layer}.mlp", _GATED) | {f"{layer}.{norm}.weight": (64,) for norm in (*_NORMS, *more)}
        for expert in range(4):
            whole |= _mlp(f"{layer}.experts.{expert}", _GATED, 48)
        whole |= {
            f"{layer}.layer_scalar": (1,),
            f"{layer}.router.proj.weight": (4, 64),
            f"{layer}.router.scale": (64,),
            f"{layer}.router.per_expert_scale": (4,),
        }
    return whole


def _gates() -> Shapes:
    whole = _around("model.embedding_norm.weight")
    norms = ("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm")
    for i in range(4):
        layer = f"model.layers.{i}"
        whole |= _mlp(f"{layer}.feed_forward", ("w1", "w3", "w2")) | {f"{layer}.{n}.weight": (64,) for n in norms}
        if i == 0:
            whole |= {f"{layer}.conv.in_proj.weight": (192, 64), f"{layer}.conv.out_proj.weight": (64, 64)}
            whole |= {f"{layer}.conv.conv.weight": (64, 1, 3)}
        else:
            whole |= _attention(f"{layer}.self_attn", 16, "qkv") | {f"{layer}.self_attn.gate_proj.weight": (4, 64)}
    return whole
