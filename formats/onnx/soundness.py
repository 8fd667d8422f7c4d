"""What a model may not leave open: two answers to one question, or references that mean nothing here.

The protobuf message allows what ONNX does not. Where runtimes would take the one or the other of two values, the model
is refused; nodes in any order are put behind what they take, as ONNX Runtime does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.onnx.attributes import captured, subgraphs
from qdeploy.formats.onnx.functions import all_nodes


def check_message(proto: Any, where: str) -> None:
    """Checks a model whose functions stand in the place of their calls.

    Raises:
        BadFileError: A domain has two versions, an attribute two values, or one that refers to a function's.
        UnsupportedError: Initializers are sparse.
    """
    domains = Counter("" if row.domain == "ai.onnx" else row.domain for row in proto.opset_import)
    _refuse_twice("a domain is imported twice", domains, where)
    if len(proto.graph.sparse_initializer):
        names = [tensor.values.name for tensor in proto.graph.sparse_initializer]
        raise UnsupportedError(
            "sparse initializers are not read",
            where=where,
            found=", ".join(names),
            todo="Save the model with dense initializers.",
        )
    for node in all_nodes(proto.graph.node):
        place = f"{where}: node {node.name or next(iter(node.output), node.op_type)}"
        _refuse_twice("an attribute of a node stands twice", Counter(a.name for a in node.attribute), place)
        outside = [a.name for a in node.attribute if a.ref_attr_name]
        if outside:
            raise BadFileError("an attribute refers to one of a function, and is in none", where=place, found=outside)


def _refuse_twice(what: str, counts: Counter[str], where: str) -> None:
    twice = [name or "ai.onnx" for name, count in counts.items() if count > 1]
    if twice:
        raise BadFileError(what, where=where, found=", ".join(twice))


def in_order(proto: Any) -> Any:
    """The model with each node behind those that it takes values of; the same object where they stand so.

    Nodes that wait for each other keep their places: whoever reads the graph names what is missing.
    """
    nodes = proto.graph.node
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    takes = [{makers[name] for name in _taken(node) if name in makers} for node in nodes]
    if all(other < place for place, others in enumerate(takes) for other in others):
        return proto
    order = _order(takes)
    if len(order) == len(nodes):
        copies = [type(nodes[place]).FromString(nodes[place].SerializeToString()) for place in order]
        del nodes[:]
        nodes.extend(copies)
    return proto


def _taken(node: Any) -> Iterable[str]:
    yield from node.input
    for graph in subgraphs(node):
        yield from captured(graph)


def _order(takes: list[set[int]]) -> list[int]:
    """Places in an order in which each follows those that it takes, as near to their own as can be."""
    import heapq

    waiting, takers = [len(others) for others in takes], [list[int]() for _ in takes]
    for place, others in enumerate(takes):
        for other in others:
            takers[other].append(place)
    ready = [place for place, count in enumerate(waiting) if not count]
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for taker in takers[place]:
            waiting[taker] -= 1
            if not waiting[taker]:
                heapq.heappush(ready, taker)
    return order
