"""Mixtures of experts to plain operators: tokens are sorted by expert, so that each expert sees only its tokens.

    chosen   [E, N k]     whether place p of all tokens' choices is expert e
    places   [N k]        the places in the order of experts: NonZero gives them row by row
    parts    E values     the tokens of each expert, [1, n, H] with n perhaps 0: Split by the counts of `chosen`
    results  [1, N k, H]  joined, times their weights, put back to their places and summed over a token's choices

A product with no rows reads no weights, so that a step reads the experts that it needs. The matrices take the forms
that any other matrix has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
_UNSEEN = -np.inf


class Scope(Protocol):
    """What the emitters see of the graph that is being lowered."""

    builder: GraphBuilder

    def value(self, name: str) -> str:
        """The ONNX value of a name; a weight is given in float32."""
        ...

    def linear(self, x: str, weight: str, output: str) -> None:
        """X @ weight.T in the form that the rules chose for the weight."""
        ...

    def matrices(self, name: str) -> tuple[str, ...]:
        """The names of the matrices of a stack."""
        ...


def emit_route(scope: Scope, node: Node) -> None:
    """Lowers a Route node."""
    attrs: Mapping[str, Any] = node.attrs
    builder, logits = scope.builder, scope.value(node.inputs[0])
    scores = attrs.get("scores", "softmax")
    if scores == "mixer":
        _mixer(builder, logits, attrs, node.outputs)
        return
    values = logits
    if scores in ("softmax", "sigmoid"):
        values = _softmax(builder, logits) if scores == "softmax" else builder.node("Sigmoid", [logits])
    choice = values
    if len(node.inputs) > 1 and node.inputs[1]:
        flat = builder.node("Reshape", [scope.value(node.inputs[1]), _ints(builder, [-1])])
        choice = builder.node("Add", [values, flat])
    if attrs.get("kept_groups", 1) < attrs.get("groups", 1):
        choice = _of_groups(builder, choice, attrs)
    count = _ints(builder, [attrs["top_k"]])
    builder.node("TopK", [choice, count], (builder.fresh("best"), node.outputs[0]), axis=-1, sorted=1)
    weights = builder.node("GatherElements", [values, node.outputs[0]], axis=-1)
    if scores == "softmax_of_chosen":
        weights = _softmax(builder, weights)
    if attrs.get("normalize"):
        weights = builder.node("Div", [weights, _sum_of(builder, weights, attrs)])
    scale = builder.constant(attrs.get("scale", 1.0), "float32")
    if len(node.inputs) > 2:
        flat = builder.node("Reshape", [scope.value(node.inputs[2]), _ints(builder, [-1])])
        scale = builder.node("Mul", [builder.node("Gather", [flat, node.outputs[0]], axis=0), scale])
    builder.node("Mul", [weights, scale], node.outputs[1])


def _sum_of(builder: GraphBuilder, weights: str, attrs: Mapping[str, Any]) -> str:
    total = builder.node("ReduceSum", [weights, _ints(builder, [-1])], keepdims=1)
    if attrs.get("epsilon"):
        total = builder.node("Add", [total, builder.constant(attrs["epsilon"], "float32")])
    return builder.node("Max", [total, builder.constant(attrs["least"], "float32")]) if attrs.get("least") else total


def _of_groups(builder: GraphBuilder, choice: str, attrs: Mapping[str, Any]) -> str:
    """Scores, those outside of the best groups minus infinity."""
    groups = attrs["groups"]
    grouped = builder.node("Reshape", [choice, _ints(builder, [0, 0, groups, -1])])
    counted = 2 if attrs.get("group_score", "two") == "two" else 1
    best, _ = _top(builder, grouped, counted)
    totals = builder.node("ReduceSum", [best, _ints(builder, [-1])], keepdims=0)  # [B, T, groups]
    _, kept = _top(builder, totals, attrs["kept_groups"])
    numbers = builder.constant(np.arange(groups).reshape(1, 1, groups, 1), "int64")
    same = builder.node("Equal", [numbers, builder.node("Unsqueeze", [kept, _ints(builder, [2])])])
    inside = builder.node("ReduceMax", [builder.node("Cast", [same], to=INT64), _ints(builder, [-1])], keepdims=1)
    unseen = builder.constant(_UNSEEN, "float32")
    seen = builder.node("Where", [builder.node("Cast", [inside], to=onnx.TensorProto.BOOL), grouped, unseen])
    return builder.node("Reshape", [seen, builder.node("Shape", [choice])])


def _top(builder: GraphBuilder, x: str, count: int) -> tuple[str, ...]:
    """The greatest entries of the last axis, and their places."""
    names = (builder.fresh("best"), builder.fresh("places"))
    return builder.node("TopK", [x, _ints(builder, [count])], names, axis=-1)


def _mixer(builder: GraphBuilder, logits: str, attrs: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Two experts, one after the other, each with its softmax among the logits close to it."""
    unseen, double = (builder.constant(x, "float32") for x in (_UNSEEN, 2 * float(attrs.get("jitter", 0.0))))
    magnitude, left = builder.node("Abs", [logits]), logits
    ids, weights = [], []
    for _ in range(2):
        greatest, first = _top(builder, left, 1)
        below = builder.node("Sub", [greatest, logits])
        relative = builder.node("Div", [below, builder.node("Max", [magnitude, greatest])])
        far = builder.node("Greater", [relative, double])
        shares = _softmax(builder, builder.node("Where", [far, unseen, left]))
        ids.append(first)
        weights.append(builder.node("GatherElements", [shares, first], axis=-1))
        gone = builder.node("Expand", [unseen, builder.node("Shape", [first])])
        left = builder.node("ScatterElements", [left, first, gone], axis=-1)
    builder.node("Concat", ids, outputs[0], axis=-1)
    builder.node("Concat", weights, outputs[1], axis=-1)


