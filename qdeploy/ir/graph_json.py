"""Graphs <-> JSON: values as [name, dtype, shape], nodes as [op, inputs, outputs, attrs, name]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qdeploy.errors import BadFileError
from qdeploy.ir.graph import Graph, Node, State, Value
from qdeploy.ir.tensor import QTensor

Json = Any


def graph_to_json(graph: Graph) -> Json:
    """The graph without its constants, which stand among the package's tensors."""
    return {
        "inputs": [[v.name, v.dtype, list(v.shape)] for v in graph.inputs],
        "outputs": [[v.name, v.dtype, list(v.shape)] for v in graph.outputs],
        "states": [_state(s) for s in graph.states],
        "meta": dict(graph.meta),
        "nodes": [[n.op, list(n.inputs), list(n.outputs), dict(n.attrs), n.name] for n in graph.nodes],
    }


def graph_from_json(tree: Json, constants: Mapping[str, QTensor]) -> Graph:
    """Builds the graph; BadFileError for anything that is not of the grammar above."""
    try:
        return Graph(
            tuple(_value(v) for v in tree["inputs"]),
            tuple(_value(v) for v in tree["outputs"]),
            tuple(
                Node(_text(op), _names(i), _names(o), dict(attrs), _text(name))
                for op, i, o, attrs, name in tree["nodes"]
            ),
            tuple(State(**s) for s in tree["states"]),
            constants,
            dict(tree["meta"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"the manifest's graph is malformed: {error}", where="graph") from error


def _state(state: State) -> Json:
    """Its fields; one that came later is left out where it says nothing."""
    fields = asdict(state)
    if not state.value_dim:
        del fields["value_dim"]
    return fields


def _value(row: Json) -> Value:
    name, dtype, shape = row
    return Value(_text(name), _text(dtype), tuple(_axis(n) for n in shape))


def _axis(n: Json) -> int | str:
    if isinstance(n, bool) or not isinstance(n, int | str):
        raise TypeError(f"{n!r} is not an axis")
    return n


def _names(row: Json) -> tuple[str, ...]:
    return tuple(_text(name) for name in row)


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value
