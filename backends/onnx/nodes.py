"""Graph nodes to ONNX nodes: one row per op.

Most of our primitives are ONNX operators, as their rows in the table of ops say; small constant inputs (shape, axes,
starts, ends), which are attributes with us, are put back (`Op.constants`). RMSNormalization and SkipNorm take the fused
operators of ONNX Runtime, which exist in every release that reads opset 21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx

from qdeploy.backends.onnx.experts import emit_experts, emit_route
from qdeploy.backends.onnx.hadamard import emit_hadamard
from qdeploy.backends.onnx.passthrough import emit_opaque, emit_operator
from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder, onnx_type
from qdeploy.backends.onnx.recurrent import emit_gated_delta, emit_mamba2, emit_short_conv
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.table import OPS, op


class Scope(Protocol):
    """What an emitter sees of the graph that is being lowered."""

    builder: GraphBuilder

    def value(self, name: str) -> str:
        """The ONNX value of a name in our graph; a weight is given in float32."""
        ...

    def linear(self, x: str, weight: str, output: str) -> None:
        """X @ weight.T in the form that the rules chose for the weight."""
        ...

    def product(self, x: str, weight: str, output: str) -> bool:
        """X @ weight, if the weight has a form for that; otherwise nothing is done."""
        ...

    def gather_rows(self, weight: str, ids: str, output: str) -> None:
        """Rows of a weight as float32."""
        ...

    def is_weight(self, name: str) -> bool:
        """Whether a name is a tensor of the model, and a matrix."""
        ...

    def matrices(self, name: str) -> tuple[str, ...]:
        """The names of the matrices of a stack."""
        ...

    def fixed_state(self, node: Node) -> tuple[str, str]:
        """The input that a node's state comes in by, and the output that it goes out by."""
        ...

    def attention(self, node: Node) -> None:
        """Lowers an Attention node."""
        ...

    def rotary(self, node: Node) -> None:
        """Lowers a Rotary node."""
        ...

    def positions(self) -> str:
        """I64 [B, T]: the place of each new token behind the states."""
        ...


Emitter = Callable[[Scope, Node], None]

_RMS_SINCE = 23
"""The version of ONNX that brought RMSNormalization."""


def emit(scope: Scope, node: Node) -> None:
    """Lowers one node; raises UnsupportedError for an op that has no form in ONNX."""
    if node.op in _SPECIAL:
        _SPECIAL[node.op](scope, node)
    elif op(node.op).is_onnx:
        emit_operator(scope, node)
    else:
        raise UnsupportedError(
            "this op has no form in ONNX", where=node.name, found=node.op, allowed=", ".join(sorted(lowered_ops()))
        )


def lowered_ops() -> frozenset[str]:
    """Every op that `emit` lowers."""
    return frozenset({name for name, row in OPS.items() if row.is_onnx} | set(_SPECIAL))


def _constant(scope: Scope, node: Node) -> None:
    integer = "value_int" in node.attrs
    value = np.array(node.attrs["value_int" if integer else "value_float"], np.int64 if integer else np.float32)
    scope.builder.node("Constant", [], node.outputs, value=onnx.numpy_helper.from_array(value))


def _gather(scope: Scope, node: Node) -> None:
    weight, ids = node.inputs
    if scope.is_weight(weight) and node.attrs.get("axis", 0) == 0:
        scope.gather_rows(weight, scope.value(ids), node.outputs[0])
    else:
        emit_operator(scope, node)


def _mat_mul(scope: Scope, node: Node) -> None:
    x, weight = node.inputs
    if not scope.product(scope.value(x), weight, node.outputs[0]):
        emit_operator(scope, node)


def _cast(scope: Scope, node: Node) -> None:
    attrs: dict[str, Any] = {key: value for key, value in node.attrs.items() if key != "to"}
    to = onnx_type(str(node.attrs["to"]))
    scope.builder.node("Cast", [scope.value(node.inputs[0])], node.outputs, to=to, **attrs)


def _clip(scope: Scope, node: Node) -> None:
    attrs: dict[str, Any] = dict(node.attrs)
    limits = [attrs.get(key) for key in ("min", "max")]
    inputs = ["" if limit is None else scope.builder.constant(limit, "float32") for limit in limits]
    scope.builder.node("Clip", [scope.value(node.inputs[0]), *inputs], node.outputs)


def _lookup(scope: Scope, node: Node) -> None:
    """A table of 256 entries by the place of a code among those of its type: here, of unsigned ones."""
    codes, table = (scope.value(name) for name in node.inputs)
    index = scope.builder.node("Cast", [codes], to=onnx_type("I32"))
    scope.builder.node("Gather", [table, index], node.outputs, axis=0)


def _shape(scope: Scope, node: Node) -> None:
    attrs: dict[str, Any] = {key: value for key, value in node.attrs.items() if value is not None}
    scope.builder.node("Shape", [scope.value(node.inputs[0])], node.outputs, **attrs)


def _linear(scope: Scope, node: Node) -> None:
    x, weight, *bias = node.inputs
    biased = bool(bias and bias[0])
    output = scope.builder.fresh("product") if biased else node.outputs[0]
    scope.linear(scope.value(x), weight, output)
    if biased:
        scope.builder.node("Add", [output, scope.value(bias[0])], node.outputs)


def _rms_normalization(scope: Scope, node: Node) -> None:
    """ONNX's own operator where the source is of a version that has it, else the older one of ONNX Runtime alone."""
    scope.builder.node(
        "RMSNormalization" if scope.builder.source_opset >= _RMS_SINCE else "SimplifiedLayerNormalization",
        [scope.value(name) for name in node.inputs],
        node.outputs,
        axis=-1,
        stash_type=1,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),  # type: ignore[arg-type]
    )


def _skip_norm(scope: Scope, node: Node) -> None:
    rms = node.attrs["kind"] == "rms"
    inputs = [scope.value(name) for name in node.inputs if name]
    normal, *total = node.outputs
    outputs = (normal, "", "", total[0]) if total and total[0] else (normal,)
    op = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
    scope.builder.node(op, inputs[:3] if rms else inputs, outputs, MICROSOFT, epsilon=float(node.attrs["epsilon"]))  # type: ignore[arg-type]


def _attention(scope: Scope, node: Node) -> None:
    scope.attention(node)


def _rotary(scope: Scope, node: Node) -> None:
    scope.rotary(node)


def _stack(scope: Scope, node: Node) -> None:
    """Nothing: what takes a stack asks for its matrices."""


def _positions_behind(scope: Scope, node: Node) -> None:
    scope.builder.node("Identity", [scope.positions()], node.outputs)


_SPECIAL: Mapping[str, Emitter] = {
    "Constant": _constant,
    "Gather": _gather,
    "MatMul": _mat_mul,
    "Cast": _cast,
    "Clip": _clip,
    "Shape": _shape,
    "Linear": _linear,
    "RMSNormalization": _rms_normalization,
    "SkipNorm": _skip_norm,
    "Attention": _attention,
    "Rotary": _rotary,
    "PositionsBehind": _positions_behind,
    "Stack": _stack,
    "ShortConv": emit_short_conv,
    "GatedDeltaNet": emit_gated_delta,
    "Mamba2": emit_mamba2,
    "Route": emit_route,
    "Experts": emit_experts,
    "Hadamard": emit_hadamard,
    "Opaque": emit_opaque,
    "Lookup": _lookup,
}
