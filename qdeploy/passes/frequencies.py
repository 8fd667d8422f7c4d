"""For engines that have one vector of rotary frequencies: a graph whose context ends where another one would begin.

requires   any graph
ensures    no rotation has frequencies of its own for long sequences; the context is short enough to need none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qdeploy.ir.graph import Graph, Node

Long = Mapping[str, Any]


def within_first_frequencies(
    graph: Graph, notes: list[str], keep: Callable[[Long], bool] = lambda long: "inv_freq" in long
) -> Graph:
    """Returns the graph without frequencies for long sequences, but for those that the engine can hold.

    Args:
        graph: A decoder, or anything else, which is returned as it is.
        notes: Told where the context is cut.
        keep: Whether an engine has a form for such frequencies: by default for a second table, and not for dynamic
            scaling, which makes a new one for each length.
    """
    lengths = [int(long["beyond"]) for node in graph.nodes if (long := _long(node)) and not keep(long)]
    if not lengths:
        return graph
    context = min(lengths)
    note = f"rotary frequencies change beyond {context} positions: this target does not follow, its context ends there"
    if note not in notes:
        notes.append(note)
    states = tuple(replace(state, capacity=min(state.capacity, context)) for state in graph.states)
    nodes = tuple(_without_long(node) if (long := _long(node)) and not keep(long) else node for node in graph.nodes)
    return replace(graph, nodes=nodes, states=states, meta={**graph.meta, "context": context})


def _long(node: Node) -> Long | None:
    rope: Any = node.attrs.get("rope")
    return rope.get("long") if isinstance(rope, Mapping) else None


def _without_long(node: Node) -> Node:
    rope: Any = node.attrs["rope"]
    return replace(node, attrs={**node.attrs, "rope": {key: value for key, value in rope.items() if key != "long"}})
