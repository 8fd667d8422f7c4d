"""Metadata of GGUF files in the spelling of config.json: what all decoders have in common.

Names are those of ggml/docs/gguf.md and llama.cpp's `llama-arch.cpp`; `metadata` is given without the prefix
`<architecture>.`, numbers as JSON has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qdeploy.arch.family import Metadata, Shapes

_YARN_FIELDS = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def whole(value: Any) -> int:
    """A positive integer as it is, 0 for everything else."""
    return value if isinstance(value, int) and value > 0 else 0


def decoder_config(metadata: Metadata, shapes: Shapes, *, interleaved: bool) -> dict[str, Any]:
    """Fields of config.json that decoders of the Llama form have.

    Args:
        metadata: Of the architecture.
        shapes: Of every tensor; they tell which biases there are, and whether the head is tied.
        interleaved: Whether the architecture's rotary pairs are neighbours.
    """
    head, rotated = whole(metadata.get("attention.key_length")), whole(metadata.get("rope.dimension_count"))
    head = head or whole(metadata.get("embedding_length")) // max(1, whole(metadata.get("attention.head_count")))
    config: dict[str, Any] = {
        "hidden_act": "silu",
        "rope_theta": metadata.get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_interleaved": interleaved,
        "is_causal": metadata.get("attention.causal", True),
    }
    if head and rotated not in (0, head):
        config["partial_rotary_factor"] = rotated / head
    config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in shapes
    scaling = _scaling(metadata)
    return {**config, "rope_scaling": scaling} if scaling else config


def _scaling(metadata: Metadata) -> Mapping[str, Any]:
    kind = metadata.get("rope.scaling.type", "none")
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear", 1))
    if "rope.scaling.type" not in metadata and "rope.scale_linear" in metadata:
        kind = "linear"
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind != "yarn":
        return scaling
    scaling |= {
        field: metadata[key] for name, field in _YARN_FIELDS.items() if (key := f"rope.scaling.{name}") in metadata
    }
    extra = metadata.get("rope.scaling.attn_factor", 1)
    if isinstance(extra, float) and isinstance(factor, float) and factor > 1:
        scaling["attention_factor"] = extra * (0.1 * math.log(factor) + 1)  # as llama.cpp multiplies it
    return scaling


EXPERT_FIELDS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
"""Metadata that `expert_config` reads."""
_SCORES = {0: "softmax", 1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}


def expert_config(metadata: Metadata, count: str = "num_experts") -> dict[str, Any]:
    """Fields of config.json about experts; `count` is what the family calls their number."""
    named = {"expert_count": count, "expert_used_count": "num_experts_per_tok"}
    config = {field: metadata[key] for key, field in named.items() if key in metadata}
    if "expert_feed_forward_length" in metadata:
        config["moe_intermediate_size"] = metadata["expert_feed_forward_length"]
    return config


def routing_config(metadata: Metadata) -> dict[str, Any]:
    """Fields of config.json about scores, in the spelling of DeepSeek."""
    named = {
        "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "expert_shared_count": "n_shared_experts",
        "leading_dense_block_count": "first_k_dense_replace",
    }
    config = {field: metadata[key] for key, field in named.items() if key in metadata}
    if "expert_gating_func" in metadata:
        config["scoring_func"] = _SCORES.get(metadata["expert_gating_func"], str(metadata["expert_gating_func"]))
    return config


ROUTING_FIELDS = frozenset(
    {
        "expert_weights_scale",
        "expert_weights_norm",
        "expert_group_count",
        "expert_group_used_count",
        "expert_shared_count",
        "leading_dense_block_count",
        "expert_gating_func",
    }
)
"""Metadata that `routing_config` reads."""
