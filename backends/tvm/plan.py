"""From an integer graph to a program: one rule per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from qdeploy.backends.tvm.accumulate import plan_conv, plan_linear, plan_mat_mul
from qdeploy.backends.tvm.chains import plan_binary, plan_clip, plan_function, plan_lookup, plan_requantize
from qdeploy.backends.tvm.moves import (
    plan_concat,
    plan_gather,
    plan_identity,
    plan_pad,
    plan_pool,
    plan_reduce,
    plan_reshape,
    plan_rows,
    plan_slice,
    plan_tflite_softmax,
    plan_transpose,
)
from qdeploy.backends.tvm.planner import Place, Planner
from qdeploy.backends.tvm.program import Buffer, Program
from qdeploy.backends.tvm.targets import Kernel
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import plain_tensor

POSITIONS = "Positions"
RULES: dict[str, Callable[[Planner, Node], None]] = {
    "IntegerConv": plan_conv,
    "IntegerLinear": plan_linear,
    "IntegerMatMul": plan_mat_mul,
    "Requantize": plan_requantize,
    "Relu": plan_clip,
    "Clip": plan_clip,
    "Lookup": plan_lookup,
    "IntegerAdd": plan_binary,
    "IntegerMul": plan_binary,
    "IntegerSqrt": plan_rows,
    "IntegerExp": plan_function,
    "IntegerGelu": plan_function,
    "IntegerSoftmax": plan_rows,
    "IntegerLayerNorm": plan_rows,
    "IntegerRMSNorm": plan_rows,
    "TfliteSoftmax": plan_tflite_softmax,
    "IntegerSum": plan_reduce,
    "IntegerMean": plan_reduce,
    "MaxPool": plan_pool,
    "IntegerAveragePool": plan_pool,
    "Identity": plan_identity,
    "Reshape": plan_reshape,
    "Flatten": plan_reshape,
    "Squeeze": plan_reshape,
    "Unsqueeze": plan_reshape,
    "Transpose": plan_transpose,
    "Concat": plan_concat,
    "Slice": plan_slice,
    "Pad": plan_pad,
    "Gather": plan_gather,
}
"""Op -> its rule."""


def plan(graph: Graph, weights: Mapping[str, Array], kernel: Kernel, axes: Mapping[str, int]) -> Program:
    """Plans an integer graph.

    Args:
        graph: Nodes with a rule (`RULES`).
        weights: The model's tensors as integers.
        kernel: The target's inner product: biases depend on its feed.
        axes: The extent of every free axis.

    Raises:
        UnsupportedError: An op has no rule, or something that must be constant is computed.
        BadFileError: The graph does not run on zeros.
    """
    unknown = unsupported(graph)
    if unknown:
        raise UnsupportedError(
            "ops that the TVM backend does not have", found=", ".join(unknown), allowed=", ".join(RULES)
        )
    planner = Planner(graph, weights, kernel, axes)
    if any(node.op == POSITIONS for node in graph.nodes):
        graph = with_fixed_positions(graph, planner.shapes)
        planner = Planner(graph, weights, kernel, axes)
    for value in graph.inputs:
        shape = planner.shapes[value.name]
        planner.program.buffers[value.name] = Buffer(shape, planner.dtypes[value.name])
        planner.program.inputs.append(value.name)
        planner.set(value.name, Place(value.name, shape))
    for node in graph.nodes:
        RULES[node.op](planner, node)
    for value in graph.outputs:
        planner.program.outputs.append(_finished(planner, value.name))
        planner.program.names[planner.program.outputs[-1]] = value.name
    return planner.program


def lowered_ops() -> frozenset[str]:
    """Every op that has a kernel."""
    return frozenset(RULES) | {POSITIONS}


def unsupported(graph: Graph) -> list[str]:
    """Ops of a graph without a rule."""
    return sorted({node.op for node in graph.nodes} - lowered_ops())


def with_fixed_positions(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph with 0 .. T - 1 as constants, since T is fixed here; `shapes` has those of all values."""
    names = [node.outputs[0] for node in graph.nodes if node.op == POSITIONS]
    positions = {name: plain_tensor(np.arange(shapes[name][0], dtype=np.int32)) for name in names}
    nodes = tuple(node for node in graph.nodes if node.op != POSITIONS)
    return replace(graph, nodes=nodes, constants={**graph.constants, **positions})


def _finished(planner: Planner, name: str) -> str:
    """The buffer of an output, in its own order; a copy where it is an input or already an output."""
    buffer = planner.plain(name).buffer
    taken = buffer in planner.program.inputs or buffer in planner.program.outputs
    if taken or buffer in planner.program.constants:
        operand = planner.program.operand(buffer)
        return planner.step("elementwise", [buffer], {"chain": []}, operand.shape, operand.dtype)
    return buffer
