"""Functions of an ONNX model: how many nodes there are once each call is replaced by its function, and replacing them.

A function may call another twice, which calls another twice: thirty of them are 2^30 nodes. So nodes are counted first,
each function once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError

_FLOOR, _BYTES = 1 << 15, 2
"""Nodes that a model may have after its functions are inlined: so many, and one more per so many bytes of the graph."""
_Id = tuple[str, str, str]
_DEPTH = 200
"""Functions within functions."""


def inlined(proto: Any, graph_bytes: int, where: str) -> Any:
    """The model with its functions in the place of their calls.

    Args:
        proto: The model.
        graph_bytes: Its size without weights.
        where: For errors.

    Raises:
        BadFileError: They call themselves, cannot be inlined, or would make far more nodes than the file spends bytes
            on.
        UnsupportedError: They are written in other versions of ONNX than the model.
    """
    if not proto.functions:
        return proto
    import onnx
    import onnx.inliner

    _check(proto, _FLOOR + graph_bytes // _BYTES, where)
    try:
        whole = onnx.inliner.inline_local_functions(proto)
    except (ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise BadFileError(f"functions of the model cannot be inlined: {error}", where=where) from error
    if whole.functions:
        raise UnsupportedError(
            "functions of the model are written in other versions of ONNX than the model",
            where=where,
            found=", ".join(_shown(_id(function, function.name)) for function in whole.functions),
            todo="Export the model with functions and graph in one version.",
        )
    return whole


def _check(proto: Any, most: int, where: str) -> None:
    bodies: dict[_Id, Any] = {}
    for function in proto.functions:
        key = _id(function, function.name)
        if key in bodies:
            raise BadFileError("a function of the model is made twice", where=where, found=_shown(key))
        bodies[key] = function
    sizes: dict[_Id, int] = {}
    open_now: list[_Id] = []

    def size(nodes: Iterable[Any]) -> int:
        total = 0
        for node in nodes:
            key = _id(node, node.op_type)
            total += called(key) if key in bodies else 1
            if total > most:
                raise BadFileError(
                    "functions of the model call each other too often",
                    where=where,
                    found=f"more than {most} nodes",
                    allowed=f"{most} for a graph of this size",
                )
        return total

    def called(key: _Id) -> int:
        if key in open_now or len(open_now) > _DEPTH:
            raise BadFileError("functions of the model call themselves", where=where, found=_shown(key))
        if key not in sizes:
            open_now.append(key)
            sizes[key] = size(all_nodes(bodies[key].node))
            open_now.pop()
        return sizes[key]

    size(all_nodes(proto.graph.node))


def _id(owner: Any, name: str) -> _Id:
    """What a call and its function have in common: the domain, the name, and which of several of that name."""
    return ("" if owner.domain == "ai.onnx" else owner.domain, name, owner.overload)


def _shown(key: _Id) -> str:
    return "::".join(filter(None, key))


def all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes and those of the graphs that are their attributes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                waiting.extend(graph.node)
