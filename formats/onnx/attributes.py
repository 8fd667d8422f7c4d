"""Attributes of ONNX nodes as JSON values; those that JSON cannot hold, as the bytes of their message."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from qdeploy.ir.dtype import of_onnx

FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS, GRAPHS = 1, 2, 3, 4, 5, 6, 7, 8, 10
_TYPES = ("to", "output_dtype", "dtype")  # attributes that are element types


def attributes(node: Any) -> dict[str, Any]:
    """Attributes by name; tensors and graphs are left as their messages."""
    return {a.name: _value(a) for a in node.attribute}


def _value(a: Any) -> Any:
    if a.type == FLOAT:
        return float(a.f)
    if a.type == INT:
        return int(a.i)
    if a.type == STRING:
        return a.s.decode("utf-8", "surrogateescape")
    if a.type == FLOATS:
        return [float(x) for x in a.floats]
    if a.type == INTS:
        return [int(x) for x in a.ints]
    if a.type == STRINGS:
        return [s.decode("utf-8", "surrogateescape") for s in a.strings]
    return a


def is_json(value: Any) -> bool:
    """Whether an attribute is a JSON value."""
    return isinstance(value, (int, float, str, list))


def encoded(node: Any) -> list[str]:
    """Every attribute as its message in base64."""
    return [base64.b64encode(a.SerializeToString(deterministic=True)).decode("ascii") for a in node.attribute]


def known(op: str, domain: str, version: int, attrs: Mapping[str, Any], row: Mapping[str, bool]) -> Any:
    """The attributes that a row of the table has; None where the node has others that are not their default."""
    defaults = _defaults(op, domain, version)
    kept: dict[str, Any] = {}
    for name, value in attrs.items():
        if name in row:
            if name in _TYPES and isinstance(value, int):
                if value == 0:
                    continue
                known_type = of_onnx(value)
                if known_type is None:
                    return None
                value = known_type.element
            if not is_json(value):
                return None
            kept[name] = value
        elif name not in defaults or defaults[name] != value:
            return None
    return None if any(needed and name not in kept for name, needed in row.items()) else kept


def _defaults(op: str, domain: str, version: int) -> dict[str, Any]:
    import onnx

    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return {}
    defaults = {name: _value(a.default_value) for name, a in schema.attributes.items() if a.default_value.type}
    return defaults | {"storage_order": 0, "training_mode": 0, "saturate": 1, "precision": 0}


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs in a node's attributes."""
    for a in node.attribute:
        if a.type == GRAPH:
            yield a.g
        elif a.type == GRAPHS:
            yield from a.graphs


def captured(graph: Any) -> dict[str, None]:
    """Names that a subgraph takes from outside, in order of first use."""
    defined = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    taken: dict[str, None] = {}
    for node in graph.node:
        names = list(node.input) + [name for inner in subgraphs(node) for name in captured(inner)]
        taken.update((name, None) for name in names if name and name not in defined)
        defined.update(node.output)
    taken.update((v.name, None) for v in graph.output if v.name not in defined)
    return taken
