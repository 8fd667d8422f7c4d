"""Mixtures of experts in numpy: which experts a token goes to, and what they give.

A router's logits become scores; the best `top_k` experts are chosen, perhaps among the best groups only, and perhaps by
scores with a bias that only the choice sees (arXiv 2412.19437, section 2.1.2). Their weights are normalised and scaled
as the family says. Each chosen expert is an MLP of its own; a token's result is their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.tensor import Array, Float32

Scores = Literal["softmax", "sigmoid", "softmax_of_chosen", "mixer"]


def route(
    logits: Array,
    bias: Array | None = None,
    scales: Array | None = None,
    *,
    top_k: int,
    scores: Scores = "softmax",
    groups: int = 1,
    kept_groups: int = 1,
    group_score: Literal["two", "best"] = "two",
    normalize: bool = False,
    epsilon: float = 0.0,
    least: float = 0.0,
    scale: float = 1.0,
    jitter: float = 0.0,
) -> tuple[Array, Float32]:
    """Chooses experts.

    Args:
        logits: float32 [B, T, E].
        bias: E numbers that are added to the scores for the choice alone.
        scales: E numbers; the weight of an expert is multiplied with its own.
        top_k: How many experts a token goes to.
        scores: "softmax" or "sigmoid" of all logits; "softmax_of_chosen": the choice is made by logits; "mixer": two
            experts, one after the other, each with its softmax among the logits close to it (arXiv 2409.12136).
        groups: Into how many runs of neighbours the experts are divided.
        kept_groups: How many of them are left to choose from.
        group_score: A group counts by the sum of its "two" best scores, or by its "best".
        normalize: Whether weights are divided by their sum.
        epsilon: Added to that sum.
        least: The least that it counts as.
        scale: Multiplied into the weights.
        jitter: Of "mixer": how far below the best, relative to it, logits still count, twice over.

    Returns:
        I64 [B, T, top_k], best first (ties: the smaller number), and their weights, float32 of the same shape.
    """
    if not 1 <= top_k <= logits.shape[-1] or logits.shape[-1] % groups or (scores == "mixer" and top_k != 2):
        raise BadArgumentError("so many experts cannot be chosen", found=top_k, allowed=f"1..{logits.shape[-1]}")
    if scores == "mixer":
        return _mixed(logits, np.float32(jitter))
    values = _SCORES[scores](logits)
    choice = values if bias is None else values + bias.reshape(-1)
    if kept_groups < groups:
        choice = _of_groups(choice, groups, kept_groups, 2 if group_score == "two" else 1)
    ids = _best(choice, top_k)
    weights = np.take_along_axis(values, ids, axis=-1)
    if scores == "softmax_of_chosen":
        weights = _softmax(weights)
    if normalize:
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True) + np.float32(epsilon), np.float32(least))
    weights = weights * np.float32(scale)
    return ids, weights if scales is None else weights * scales.reshape(-1)[ids]


def experts(
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
    activation: Callable[[Array], Array],
    limit: float = 0.0,
    weighted: Literal["outputs", "inputs"] = "outputs",
) -> Float32:
    """The weighted sum of each token's experts: down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate.

    Args:
        x: [B, T, H].
        ids: I64 [B, T, k].
        weights: [B, T, k].
        up: [E, I, H]; likewise `gate`.
        down: [E, H, I].
        gate: The projection that is activated; None for none.
        up_bias: [E, I]; likewise `gate_bias`.
        down_bias: [E, H].
        gate_bias: Of the gate.
        activation: Of single numbers.
        limit: Above 0, up and gate are limited: gate to at most `limit`, up to `limit` on either side, and 1 is added
            to up (gpt-oss).
        weighted: What the weights are multiplied into.

    Returns:
        float32, the shape of x.
    """
    flat, chosen = x.reshape(-1, x.shape[-1]), ids.reshape(-1, ids.shape[-1])
    shares = weights.reshape(-1, ids.shape[-1])
    out: Float32 = np.zeros((len(flat), down.shape[1]), np.float32)
    biases: Mapping[str, Array | None] = {"up": up_bias, "down": down_bias, "gate": gate_bias}
    for expert in np.unique(chosen).tolist():
        tokens, place = np.nonzero(chosen == expert)
        share = shares[tokens, place][:, None].astype(np.float32)
        rows = flat[tokens] * share if weighted == "inputs" else flat[tokens]
        raised = _part(rows, up, biases["up"], expert)
        opened = None if gate is None else _part(rows, gate, biases["gate"], expert)
        result = _part(_inner(raised, opened, activation, np.float32(limit)), down, biases["down"], expert)
        np.add.at(out, tokens, result if weighted == "inputs" else result * share)
    return out.reshape(*x.shape[:-1], down.shape[1])


def _part(x: Array, weight: Array, bias: Array | None, expert: int) -> Array:
    product: Array = x @ weight[expert].T
    return product if bias is None else product + bias[expert]


def _inner(up: Array, gate: Array | None, activation: Callable[[Array], Array], limit: np.float32) -> Array:
    if gate is None:
        return activation(up)
    if limit:
        raised: Array = np.clip(up, -limit, limit) + 1
        return activation(np.minimum(gate, limit)) * raised
    return activation(gate) * up


def stack(first: Array, *others: Array) -> Array:
    """Arrays of one shape along a new first axis."""
    return np.stack((first, *others))


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _best(choice: Array, count: int) -> Array:
    return np.argsort(-choice, axis=-1, kind="stable")[..., :count].astype(np.int64)


def _of_groups(choice: Array, groups: int, kept: int, counted: int) -> Array:
    """The scores, those outside of the best groups without a chance."""
    grouped = choice.reshape(*choice.shape[:-1], groups, -1)
    best = -np.sort(-grouped, axis=-1)[..., :counted].sum(axis=-1)  # [B, T, groups]
    inside = np.zeros(best.shape, bool)
    np.put_along_axis(inside, _best(best, kept), True, axis=-1)
    return np.where(inside[..., None], grouped, -np.inf).reshape(choice.shape)


def _mixed(logits: Array, jitter: np.float32) -> tuple[Array, Float32]:
    ids, weights, left = [], [], logits
    for _ in range(2):
        first = _best(left, 1)
        greatest = np.take_along_axis(left, first, axis=-1)
        far = (greatest - logits) / np.maximum(np.abs(logits), greatest) > 2 * jitter
        shares = _softmax(np.where(far, np.float32(-np.inf), left))
        ids.append(first)
        weights.append(np.take_along_axis(shares, first, axis=-1))
        left = left.copy()
        np.put_along_axis(left, first, np.float32(-np.inf), axis=-1)
    return np.concatenate(ids, axis=-1), np.concatenate(weights, axis=-1).astype(np.float32)


_SCORES: Mapping[str, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "softmax_of_chosen": lambda logits: logits,
}
