"""What changed between the versions of ONNX's operators, up to the version that rows of the table and outputs mean.

One table for reader and writer. Per operator it says which versions changed what a node of before means, and how such a
node is written today (Changes.md of ONNX, and its schemas, are the source). A version that is not listed only added
element types, or attributes and inputs whose absence means what it meant before: the node is the same. Three answers:

    the node itself    nothing that matters changed
    other nodes        the same meaning in today's operators (rewrites.py)
    None               what the node means cannot be said today; it is carried in its own version

Newer versions than `CURRENT` need no rewrite: a node keeps its version, and the output is of the version it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.formats.onnx import rewrites as to
from qdeploy.formats.onnx.rewrites import Known, Rewrite

CURRENT = 21
"""The version of ONNX that rows of the table mean."""

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_CONSUMED = [
    "Abs",
    "Ceil",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "InstanceNormalization",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Sum",
    "Tanh",
]

CHANGES: Mapping[str, tuple[tuple[int, Rewrite], ...]] = {
    **{op: ((6, to.without("consumed_inputs")),) for op in _CONSUMED},
    **{op: ((6, to.without("consumed_inputs")), (7, to.broadcast)) for op in ("Add", "Sub", "Mul", "Div")},
    **dict.fromkeys(("And", "Or", "Xor", "Equal", "Greater", "Less", "Pow"), ((7, to.broadcast),)),
    **{f"Reduce{kind}": ((18, to.inputs("axes")),) for kind in _REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), ((13, to.flattened),)),
    **{op: ((3, to.impossible), (7, to.without("output_sequence"))) for op in ("GRU",)},
    **{op: ((7, to.without("output_sequence")),) for op in ("LSTM", "RNN")},
    "BatchNormalization": (
        (6, to.without("consumed_inputs")),
        (7, to.in_tests),
        (9, to.batch_normalization),
        (14, to.inference_normalization),
    ),
    "Cast": ((6, to.cast_by_name),),
    "Clip": ((6, to.without("consumed_inputs")), (11, to.clip)),
    "Concat": ((4, to.default("axis", 1)),),
    "DFT": ((20, to.dft),),
    "Dropout": ((6, to.without("consumed_inputs")), (7, to.in_tests), (12, to.dropout)),
    "Gemm": ((7, to.without("broadcast")),),
    "GlobalLpPool": ((2, to.impossible),),
    "GridSample": ((20, to.grid_sample),),
    "GroupNormalization": ((21, to.group_normalization),),
    "LpPool": ((2, to.impossible),),
    "PRelu": ((6, to.without("consumed_inputs")), (7, to.slope_per_channel)),
    "Pad": ((2, to.renamed("paddings", "pads")), (11, to.pad)),
    "ReduceSum": ((13, to.inputs("axes")),),
    "Reshape": ((5, to.inputs("shape", drop="consumed_inputs")),),
    "Resize": ((11, to.resize), (13, to.without_mode_of_11)),
    "RoiAlign": ((16, to.default("coordinate_transformation_mode", "output_half_pixel")),),
    "Scan": ((9, to.impossible),),
    "Scatter": ((11, to.as_operator("ScatterElements")),),
    "Selu": ((6, to.selu),),
    "Slice": ((10, to.inputs("starts", "ends", "axes")),),
    "Split": ((2, to.impossible), (13, to.inputs("split")), (18, to.split)),
    "Squeeze": ((13, to.inputs("axes")),),
    "Tile": ((6, to.impossible),),
    "TopK": ((10, to.inputs("k")),),
    "Unsqueeze": ((13, to.inputs("axes")),),
    "Upsample": ((7, to.upsample_by_factors), (9, to.upsample_by_attribute), (10, to.resize)),
}
"""Operator -> (the version that changed it, how a node of before is written), oldest first."""


def same_since(op: str) -> int:
    """The version of ONNX from which nodes of an operator mean what they mean in the current one."""
    return max((version for version, _ in CHANGES.get(op, ())), default=1)


def rewritten(node: Any, version: int, known: Known) -> list[Any] | None:
    """A node of a version as nodes of the current one.

    Args:
        node: A NodeProto of the domain of ONNX.
        version: The version of that domain that its graph imports.
        known: What is known of the values of the graph.

    Returns:
        The node itself where nothing changed, other nodes, or None where no nodes of today mean the same.
    """
    done: list[Any] = [_inner(node, version, known)]
    if done[0] is None:
        return None
    for _, rewrite in _due(node.op_type, version):
        last = done.pop()
        nodes = rewrite(last, known)
        if nodes is None:
            return None
        done += nodes
        if nodes[-1].op_type != last.op_type:  # in other operators, rewrites write what they mean today
            break
    return done


def _due(op: str, version: int) -> Sequence[tuple[int, Rewrite]]:
    return [change for change in CHANGES.get(op, ()) if version < change[0]]


def _inner(node: Any, version: int, known: Known) -> Any:
    """The node with the nodes of its subgraphs rewritten; None where one of them cannot be."""
    if version >= CURRENT or not any(a.HasField("g") or a.graphs for a in node.attribute):
        return node
    copy = type(node)()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            if not _graph(graph, version, known):
                return None
    return copy


def _graph(graph: Any, version: int, known: Known) -> bool:
    nodes: list[Any] = []
    within = known.within(graph)
    for node in graph.node:
        parts = [node] if node.domain not in ("", "ai.onnx") else rewritten(node, version, within)
        if parts is None:
            return False
        nodes += parts
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True
