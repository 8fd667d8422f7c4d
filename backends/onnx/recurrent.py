"""Layers with a state of fixed size to plain operators; states come in and go out as `past_state.N`, `present_state.N`.

    ShortConv       Conv with a group per channel, over the last tokens of the state and the new ones
    GatedDeltaNet   Scan over the tokens, a few products of matrices per step
    Mamba2          the same

What a step takes is computed for all tokens before. Padded batches are not told apart: a state sees every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.ir.graph import Node

FLOAT = onnx.TensorProto.FLOAT
_END = np.iinfo(np.int64).max


class Scope(Protocol):
    """What the emitters see of the graph that is being lowered."""

    builder: GraphBuilder

    def value(self, name: str) -> str:
        """The ONNX value of a name; a weight is given in float32."""
        ...

    def fixed_state(self, node: Node) -> tuple[str, str]:
        """The input that a node's state comes in by, and the output that it goes out by."""
        ...


class _Step(GraphBuilder):
    """The body of a Scan; its names are unlike those of the graph around it."""

    def __init__(self, outer: GraphBuilder) -> None:
        super().__init__("step")
        self._outer = outer

    def fresh(self, hint: str) -> str:
        return self._outer.fresh(hint)


def emit_short_conv(scope: Scope, node: Node) -> None:
    """Lowers a ShortConv node."""
    builder, (past, present) = scope.builder, scope.fixed_state(node)
    x, weight, *bias = (scope.value(name) for name in node.inputs)
    transposed = builder.node("Transpose", [x], perm=[0, 2, 1])  # [B, C, T]
    line = builder.node("Concat", [past, transposed], axis=2)
    channels = builder.node("Shape", [transposed], start=1, end=2)
    shape = builder.node("Concat", [channels, _ints(builder, 1, -1)], axis=0)
    taps = builder.node("Reshape", [weight, shape])
    group = _channels(scope, node)
    mixed = builder.node("Conv", [line, taps, *bias], group=group)
    if node.attrs.get("activation"):
        mixed = _silu(builder, mixed)
    builder.node("Transpose", [mixed], node.outputs[0], perm=[0, 2, 1])
    kept = builder.node("Shape", [past], start=2, end=3)
    first = builder.node("Sub", [_ints(builder, 0), kept])
    builder.node("Slice", [line, first, _ints(builder, _END), _ints(builder, 2)], present)


def _channels(scope: Scope, node: Node) -> int:
    state = next(v for v in scope.builder.graph.input if v.name == scope.fixed_state(node)[0])
    return int(state.type.tensor_type.shape.dim[1].dim_value)


