"""Attention of Gemma 3n and 4: heads of queries, keys and values are normed, and scores are not scaled."""

from __future__ import annotations

from typing import Any

from qdeploy.arch.config import Config
from qdeploy.arch.prenorm import rms_norm
from qdeploy.arch.rope import read_rope
from qdeploy.arch.self_attention import QueryKeyNorm, Rotation, SelfAttention
from qdeploy.arch.windows import window_of

WHOLE = "full_attention"
KINDS = (WHOLE, "sliding_attention")


def unscaled_attention(
    config: Config, kind: str, rotation: Config, heads: tuple[int, int], context: int, **more: Any
) -> SelfAttention:
    """The attention of a layer.

    Args:
        config: The whole config.json.
        kind: One of `KINDS`; the second has a window.
        rotation: The configuration as its rotary positions are read from it.
        heads: Extent of a head, and how many key heads there are.
        context: `max_position_embeddings`.
        more: Further fields of `SelfAttention`.
    """
    head_dim, kv_heads = heads
    whole, epsilon, bias = kind == WHOLE, rms_norm(config).epsilon, config.flag("attention_bias", False)
    rope = read_rope(rotation, head_dim, context)
    return SelfAttention(
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        kv_heads,
        head_dim,
        0 if whole else window_of(config, 512),
        rope.context,
        1.0,
        rotation=Rotation(rope, name="rope.inv_freq" if whole else "rope.inv_freq.local"),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(epsilon),
        value_norm=epsilon,
        size_field="head_dim",
        **more,
    )
