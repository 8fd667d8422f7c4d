"""What makes a graph legal: one function per rule, checked when a graph is built or read from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qdeploy.errors import BadFileError
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.ops.table import op

_LISTS = {"Reshape": ("shape",), "Unsqueeze": ("axes",), "Slice": ("starts", "ends")}
"""Lists of integers that are attributes, or inputs behind the first one in this order."""


def check_graph(graph: Graph, tensors: Collection[str]) -> None:
    """Checks every rule.

    Args:
        graph: The graph.
        tensors: Names of the model's tensors.

    Raises:
        BadFileError: A rule is broken; the error names the node.
        UnsupportedError: An op is not in the table.
    """
    for node in graph.nodes:
        check_signature(node)
    check_names(graph, tensors)
    check_states(graph)
    check_ropes(graph)


def check_signature(node: Node) -> None:
    """A node has as many inputs as its op takes, and exactly the attributes that its op knows."""
    row = op(node.op)
    least, most = row.arity
    if not least <= len(node.inputs) <= most or not all(node.inputs[:least]):
        raise BadFileError(
            "a node has the wrong number of inputs",
            where=_where(node),
            found=len(node.inputs),
            allowed=f"{least}..{most}",
        )
    if not any(node.outputs):
        raise BadFileError("a node has no output", where=_where(node))
    for name, allowed in row.choices.items():
        if name in node.attrs and node.attrs[name] not in allowed:
            raise BadFileError(
                "a node has an unknown variant",
                where=f"{_where(node)}: {name}",
                found=node.attrs[name],
                allowed=", ".join(allowed),
            )
    unknown = sorted(set(node.attrs) - set(row.attributes))
    missing = sorted(name for name, needed in row.attributes.items() if needed and name not in node.attrs)
    lists = enumerate(_LISTS.get(node.op, ()), 1)
    missing += [name for place, name in lists if name not in node.attrs and not any(node.inputs[place : place + 1])]
    if unknown or missing:
        raise BadFileError(
            "a node has the wrong attributes",
            where=_where(node),
            found=", ".join(node.attrs) or "none",
            allowed=", ".join(row.attributes) or "none",
        )


def check_names(graph: Graph, tensors: Collection[str]) -> None:
    """Every name is made before it is taken, and made once."""
    tensors = frozenset(tensors)
    defined = {value.name for value in graph.inputs} | set(graph.constants)
    if len(defined) != len(graph.inputs) + len(graph.constants) or not defined.isdisjoint(tensors):
        raise BadFileError("a name is made twice", where="inputs and constants of the graph")
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in defined and name not in tensors:
                raise BadFileError("a node takes a name that nothing before it makes", where=_where(node), found=name)
        for name in node.outputs:
            if name and (name in defined or name in tensors):
                raise BadFileError("a name is made twice", where=_where(node), found=name)
            defined.add(name)
    for value in graph.outputs:
        if value.name not in defined:
            raise BadFileError("an output of the graph is never made", where=value.name)


def check_states(graph: Graph) -> None:
    """Every state is declared once, kept by one node, or by attention of the same keys, and has its number of heads."""
    declared = {state.name: state for state in graph.states}
    keepers = {str(node.attrs["state"]): node for node in reversed(graph.nodes) if node.attrs.get("state")}
    if len(declared) != len(graph.states) or set(declared) != set(keepers):
        raise BadFileError(
            "the states of the graph are not those that its nodes keep",
            where="states",
            found=", ".join(declared) or "none",
            allowed=", ".join(keepers) or "none",
        )
    for node in graph.nodes:
        first = keepers.get(str(node.attrs.get("state")))
        if first is not None and first is not node and not _share(first, node):
            raise BadFileError("two nodes keep one state, and not the same in it", where=_where(node), found=node.op)
    for name, node in keepers.items():
        if declared[name].kind != op(node.op).state:
            raise BadFileError("a state of another kind than its node's", where=_where(node), found=declared[name].kind)
        if node.op == "Attention" and node.attrs.get("kv_heads") != declared[name].heads:
            raise BadFileError(
                "a state has another number of heads than its node",
                where=_where(node),
                found=declared[name].heads,
                allowed=str(node.attrs.get("kv_heads")),
            )


def _share(first: Node, other: Node) -> bool:
    """Whether two nodes put the same keys and values into their state."""
    same = (first.attrs.get(name) == other.attrs.get(name) for name in ("rope", "kv_heads"))
    return first.op == other.op == "Attention" and first.inputs[1:3] == other.inputs[1:3] and all(same)


def check_ropes(graph: Graph) -> None:
    """Rotary frequencies are a constant of the graph with one number per rotated pair."""
    for node in graph.nodes:
        rope = node.attrs.get("rope")
        if rope is None:
            continue
        if not isinstance(rope, Mapping) or set(rope) - {"long"} != {"inv_freq", "rotary_dim", "interleaved", "factor"}:
            raise BadFileError(
                "rope is not described as it must be",
                where=_where(node),
                found=rope,
                allowed="inv_freq, rotary_dim, interleaved, factor, and perhaps long",
            )
        constant, extent = graph.constants.get(str(rope["inv_freq"])), rope["rotary_dim"]
        if constant is None or not isinstance(extent, int) or extent % 2 or constant.shape != (extent // 2,):
            raise BadFileError(
                "the rotary frequencies do not fit",
                where=_where(node),
                found=rope["inv_freq"],
                allowed=f"a constant of shape [{extent} / 2]",
            )


def _where(node: Node) -> str:
    return f"node {node.name or ', '.join(node.outputs)} ({node.op})"
