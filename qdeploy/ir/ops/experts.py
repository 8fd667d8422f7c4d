"""Rows of the table of ops: mixtures of experts, and tensors of one shape as one."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.ir.expand import experts as expansion
from qdeploy.ir.experts import experts, route, stack
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.activations import ACTIVATION_CHOICES, activation_of, sigmoid
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.tensor import Array


def _experts(
    x: Array,
    ids: Array,
    weights: Array,
    up: Array,
    down: Array,
    gate: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    gate_bias: Array | None = None,
    *,
    count: int,
    activation: str,
    alpha: float = 1.0,
    limit: float = 0.0,
    weighted: Any = "outputs",
) -> Array:
    """See `ir/experts.py`; with `alpha`, "silu" is x * sigmoid(alpha * x)."""
    scaled = activation == "silu" and alpha != 1
    function = (lambda y: y * sigmoid(np.float32(alpha) * y)) if scaled else activation_of(activation)
    matrices, biases = (up, down, gate), (up_bias, down_bias, gate_bias)
    return experts(x, ids, weights, *matrices, *biases, activation=function, limit=limit, weighted=weighted)


EXPERT_ROWS = (
    Op("Stack", QDEPLOY, "tensors of one shape along a new first axis", stack, moves=True, interval=intervals.concat),
    Op(
        "Route",
        QDEPLOY,
        "router logits [B, T, E] to experts I64 [B, T, k] and their weights [B, T, k]",
        route,
        choices={
            "scores": ("softmax", "sigmoid", "softmax_of_chosen", "mixer"),
            "group_score": ("two", "best"),
        },
    ),
    Op(
        "Experts",
        QDEPLOY,
        "the weighted sum of each token's experts; weights [E, N, K]",
        _experts,
        expansion,
        choices={**ACTIVATION_CHOICES, "weighted": ("outputs", "inputs")},
    ),
)
