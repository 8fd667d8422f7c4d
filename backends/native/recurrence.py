"""Layers with a state of fixed size as nodes; see runtime/src/ops/recurrence.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.backends.native.layout import Activation, Op, StateKind, ValueKind
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node, State

if TYPE_CHECKING:
    from qdeploy.backends.native.plan import Planning


def conv(planning: Planning, node: Node) -> None:
    """A short convolution; its weights lie tap after tap."""
    x, weight, *bias = node.inputs
    source, name = planning.source(x), str(node.attrs.get("activation", ""))
    if name not in ("", "silu"):
        raise UnsupportedError("an activation behind a short convolution", where=node.name, found=name)
    taps = planning.tensor_of(weight).decode().reshape(planning.width(source), -1)
    tensors = [planning.new_tensor(f"{weight}.taps", taps.T)] + [planning.tensor(b) for b in bias if b]
    attrs = (taps.shape[1], Activation.SILU + 1 if name else 0)
    planning.keeping(Op.CONV, (source,), node, planning.width(source), tuple(tensors), attrs)


def delta(planning: Planning, node: Node) -> None:
    """The gated delta rule; a and b are one value."""
    q, k, v, a, b = (planning.source(name) for name in node.inputs[:5])
    width = planning.width(a) + planning.width(b)
    gates = planning.emit(Op.JOIN, (a, b), f"{node.outputs[0]}/gates", width, ValueKind.PER_TOKEN, attrs=(1, 0, 0))
    attrs: Mapping[str, Any] = node.attrs
    tensors = tuple(planning.tensor(name) for name in node.inputs[5:])
    words = (int(attrs["heads"]), int(attrs["key_heads"]), float(attrs.get("epsilon", 1e-6)))
    planning.keeping(Op.DELTA, (q, k, v, gates), node, planning.width(v), tensors, words)


def scan(planning: Planning, node: Node) -> None:
    """A selective state space; its three vectors are one tensor."""
    inputs = tuple(planning.source(name) for name in node.inputs[:4])
    vectors = [planning.tensor_of(name).decode().reshape(-1) for name in node.inputs[4:]]
    tensor = planning.new_tensor(f"{node.outputs[0]}/vectors", np.concatenate(vectors))
    attrs: Mapping[str, Any] = node.attrs
    limits = (float(attrs.get("least", 0.0)), float(attrs.get("most", 0.0)))
    words = (int(attrs["heads"]), int(attrs["groups"]), *limits)
    planning.keeping(Op.SCAN, inputs, node, planning.width(inputs[0]), (tensor,), words)


def record(state: State, ops: Mapping[str, str]) -> tuple[int, int, int, int]:
    """The fields of a state's record: matrices of a state space lie the other way round."""
    kind = StateKind[state.kind.upper()]
    rows, columns = state.head_dim, state.value_dim
    if ops.get(state.name) == "Mamba2":
        rows, columns = columns, rows
    return state.heads, rows, columns, kind