def emit_experts(scope: Scope, node: Node) -> None:
    """Lowers an Experts node whose weights are stacks of matrices (`passes/experts.py`)."""
    builder, inputs = scope.builder, (*node.inputs, *[""] * (9 - len(node.inputs)))
    x, ids, weights = (scope.value(name) for name in inputs[:3])
    up, down, gate = (scope.matrices(name) if name else () for name in inputs[3:6])
    biases = [scope.value(name) if name else "" for name in inputs[6:]]
    plan = _Sorted(builder, ids, weights, len(up))
    tokens = plan.tokens(x)
    first = node.attrs.get("weighted") == "inputs"
    if first:
        tokens = builder.node("Mul", [tokens, plan.weights])
    results = []
    for expert, part in enumerate(plan.split(tokens)):
        parts = {"up": _linear(scope, part, up[expert], biases[0], expert)}
        if gate:
            parts["gate"] = _linear(scope, part, gate[expert], biases[2], expert)
        results.append(_linear(scope, _inner(builder, parts, node.attrs), down[expert], biases[1], expert))
    joined = builder.node("Concat", results, axis=1)
    if not first:
        joined = builder.node("Mul", [joined, plan.weights])
    plan.sum(joined, x, node.outputs[0])


class _Sorted:
    """The choices of all tokens in the order of experts."""

    def __init__(self, builder: GraphBuilder, ids: str, weights: str, count: int) -> None:
        self._builder, self._count = builder, count
        self._choices = builder.node("Shape", [ids], start=2, end=3)
        flat = builder.node("Reshape", [ids, _ints(builder, [1, -1])])
        numbers = builder.constant(np.arange(count).reshape(-1, 1), "int64")
        chosen = builder.node("Equal", [numbers, flat])  # [E, N k]
        nonzero = builder.node("NonZero", [chosen])
        self._places = builder.node("Gather", [nonzero, builder.tensor(1, "int64")])  # [N k]
        whole = builder.node("Cast", [chosen], to=INT64)
        self._counts = builder.node("ReduceSum", [whole, _ints(builder, [1])], keepdims=0)
        column = builder.node("Reshape", [weights, _ints(builder, [1, -1, 1])])
        self.weights = builder.node("Gather", [column, self._places], axis=1)  # [1, N k, 1]

    def tokens(self, x: str) -> str:
        """The token of each choice, [1, N k, H]."""
        builder = self._builder
        place = builder.node("Div", [self._places, self._choices])
        flat = builder.node("Flatten", [x], axis=2)  # [N, H]
        return builder.node("Unsqueeze", [builder.node("Gather", [flat, place]), _ints(builder, [0])])

    def split(self, tokens: str) -> tuple[str, ...]:
        """The tokens of each expert."""
        names = tuple(self._builder.fresh("tokens") for _ in range(self._count))
        return self._builder.node("Split", [tokens, self._counts], names, axis=1)

    def sum(self, results: str, like: str, output: str) -> None:
        """Results [1, N k, H] at their places, summed over the choices of a token."""
        builder = self._builder
        flat = builder.node("Squeeze", [results, _ints(builder, [0])])
        shape = builder.node("Shape", [flat])
        empty = builder.node("ConstantOfShape", [shape])
        index = builder.node("Unsqueeze", [self._places, _ints(builder, [1])])
        back = builder.node("ScatterND", [empty, index, flat])  # [N k, H]
        width = builder.node("Shape", [flat], start=1)
        extents = builder.node("Concat", [_ints(builder, [-1]), self._choices, width], axis=0)
        by_token = builder.node("Reshape", [back, extents])  # [N, k, H]
        total = builder.node("ReduceSum", [by_token, _ints(builder, [1])], keepdims=0)
        builder.node("Reshape", [total, builder.node("Shape", [like])], output)


