"""Rows of the table of ops: magnitudes and outliers of a token's values, and ids that a table may not have."""

from __future__ import annotations

import numpy as np

from qdeploy.ir.expand import Fresh
from qdeploy.ir.graph import Attr, Node
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.tensor import Array

_LAST: dict[str, Attr] = {"axes": [-1], "keepdims": 1}


def _ids_within(ids: Array, *, rows: int) -> Array:
    return np.asarray(np.where(ids < rows, ids, 0))


def _outliers(x: Array, *, factor: float) -> Array:
    cut = x.mean(axis=-1, keepdims=True) + x.std(axis=-1, keepdims=True) * np.float32(factor)
    return np.asarray(np.maximum(x - cut, np.float32(0)))


def _magnitude(x: Array, like: Array, *, least: float) -> Array:
    own, wanted = (np.mean(value * value, axis=-1, keepdims=True) for value in (x, like))
    return np.asarray(x * np.sqrt(wanted) / np.sqrt(np.maximum(own, np.float32(least))))


def _expanded_ids(node: Node, fresh: Fresh) -> list[Node]:
    rows, first, inside = map(fresh, ("rows", "first", "inside"))
    return [
        Node("Constant", (), (rows,), {"value_int": node.attrs["rows"]}),
        Node("Constant", (), (first,), {"value_int": 0}),
        Node("Less", (node.inputs[0], rows), (inside,)),
        Node("Where", (inside, node.inputs[0], first), node.outputs),
    ]


def _expanded_outliers(node: Node, fresh: Fresh) -> list[Node]:
    (x,) = node.inputs
    names = ("mean", "centred", "square", "variance", "deviation", "factor", "margin", "left")
    mean, centred, square, variance, deviation, factor, margin, left = map(fresh, names)
    return [
        Node("ReduceMean", (x,), (mean,), _LAST),
        Node("Sub", (x, mean), (centred,)),
        Node("Mul", (centred, centred), (square,)),
        Node("ReduceMean", (square,), (variance,), _LAST),
        Node("Sqrt", (variance,), (deviation,)),
        Node("Constant", (), (factor,), {"value_float": node.attrs["factor"]}),
        Node("Mul", (deviation, factor), (margin,)),
        Node("Sub", (centred, margin), (left,)),
        Node("Relu", (left,), node.outputs),
    ]


def _expanded_magnitude(node: Node, fresh: Fresh) -> list[Node]:
    x, like = node.inputs
    names = ("own_square", "own_mean", "limited", "own", "wanted_square", "wanted_mean", "wanted", "raised")
    own_square, own_mean, limited, own, wanted_square, wanted_mean, wanted, raised = map(fresh, names)
    return [
        Node("Mul", (x, x), (own_square,)),
        Node("ReduceMean", (own_square,), (own_mean,), _LAST),
        Node("Clip", (own_mean,), (limited,), {"min": node.attrs["least"]}),
        Node("Sqrt", (limited,), (own,)),
        Node("Mul", (like, like), (wanted_square,)),
        Node("ReduceMean", (wanted_square,), (wanted_mean,), _LAST),
        Node("Sqrt", (wanted_mean,), (wanted,)),
        Node("Mul", (x, wanted), (raised,)),
        Node("Div", (raised, own), node.outputs),
    ]


MEASURE_ROWS = (
    Op(
        "IdsWithin",
        QDEPLOY,
        "I64 [B, T]: ids [B, T], and 0 in the place of those that are not below `rows`",
        _ids_within,
        _expanded_ids,
        result="I64",
    ),
    Op(
        "Outliers",
        QDEPLOY,
        "what is left above mean + factor * standard deviation of the last axis, else 0",
        _outliers,
        _expanded_outliers,
    ),
    Op(
        "Magnitude",
        QDEPLOY,
        "x * sqrt(mean(y^2)) / sqrt(max(mean(x^2), least)), means over the last axis",
        _magnitude,
        _expanded_magnitude,
    ),
)