def emit_gated_delta(scope: Scope, node: Node) -> None:
    """Lowers a GatedDeltaNet node."""
    builder, attrs = scope.builder, node.attrs
    heads, key_heads = int(attrs["heads"]), int(attrs["key_heads"])  # type: ignore[arg-type]
    q, k, v, a, b, a_log, dt_bias = (scope.value(name) for name in node.inputs)
    epsilon = float(attrs.get("epsilon", 1e-6))  # type: ignore[arg-type]
    query, key = (_unit(builder, _heads(builder, x, key_heads), epsilon) for x in (q, k))
    size = builder.node("Cast", [builder.node("Shape", [query], start=3)], to=FLOAT)
    query = builder.node("Div", [query, builder.node("Sqrt", [size])])
    if heads != key_heads:
        which = builder.constant(np.arange(heads) // (heads // key_heads), "int64")
        query, key = (builder.node("Gather", [x, which], axis=2) for x in (query, key))
    flat = builder.node("Reshape", [dt_bias, _ints(builder, -1)])
    step = _heads(builder, builder.node("Softplus", [builder.node("Add", [a, flat])]), heads)
    speed = builder.node("Reshape", [builder.node("Exp", [a_log]), _ints(builder, -1, 1)])
    decay = builder.node("Exp", [builder.node("Neg", [builder.node("Mul", [speed, step])])])
    beta = builder.node("Sigmoid", [b])
    parts = {
        "q": _widened(builder, query, 3),  # [B, T, H, 1, D]
        "row": _widened(builder, key, 3),
        "column": _widened(builder, key, 4),
        "v": _widened(builder, _heads(builder, v, heads), 3),
        "decay": _widened(builder, decay, 4),
        "beta": _widened(builder, beta, 3, 4),
    }
    _scan(scope, node, parts, _delta_step)


def _delta_step(body: GraphBuilder, state: str, part: Mapping[str, str]) -> tuple[str, str]:
    state = body.node("Mul", [state, part["decay"]])
    known = body.node("MatMul", [part["row"], state])  # [B, H, 1, V]
    change = body.node("Mul", [body.node("Sub", [part["v"], known]), part["beta"]])
    state = body.node("Add", [state, body.node("MatMul", [part["column"], change])])
    return state, body.node("MatMul", [part["q"], state])


def emit_mamba2(scope: Scope, node: Node) -> None:
    """Lowers a Mamba2 node."""
    builder, attrs = scope.builder, node.attrs
    heads, groups = int(attrs["heads"]), int(attrs["groups"])  # type: ignore[arg-type]
    x, dt, b, c, a_log, d, dt_bias = (scope.value(name) for name in node.inputs)
    inner = _heads(builder, x, heads)
    step = builder.node("Softplus", [builder.node("Add", [dt, dt_bias])])
    limits = [builder.tensor(attrs[n], "float32") if attrs.get(n) else "" for n in ("least", "most")]  # type: ignore[arg-type]
    step = builder.node("Clip", [step, *limits]) if any(limits) else step
    decay = builder.node("Exp", [builder.node("Neg", [builder.node("Mul", [builder.node("Exp", [a_log]), step])])])
    which = builder.constant(np.arange(heads) // (heads // groups), "int64")
    into, out_of = (builder.node("Gather", [_heads(builder, y, groups), which], axis=2) for y in (b, c))
    taken = builder.node("Mul", [inner, _widened(builder, step, 3)])
    parts = {
        "taken": _widened(builder, taken, 4),  # [B, T, H, P, 1]
        "row": _widened(builder, into, 3),
        "column": _widened(builder, out_of, 4),
        "decay": _widened(builder, decay, 3, 4),
    }
    passing = builder.node("Mul", [inner, builder.node("Unsqueeze", [d, _ints(builder, 1)])])
    _scan(scope, node, parts, _mamba_step, passing)


def _mamba_step(body: GraphBuilder, state: str, part: Mapping[str, str]) -> tuple[str, str]:
    taken = body.node("Mul", [part["taken"], part["row"]])
    state = body.node("Add", [body.node("Mul", [state, part["decay"]]), taken])
    return state, body.node("MatMul", [state, part["column"]])  # [B, H, P, 1]


def _scan(scope: Scope, node: Node, parts: Mapping[str, str], step: Any, passing: str = "") -> None:
    """A Scan over the tokens (axis 1) of all parts; the result is what it gives, flat, and what passes by."""
    builder, body, (past, present) = scope.builder, _Step(scope.builder), scope.fixed_state(node)
    state = body.input(body.fresh("state"), FLOAT, _free(4))
    names = {part: body.input(body.fresh(part), FLOAT, _free(4)) for part in parts}
    after, result = step(body, state, names)
    for output in (after, result):
        body.output(output, FLOAT, _free(4))
    count = len(parts)
    _, outputs = builder.node(
        "Scan",
        [past, *parts.values()],
        (present, builder.fresh("given")),
        body=body.graph,
        num_scan_inputs=count,
        scan_input_axes=[1] * count,
        scan_output_axes=[1],
    )
    if passing:  # [B, T, H, P, 1] and [B, T, H, P]
        outputs = builder.node("Add", [builder.node("Squeeze", [outputs, _ints(builder, 4)]), passing])
    builder.node("Reshape", [outputs, _ints(builder, 0, 0, -1)], node.outputs[0])


def _free(rank: int) -> Sequence[str]:
    return [f"extent_{axis}" for axis in range(rank)]


def _heads(builder: GraphBuilder, x: str, heads: int) -> str:
    return builder.node("Reshape", [x, _ints(builder, 0, 0, heads, -1)])


def _widened(builder: GraphBuilder, x: str, *axes: int) -> str:
    return builder.node("Unsqueeze", [x, _ints(builder, *axes)])


def _unit(builder: GraphBuilder, x: str, epsilon: float) -> str:
    total = builder.node("ReduceSum", [builder.node("Mul", [x, x]), _ints(builder, -1)], keepdims=1)
    length = builder.node("Sqrt", [builder.node("Add", [total, builder.constant(epsilon, "float32")])])
    return builder.node("Div", [x, length])


def _silu(builder: GraphBuilder, x: str) -> str:
    return builder.node("Mul", [x, builder.node("Sigmoid", [x])])


def _ints(builder: GraphBuilder, *numbers: int) -> str:
    return builder.constant(list(numbers), "int64")
