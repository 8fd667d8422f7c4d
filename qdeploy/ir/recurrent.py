"""Layers with a state of fixed size, in numpy: short convolutions, gated delta rules and selective state spaces.

Each takes its tokens one after the other and gives, beside its result, its state behind the last one; so a sequence in
parts gives the same numbers as the sequence at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.tensor import Array, Float32

Past = tuple[Array, ...] | None


def causal_conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: Callable[[Array], Array] | None = None,
    past: Past = None,
) -> tuple[Float32, tuple[Float32]]:
    """A convolution over each channel's own last K tokens.

    Args:
        x: [B, T, C].
        weight: [C, 1, K] or [C, K]; the last entry meets the token itself.
        bias: [C].
        activation: Of the result.
        past: The last K - 1 tokens, [B, C, K - 1]; None: zeros.

    Returns:
        [B, T, C], and the last K - 1 tokens.
    """
    batch, length, channels = x.shape
    taps = weight.reshape(channels, -1)
    size = taps.shape[1]
    before = np.zeros((batch, channels, size - 1), np.float32) if past is None else past[0]
    line = np.concatenate((before, x.swapaxes(1, 2)), axis=2)  # [B, C, K - 1 + T]
    out = np.zeros((batch, channels, length), np.float32)
    for tap in range(size):
        out += taps[:, tap, None] * line[:, :, tap : tap + length]
    if bias is not None:
        out += bias[:, None]
    result = out.swapaxes(1, 2)
    return (result if activation is None else activation(result)), (line[:, :, length:],)


def gated_delta(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    a_log: Array,
    dt_bias: Array,
    *,
    heads: int,
    key_heads: int,
    epsilon: float = 1e-6,
    past: Past = None,
) -> tuple[Float32, tuple[Float32]]:
    """The gated delta rule (arXiv 2412.06464, equation 10; by channel: arXiv 2510.26692).

    g = exp(-exp(a_log) * softplus(a + dt_bias)), beta = sigmoid(b), q and k of length 1 per head, q over sqrt(D):
    S = g * S;  S = S + k (beta * (v - S^T k))^T;  out = S^T q

    Args:
        q: [B, T, key_heads * D]; head h of values uses key head h // (heads / key_heads).
        k: The same shape.
        v: [B, T, heads * V].
        a: [B, T, heads], or [B, T, heads * D] for a decay per channel.
        b: [B, T, heads].
        a_log: [heads].
        dt_bias: As many as the last extent of a.
        heads: Of values.
        key_heads: Of queries and keys.
        epsilon: Added to the square of a length.
        past: S, [B, heads, D, V]; None: zeros.

    Returns:
        [B, T, heads * V], and S.
    """
    batch, length, _ = v.shape
    query, key = (_unit(_heads(x, key_heads), epsilon).repeat(heads // key_heads, axis=2) for x in (q, k))
    query = query * np.float32(query.shape[-1] ** -0.5)
    value, beta = _heads(v, heads), _sigmoid(b)[..., None]  # [B, T, heads, V], [B, T, heads, 1]
    step = _heads(_softplus(a + dt_bias.reshape(-1)), heads)  # [B, T, heads, 1 or D]
    decay = np.exp(-np.exp(a_log.reshape(-1, 1)) * step)[..., None]  # [B, T, heads, 1 or D, 1]
    size = (batch, heads, query.shape[-1], value.shape[-1])
    state = np.zeros(size, np.float32) if past is None else past[0]
    out = np.zeros(value.shape, np.float32)
    for t in range(length):
        state = state * decay[:, t]
        change = (value[:, t] - np.einsum("bhdv,bhd->bhv", state, key[:, t])) * beta[:, t]
        state = state + key[:, t][..., None] * change[:, :, None]
        out[:, t] = np.einsum("bhdv,bhd->bhv", state, query[:, t])
    return out.reshape(batch, length, -1), (state,)


def selective_scan(
    x: Array,
    dt: Array,
    b: Array,
    c: Array,
    a_log: Array,
    d: Array,
    dt_bias: Array,
    *,
    heads: int,
    groups: int,
    least: float = 0.0,
    most: float = 0.0,
    past: Past = None,
) -> tuple[Float32, tuple[Float32]]:
    """Mamba-2's state space (arXiv 2405.21060, section 7).

    dt = softplus(dt + dt_bias), limited;  S = exp(-exp(a_log) * dt) * S + dt * x b^T;  out = S c + d * x

    Args:
        x: [B, T, heads * P].
        dt: [B, T, heads].
        b: [B, T, groups * N]; head h uses group h // (heads / groups).
        c: The same shape.
        a_log: [heads]; likewise d and dt_bias.
        d: What of x passes by.
        dt_bias: Added to dt.
        heads: Of x.
        groups: Of b and c.
        least: The least step.
        most: The greatest step; 0 for none.
        past: S, [B, heads, P, N]; None: zeros.

    Returns:
        [B, T, heads * P], and S.
    """
    batch, length, _ = x.shape
    if heads % groups:
        raise BadArgumentError("heads are not a multiple of the groups", found=f"{heads}, {groups}")
    inner, step = _heads(x, heads), _softplus(dt + dt_bias)
    step = np.clip(step, np.float32(least), np.float32(most) if most else None)
    into, out_of = (_heads(y, groups).repeat(heads // groups, axis=2) for y in (b, c))  # [B, T, heads, N]
    decay = np.exp(-np.exp(a_log) * step)
    size = (batch, heads, inner.shape[-1], into.shape[-1])
    state = np.zeros(size, np.float32) if past is None else past[0]
    out = np.zeros(inner.shape, np.float32)
    for t in range(length):
        taken = (inner[:, t] * step[:, t, :, None])[..., None] * into[:, t][:, :, None]
        state = state * decay[:, t][..., None, None] + taken
        out[:, t] = np.einsum("bhpn,bhn->bhp", state, out_of[:, t]) + d[:, None] * inner[:, t]
    return out.reshape(batch, length, -1), (state,)


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)  # [B, T, heads, D]


def _unit(x: Array, epsilon: float) -> Array:
    return np.asarray(x / np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True) + np.float32(epsilon)))


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.float32(0)).astype(np.float32)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
