"""Mixtures of experts as nodes: a route gives numbers of experts and their weights, side by side in one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qdeploy.backends.native.layout import NONE, Activation, Op, Scores
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node

if TYPE_CHECKING:
    from qdeploy.backends.native.plan import Planning

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU,
    "tanh": Activation.TANH,
}
_SQUARED = -1.0  # in the place of alpha


def route(planning: Planning, node: Node) -> None:
    """The choice of experts; both outputs are one value."""
    attrs: Mapping[str, Any] = node.attrs
    logits, top = planning.source(node.inputs[0]), int(attrs["top_k"])
    words = (
        top,
        int(Scores[str(attrs.get("scores", "softmax")).upper()]),
        int(attrs.get("groups", 1)),
        int(attrs.get("kept_groups", 1)),
        2 if attrs.get("group_score", "two") == "two" else 1,
        int(bool(attrs.get("normalize"))),
        *(float(attrs.get(name, 0.0)) for name in ("epsilon", "least")),
        float(attrs.get("scale", 1.0)),
        float(attrs.get("jitter", 0.0)),
    )
    tensors = tuple(planning.tensor(name) if name else NONE for name in node.inputs[1:])
    value = planning.emit(Op.ROUTE, (logits,), node.outputs[0], 2 * top, tensors=tensors, attrs=words)
    planning.rename(node.outputs[1], value)


def experts(planning: Planning, node: Node) -> None:
    """The experts, whose matrices are listed behind the attributes."""
    attrs: Mapping[str, Any] = node.attrs
    x, ids, shares, up, down, gate, up_bias, down_bias, gate_bias = (*node.inputs, *[""] * (9 - len(node.inputs)))
    source, choices = planning.source(x), planning.source(ids)
    name, alpha = str(attrs["activation"]), float(attrs.get("alpha", 1.0))
    if planning.source(shares) != choices or (gate and name == "relu2"):
        raise UnsupportedError("experts of a kind that the native runtime does not have", where=node.name, found=name)
    stacks = [planning.makers[stack].inputs for stack in (up, down, gate) if stack]
    words = (
        int(attrs["count"]),
        planning.width(choices) // 2,
        int(_ACTIVATIONS[name]),
        int(bool(gate)),
        int(attrs.get("weighted") == "inputs"),
        _SQUARED if name == "relu2" else alpha,
        float(attrs.get("limit", 0.0)),
        *(planning.tensor(bias) if bias else NONE for bias in (up_bias, down_bias, gate_bias)),
        *(planning.matrix(matrix) for stack in stacks for matrix in stack),
    )
    planning.emit(Op.EXPERTS, (source, choices), node.outputs[0], planning.width(source), attrs=words)
