"""Outputs of a graph that are constants: each gets an Identity, so that every output is what a node makes.

The constant is called NAME/value then, and NAME is what Identity gives.
"""

from __future__ import annotations

from typing import Any


def with_identities(proto: Any) -> Any:
    """The model, in which no output is an initializer or made by a Constant; the same object where none is."""
    graph = proto.graph
    makers: dict[str, Any] = {node.output[0]: node for node in graph.node if _is_constant(node)}
    makers |= {tensor.name: tensor for tensor in graph.initializer}
    constant = [value.name for value in graph.output if value.name in makers]
    if not constant:
        return proto
    taken = set(makers) | {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {name: _free(f"{name}/value", taken) for name in dict.fromkeys(constant)}
    for name, new in renamed.items():
        if name == getattr(makers[name], "name", None) and not hasattr(makers[name], "op_type"):
            makers[name].name = new
        else:
            makers[name].output[0] = new
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    _keep(graph.input, [value for value in graph.input if value.name not in renamed])
    nodes = [
        type(graph).FromString(b"").node.add(op_type="Identity", input=[n], output=[o]) for o, n in renamed.items()
    ]
    constants = [node for node in graph.node if _is_constant(node)]
    _keep(graph.node, [*constants, *nodes, *(node for node in graph.node if not _is_constant(node))])
    return proto


def _is_constant(node: Any) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _keep(repeated: Any, items: list[Any]) -> None:
    """Makes a repeated field hold these items."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del repeated[:]
    repeated.extend(copies)