def _linear(scope: Scope, x: str, weight: str, bias: str, expert: int) -> str:
    builder = scope.builder
    product = builder.fresh("product")
    scope.linear(x, weight, product)
    if not bias:
        return product
    row = builder.node("Gather", [bias, builder.tensor(expert, "int64")], axis=0)
    return builder.node("Add", [product, row])


def _inner(builder: GraphBuilder, parts: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    """What stands between an expert's projections."""
    activation, limit = str(attrs["activation"]), attrs.get("limit", 0.0)
    up, gate = parts["up"], parts.get("gate", "")
    if not gate:
        return _activated(builder, up, activation, attrs)
    if limit:
        low, high = (builder.tensor(x, "float32") for x in (-limit, limit))
        gate = builder.node("Clip", [gate, "", high])
        up = builder.node("Add", [builder.node("Clip", [up, low, high]), builder.constant(1.0, "float32")])
    return builder.node("Mul", [_activated(builder, gate, activation, attrs), up])


def _activated(builder: GraphBuilder, x: str, activation: str, attrs: Mapping[str, Any]) -> str:
    if activation == "silu":
        alpha = attrs.get("alpha", 1.0)
        steep = x if alpha == 1 else builder.node("Mul", [x, builder.constant(alpha, "float32")])
        return builder.node("Mul", [x, builder.node("Sigmoid", [steep])])
    if activation in ("gelu", "gelu_tanh"):
        return builder.node("Gelu", [x], approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "relu2":
        positive = builder.node("Relu", [x])
        return builder.node("Mul", [positive, positive])
    if activation in ("relu", "tanh"):
        return builder.node(activation.capitalize(), [x])
    raise UnsupportedError("an activation that experts do not have in ONNX", found=activation)


def _softmax(builder: GraphBuilder, x: str) -> str:
    return builder.node("Softmax", [x], axis=-1)


def _ints(builder: GraphBuilder, numbers: list[int]) -> str:
    return builder.constant(numbers, "int64")
