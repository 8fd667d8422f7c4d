"""Activations that are quantized to int8 and back, as uint8: codes and zero points 128 higher, every number the same.

ONNX Runtime's kernels for x86 are fast with unsigned activations, and it changes the types itself where it can; with
version 21 of ONNX that goes wrong (a QuantizeLinear that it moved keeps the old type as an attribute, and the model
does not load).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qdeploy.ir.element import as_value, integer_type
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Buffer, QTensor, plain

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def with_unsigned_codes(graph: Graph, tensors: Mapping[str, QTensor]) -> Graph:
    """Returns the graph with every pair of QuantizeLinear and DequantizeLinear over int8 in uint8."""
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.outputs}
    moved = {
        n.outputs[0]
        for n in graph.nodes
        if n.op == _PAIR[0]
        and n.outputs[0] not in outputs
        and _is_pair(n, users.get(n.outputs[0], []), {**tensors, **graph.constants})
    }
    constants, nodes = dict(graph.constants), []
    for node in graph.nodes:
        codes = {_PAIR[0]: node.outputs[0], _PAIR[1]: node.inputs[0] if node.inputs else ""}.get(node.op)
        if codes not in moved:
            nodes.append(node)
            continue
        zero = node.inputs[2]
        name = f"{zero}.:unsigned"
        if name not in constants:
            constants[name] = _raised(constants[zero] if zero in constants else tensors[zero])
        attrs = {key: value for key, value in node.attrs.items() if key != "output_dtype"}
        nodes.append(replace(node, inputs=(*node.inputs[:2], name), attrs=attrs))
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _is_pair(quantize: Node, users: list[Node], tensors: Mapping[str, QTensor]) -> bool:
    """Whether codes are int8 with a stored zero point, and only dequantized by that same zero point."""
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else ""
    if zero not in tensors or integer_type(tensors[zero]) != "I8":
        return False
    return all(n.op == _PAIR[1] and n.inputs[0] == quantize.outputs[0] and n.inputs[2:] == (zero,) for n in users)


def _raised(zero: QTensor) -> QTensor:
    numbers = (as_value(zero).astype(np.int16) + 128).astype(np.uint8)
    tensor = plain(Buffer.of("data", np.atleast_1d(numbers), "U8"), "uint8")
    return replace(tensor, shape=zero.shape)
