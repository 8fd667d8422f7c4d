"""A graph without composites.

requires   a graph of rows of the table of ops
ensures    only rows without an expansion are left, or those that an engine keeps
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.ops.table import op


def expand_graph(graph: Graph, keep: Collection[str] = ()) -> Graph:
    """Returns the graph with composites expanded, except the ops in `keep` and those without an expansion."""
    return replace(graph, nodes=tuple(_expanded(graph.nodes, keep, "")))


def _expanded(nodes: Collection[Node], keep: Collection[str], scope: str) -> Iterator[Node]:
    for node in nodes:
        expansion = None if node.op in keep else op(node.op).expand
        if expansion is None:
            yield node
            continue
        prefix = node.name or node.outputs[0]
        inner = expansion(node, lambda label, prefix=prefix: f"{prefix}/{label}")  # type: ignore[misc]
        yield from _expanded([replace(n, name=n.name or n.outputs[0]) for n in inner], keep, prefix)
