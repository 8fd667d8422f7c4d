"""Weights inside of subgraphs (the branches of If, the bodies of Loop and Scan): lifted into the graph around them.

A subgraph sees the values of the graphs around it, so a constant means the same there, and is a tensor of the model
like any other. Small ones stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from qdeploy.formats.onnx.attributes import TENSOR, subgraphs

LEAST = 1024
"""Elements of a constant that is lifted."""


def lifted(graph: Any) -> list[Any]:
    """Takes large constants out of the subgraphs of a graph; returns them as TensorProtos with names of their own."""
    taken = set(_names(graph))
    constants: list[Any] = []
    for node in graph.node:
        for inner in subgraphs(node):
            _lift(inner, node.name or node.output[0], taken, constants)
    return constants


def _lift(graph: Any, where: str, taken: set[str], constants: list[Any]) -> None:
    renamed: dict[str, str] = {}
    outputs = {value.name for value in graph.output}

    def lift(tensor: Any, name: str) -> bool:
        inline = not tensor.data_location and math.prod(tensor.dims) >= LEAST
        if not inline or name in outputs:
            return False
        copy = type(tensor).FromString(tensor.SerializeToString())
        copy.name = _fresh(f"{where}/{name}", taken)
        renamed[name] = copy.name
        constants.append(copy)
        return True

    kept = [t for t in graph.initializer if not lift(t, t.name)]
    nodes = [n for n in graph.node if not (_is_constant(n) and lift(n.attribute[0].t, n.output[0]))]
    if renamed:
        copies = [[type(m).FromString(m.SerializeToString()) for m in part] for part in (kept, nodes)]
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend(copies[0])
        graph.node.extend(copies[1])
        _rename(graph, renamed)
    for node in graph.node:
        for inner in subgraphs(node):
            _lift(inner, f"{where}/{node.name or node.output[0]}", taken, constants)


def _is_constant(node: Any) -> bool:
    only = node.op_type == "Constant" and not node.domain and len(node.attribute) == 1
    return bool(only and node.attribute[0].type == TENSOR)


def _fresh(name: str, taken: set[str]) -> str:
    unique, count = name, 0
    while unique in taken:
        count += 1
        unique = f"{name}.{count}"
    taken.add(unique)
    return unique


def _names(graph: Any) -> Iterator[str]:
    """All names of values of a graph and of those inside of it."""
    for value in (*graph.input, *graph.initializer, *graph.output):
        yield value.name
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _names(inner)


def _rename(graph: Any, names: dict[str, str]) -> None:
    inside = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    inside |= {name for node in graph.node for name in node.output}
    outside = {name: other for name, other in names.items() if name not in inside}
    for node in graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename(inner, outside)
