"""Attention in numpy: grouped heads, rotary positions, a cache, windows, padding, softcaps and sinks.

Rotary positions (arXiv 2104.09864, section 3.2) turn the pair (a, b) number i of every query and key by the angle
position * inv_freq[i]. Which elements are a pair is a matter of layout: half-split pairs i with i + rotary_dim / 2
(Hugging Face), interleaved pairs 2 i with 2 i + 1 (the paper, GGUF files of the llama family). Elements from rotary_dim
on are left alone. All scaling variants are in the frequencies and in one factor on cosine and sine (`arch/rope.py`);
two of them have a second table of frequencies for sequences beyond a length (`long`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qdeploy.ir.tensor import Array, Float32

_MASKED = np.finfo(np.float32).min  # not -inf: a row of padding stays finite


def rotate(
    x: Array,
    start: int,
    inv_freq: Array,
    *,
    rotary_dim: int,
    interleaved: bool = False,
    factor: float = 1.0,
    long: Mapping[str, Any] | None = None,
) -> Float32:
    """Rotates heads by their positions.

    Args:
        x: [B, heads, T, D].
        start: Position of the first token.
        inv_freq: Angle per position of each pair, float32 [rotary_dim / 2].
        rotary_dim: How many elements of a head take part; the first ones.
        interleaved: Whether pairs are neighbours.
        factor: Multiplied into cosine and sine.
        long: Frequencies for sequences of more than `beyond` tokens, past and new: `inv_freq` (an array); or `theta`,
            `factor` and `dim`, from which dynamic NTK scaling makes them for each length.

    Returns:
        float32, the shape of x.
    """
    if long is not None and start + x.shape[2] > long["beyond"]:
        inv_freq = _long_frequencies(long, start + x.shape[2])
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


def _long_frequencies(long: Mapping[str, Any], length: int) -> Float32:
    """The frequencies of a sequence beyond `beyond` tokens."""
    if "inv_freq" in long:
        return np.asarray(long["inv_freq"], np.float32)
    dim, beyond, factor = int(long["dim"]), int(long["beyond"]), float(long["factor"])
    theta = long["theta"] * ((factor * length / beyond) - (factor - 1)) ** (dim / (dim - 2))
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers: Float32 = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def rotary(
    x: Array,
    *,
    heads: int,
    length_of: str,
    rope: Mapping[str, Any],
    past: tuple[Array, Array] | None = None,
) -> Float32:
    """Rotates heads by their positions, outside of Attention.

    Args:
        x: [B, T, heads * D].
        heads: How many heads lie in the last axis.
        length_of: Name of the state whose length is the position of the first token; of no effect here.
        rope: As for `attention`.
        past: That state.

    Returns:
        The shape of x.
    """
    batch, length, width = x.shape
    rotated = rotate(_split(x, heads), 0 if past is None else past[0].shape[2], **rope)
    return rotated.swapaxes(1, 2).reshape(batch, length, width)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    bias: Array | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
    window: int = 0,
    state: str = "",
    rope: Mapping[str, Any] | None = None,
    softcap: float = 0.0,
    position_scale: Mapping[str, float] | None = None,
    chunk: int = 0,
    head_dim: int = 0,
    past: tuple[Array, Array] | None = None,
) -> tuple[Float32, tuple[Float32, Float32]]:
    """Softmax(q k^T * scale) v over the past and the new tokens.

    Args:
        q: [B, T, heads * D], before rotation.
        k: [B, T, kv_heads * D] of the new tokens, before rotation.
        v: [B, T, kv_heads * Dv] of the new tokens; mostly D = Dv.
        mask: I64 [B, S], 1 = may be attended to.
        sinks: [heads]: a score of each head that takes part in its softmax and has no value (gpt-oss).
        bias: Added to the scores, broadcast to [B, heads, T, S].
        heads: Query heads; head h uses key head h // (heads / kv_heads).
        kv_heads: Key and value heads.
        scale: Multiplied into the scores.
        causal: Whether a query sees only itself and what came before.
        window: Of that, only keys less than `window` positions away, the query's own included; 0 for all.
        state: Name of the state; of no effect here.
        rope: `inv_freq` (the array itself), `rotary_dim`, `interleaved`, `factor`; None for no rotation.
        softcap: c of c * tanh(scores / c), before the mask; 0 for none.
        position_scale: `beta`, `length`, `offset` of a factor of queries (`_position_factors`).
        chunk: Runs of so many positions, of which a query sees its own; 0 for all.
        head_dim: D, for those who cannot see the shapes.
        past: Rotated keys and values so far, [B, kv_heads, L, D] each.

    Returns:
        [B, T, heads * Dv], and the keys and values [B, kv_heads, L + T, D or Dv].
    """
    query, key, value = _split(q, heads), _split(k, kv_heads), _split(v, kv_heads)
    start = 0 if past is None else past[0].shape[2]
    if rope is not None:
        query, key = (rotate(x, start, **rope) for x in (query, key))
    if position_scale is not None:
        query = query * _position_factors(start, query.shape[2], position_scale)
    if past is not None:
        key, value = np.concatenate((past[0], key), axis=2), np.concatenate((past[1], value), axis=2)
    (batch, _, new, _), total = query.shape, key.shape[2]
    scores = _scores(query, key, scale, softcap) + (np.float32(0) if bias is None else bias)
    scores = _softmax(np.where(_visible((start, new, total), mask, causal, window, chunk), scores, _MASKED), sinks)
    mixed = (scores.reshape(batch, kv_heads, -1, total) @ value).reshape(batch, heads, new, -1)
    return mixed.swapaxes(1, 2).reshape(batch, new, -1), (key, value)  # [B, T, heads * Dv]


def _scores(query: Array, key: Array, scale: float, softcap: float) -> Float32:
    """Of heads in groups that share keys, [B, heads, T, S]."""
    batch, heads, new, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, size)  # [B, kv_heads, repeats * T, D]
    scores: Float32 = (grouped @ key.swapaxes(2, 3) * np.float32(scale)).reshape(batch, heads, new, -1)
    if softcap:
        scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)
    return scores


def _softmax(scores: Array, sinks: Array | None) -> Array:
    greatest = scores.max(axis=-1, keepdims=True)
    if sinks is None:
        exponentials = np.exp(scores - greatest)
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
    column = sinks.reshape(1, -1, 1, 1)
    greatest = np.maximum(greatest, column)
    exponentials = np.exp(scores - greatest)
    return np.asarray(exponentials / (exponentials.sum(axis=-1, keepdims=True) + np.exp(column - greatest)))


def _position_factors(start: int, count: int, scale: Mapping[str, float]) -> Float32:
    """1 + beta * log(1 + floor((position + offset) / length))."""
    place = np.arange(start, start + count, dtype=np.float32) + np.float32(scale.get("offset", 0))
    steps = np.floor(place / np.float32(scale["length"]))
    factors: Float32 = 1 + np.float32(scale["beta"]) * np.log1p(steps).astype(np.float32)
    return factors[:, None]  # [T, 1]


def _split(x: Array, heads: int) -> Array:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)  # [B, heads, T, D]


def _visible(lengths: tuple[int, int, int], mask: Array | None, causal: bool, window: int, chunk: int) -> Array:
    start, new, total = lengths
    query = np.arange(start, start + new)[:, None]
    key = np.arange(total)[None, :]
    seen = key <= query if causal else np.ones((new, total), bool)
    if window:
        seen &= np.abs(query - key) < window
    if chunk:
        seen &= key // chunk == query // chunk
    return seen[None, None] if mask is None else seen[None, None] & (mask[:, None, None, :] != 0)  # [B, 1, T, S]
