"""Rows of the table of ops: layers with a state of fixed size."""

from __future__ import annotations

from typing import Any

from qdeploy.ir.ops.activations import ACTIVATION_CHOICES, activation_of
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.recurrent import Past, causal_conv, gated_delta, selective_scan
from qdeploy.ir.tensor import Array


def _conv(
    x: Array, weight: Array, bias: Array | None = None, *, state: str, activation: str = "", past: Past = None
) -> Any:
    function = activation_of(activation) if activation else None
    return causal_conv(x, weight, bias, activation=function, past=past)


def _delta(
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
    state: str,
    epsilon: float = 1e-6,
    past: Past = None,
) -> Any:
    return gated_delta(q, k, v, a, b, a_log, dt_bias, heads=heads, key_heads=key_heads, epsilon=epsilon, past=past)


def _scan(
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
    state: str,
    least: float = 0.0,
    most: float = 0.0,
    past: Past = None,
) -> Any:
    limits = {"least": least, "most": most}
    return selective_scan(x, dt, b, c, a_log, d, dt_bias, heads=heads, groups=groups, **limits, past=past)


RECURRENT_ROWS = (
    Op(
        "ShortConv",
        QDEPLOY,
        "each channel of x [B, T, C] with its own last tokens, weight [C, 1, K]",
        _conv,
        choices=ACTIVATION_CHOICES,
        state="conv",
    ),
    Op("GatedDeltaNet", QDEPLOY, "the gated delta rule over heads; [B, T, heads * V]", _delta, state="recurrent"),
    Op("Mamba2", QDEPLOY, "a selective state space over heads; [B, T, heads * P]", _scan, state="recurrent"),
)
