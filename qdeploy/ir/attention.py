"""Attention in numpy: grouped heads, rotary positions, a cache, causal and sliding windows, padding.

Rotary positions (arXiv 2104.09864, section 3.2) turn the pair (a, b) number i of every query and key by the angle
position * inv_freq[i]. Which elements are a pair is a matter of layout: half-split pairs i with i + rotary_dim / 2
(Hugging Face), interleaved pairs 2 i with 2 i + 1 (the paper, GGUF files of the llama family). Elements from rotary_dim
on are left alone. All scaling variants are in the frequencies and in one factor on cosine and sine (`arch/rope.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qdeploy.ir.tensor import Array, Float32

_MASKED = np.finfo(np.float32).min  # not -inf: a row of padding stays finite


def rotate(
    x: Array, start: int, inv_freq: Array, *, rotary_dim: int, interleaved: bool = False, factor: float = 1.0
) -> Float32:
    """Rotates heads by their positions.

    Args:
        x: [B, heads, T, D].
        start: Position of the first token.
        inv_freq: Angle per position of each pair, float32 [rotary_dim / 2].
        rotary_dim: How many elements of a head take part; the first ones.
        interleaved: Whether pairs are neighbours.
        factor: Multiplied into cosine and sine.

    Returns:
        float32, the shape of x.
    """
    place = np.arange(start, start + x.shape[2], dtype=np.float32)
    angle = place[:, None] * inv_freq[None, :]  # [T, rotary_dim / 2]
    cos, sin = np.cos(angle) * np.float32(factor), np.sin(angle) * np.float32(factor)
    half = rotary_dim // 2
    first, second = (
        (slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)) if interleaved else (slice(half), slice(half, rotary_dim))
    )
    out = x.astype(np.float32)  # a copy
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
    window: int = 0,
    state: str = "",
    rope: Mapping[str, Any] | None = None,
    past: tuple[Array, Array] | None = None,
) -> tuple[Float32, tuple[Float32, Float32]]:
    """Softmax(q k^T * scale) v over the past and the new tokens.

    Args:
        q: [B, T, heads * D], before rotation.
        k: [B, T, kv_heads * D] of the new tokens, before rotation.
        v: [B, T, kv_heads * D] of the new tokens.
        mask: I64 [B, S], 1 = may be attended to.
        heads: Query heads; head h uses key head h // (heads / kv_heads).
        kv_heads: Key and value heads.
        scale: Multiplied into the scores.
        causal: Whether a query sees only itself and what came before.
        window: Of that, only the last `window` keys, itself included; 0 for all. Only with causal.
        state: Name of the state; of no effect here.
        rope: `inv_freq` (the array itself), `rotary_dim`, `interleaved`, `factor`; None for no rotation.
        past: Rotated keys and values so far, [B, kv_heads, L, D] each.

    Returns:
        [B, T, heads * D], and the keys and values [B, kv_heads, L + T, D].
    """
    query, key, value = _split(q, heads), _split(k, kv_heads), _split(v, kv_heads)
    start = 0 if past is None else past[0].shape[2]
    if rope is not None:
        query, key = rotate(query, start, **rope), rotate(key, start, **rope)
    if past is not None:
        key, value = np.concatenate((past[0], key), axis=2), np.concatenate((past[1], value), axis=2)
    batch, _, new, size = query.shape
    total = key.shape[2]
    grouped = query.reshape(batch, kv_heads, -1, size)  # [B, kv_heads, repeats * T, D]
    scores = (grouped @ key.swapaxes(2, 3) * np.float32(scale)).reshape(batch, heads, new, total)
    scores = np.where(_visible(start, new, total, mask, causal, window), scores, _MASKED)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = (scores.reshape(batch, kv_heads, -1, total) @ value).reshape(batch, heads, new, size)
    return mixed.swapaxes(1, 2).reshape(batch, new, heads * size), (key, value)  # [B, T, heads * D]


def _split(x: Array, heads: int) -> Array:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)  # [B, heads, T, D]


def _visible(start: int, new: int, total: int, mask: Array | None, causal: bool, window: int) -> Array:
    query = np.arange(start, start + new)[:, None]
    key = np.arange(total)[None, :]
    seen = key <= query if causal else np.ones((new, total), bool)
    if window:
        seen &= key > query - window
    return seen[None, None] if mask is None else seen[None, None] & (mask[:, None, None, :] != 0)  # [B, 1, T, S]
