"""Operators of float TFLite networks over numbers: element by element, reductions, comparisons, products of values."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.formats.tflite.float_network import FloatImporter, FloatNetwork
from qdeploy.formats.tflite.schema import Operator


def same(row: str, **attrs: Any) -> FloatImporter:
    """An operator of elements: it does not matter where channels are, if all inputs agree."""

    def add(network: FloatNetwork, op: Operator) -> None:
        first = network.has_first(*op.inputs)
        network.give(op, row, [(network.first if first else network.last)(i) for i in op.inputs], first, **attrs)

    return add


def _chain(*rows: str) -> FloatImporter:
    """Rows of elements, one behind the other; the first takes all inputs."""

    def add(network: FloatNetwork, op: Operator) -> None:
        first = network.has_first(*op.inputs)
        inputs = [(network.first if first else network.last)(i) for i in op.inputs]
        for row in rows[:-1]:
            inputs = [network.step(row, inputs, op, row.lower())]
        network.give(op, rows[-1], inputs, first)

    return add


def _square(network: FloatNetwork, op: Operator) -> None:
    first = network.has_first(op.inputs[0])
    x = (network.first if first else network.last)(op.inputs[0])
    network.give(op, "Mul", (x, x), first)


def _squared_difference(network: FloatNetwork, op: Operator) -> None:
    first = network.has_first(*op.inputs)
    difference = network.step(
        "Sub", [(network.first if first else network.last)(i) for i in op.inputs], op, "difference"
    )
    network.give(op, "Mul", (difference, difference), first)


def _reduced(row: str) -> FloatImporter:
    """A reduction over axes that are a constant; over the space of an image, with channels where they are."""

    def add(network: FloatNetwork, op: Operator) -> None:
        source = op.inputs[0]
        rank, keep = len(network.shape(source)), int(bool(op.options.get("KeepDims")))
        axes = sorted({a % rank for a in network.listed(op.inputs[1])})
        if network.has_first(source) and axes == [1, 2]:
            network.give(op, row, (network.first(source),), bool(keep), axes=[2, 3], keepdims=keep)
        else:
            network.give(op, row, (network.last(source),), False, axes=axes, keepdims=keep)

    return add


def _extreme(row: str) -> FloatImporter:
    """ARG_MAX, ARG_MIN: the axis is a constant."""

    def add(network: FloatNetwork, op: Operator) -> None:
        axis = network.axis(op.inputs[0], network.number(op.inputs[1]))
        index = network.step(row, (network.last(op.inputs[0]),), op, "index", axis=axis, keepdims=0)
        network.give(op, "Cast", (index,), False, to=network.dtype(op.outputs[0]))

    return add


def _top_k(network: FloatNetwork, op: Operator) -> None:
    name = network.names[op.outputs[0]]
    count = network.constant(np.array([network.number(op.inputs[1])], np.int64), f"{name}/k")
    wide = f"{network.names[op.outputs[1]]}/wide"
    network.add_several("TopK", (network.last(op.inputs[0]), count), (name, wide), axis=-1)
    network.is_given(op.outputs[0], name)
    index = op.outputs[1]
    network.is_given(index, network.add("Cast", (wide,), network.names[index], to=network.dtype(index)))


def _cum_sum(network: FloatNetwork, op: Operator) -> None:
    axis = network.constant(np.array(network.number(op.inputs[1]), np.int64), f"{network.names[op.outputs[0]]}/axis")
    how = {key.lower(): int(bool(op.options.get(key))) for key in ("Exclusive", "Reverse")}
    network.give(op, "CumSum", (network.last(op.inputs[0]), axis), False, **how)


def _cast(network: FloatNetwork, op: Operator) -> None:
    first = network.has_first(op.inputs[0])
    x = (network.first if first else network.last)(op.inputs[0])
    network.give(op, "Cast", (x,), first, to=network.dtype(op.outputs[0]))


def _select(network: FloatNetwork, op: Operator) -> None:
    """SELECT: the condition has the shape of the values; SELECT_V2 broadcasts all three."""
    condition, values = (network.shape(i) for i in op.inputs[:2])
    if op.kind == "SELECT" and condition != values:
        raise UnsupportedError("a condition per row", where=network.where(op.outputs[0]), found=condition)
    same("Where")(network, op)


def _batch_mat_mul(network: FloatNetwork, op: Operator) -> None:
    sides = []
    for place, key in enumerate(("AdjX", "AdjY")):
        index = op.inputs[place]
        side, rank = network.last(index), len(network.shape(index))
        if op.options.get(key):
            perm = [*range(rank - 2), rank - 1, rank - 2]
            side = network.step("Transpose", (side,), op, "xy"[place], perm=perm)
        sides.append(side)
    network.give(op, "MatMul", sides, False)


def _l2_normalization(network: FloatNetwork, op: Operator) -> None:
    network.give(op, "LpNormalization", (network.last(op.inputs[0]),), False, axis=-1, p=2)


def _log_softmax(network: FloatNetwork, op: Operator) -> None:
    network.give(op, "LogSoftmax", (network.last(op.inputs[0]),), False, axis=-1)


def _floor_div(network: FloatNetwork, op: Operator) -> None:
    if network.dtype(op.outputs[0]) != "F32":
        raise UnsupportedError("a division of integers that rounds down", where=network.where(op.outputs[0]))
    _chain("Div", "Floor")(network, op)


NUMBERS: dict[str, FloatImporter] = {
    "LOG": same("Log"),
    "SIN": same("Sin"),
    "COS": same("Cos"),
    "SIGN": same("Sign"),
    "FLOOR": same("Floor"),
    "CEIL": same("Ceil"),
    "ROUND": same("Round"),
    "ELU": same("Elu"),
    "POW": same("Pow"),
    "MAXIMUM": same("Max"),
    "MINIMUM": same("Min"),
    "ADD_N": same("Sum"),
    "EQUAL": same("Equal"),
    "NOT_EQUAL": _chain("Equal", "Not"),
    "LESS": same("Less"),
    "LESS_EQUAL": same("LessOrEqual"),
    "GREATER": same("Greater"),
    "GREATER_EQUAL": same("GreaterOrEqual"),
    "LOGICAL_AND": same("And"),
    "LOGICAL_OR": same("Or"),
    "LOGICAL_NOT": same("Not"),
    "RSQRT": _chain("Sqrt", "Reciprocal"),
    "SQUARE": _square,
    "SQUARED_DIFFERENCE": _squared_difference,
    "FLOOR_DIV": _floor_div,
    "MEAN": _reduced("ReduceMean"),
    "SUM": _reduced("ReduceSum"),
    "REDUCE_MAX": _reduced("ReduceMax"),
    "REDUCE_MIN": _reduced("ReduceMin"),
    "REDUCE_PROD": _reduced("ReduceProd"),
    "ARG_MAX": _extreme("ArgMax"),
    "ARG_MIN": _extreme("ArgMin"),
    "TOPK_V2": _top_k,
    "CUMSUM": _cum_sum,
    "CAST": _cast,
    "SELECT": _select,
    "SELECT_V2": _select,
    "BATCH_MATMUL": _batch_mat_mul,
    "L2_NORMALIZATION": _l2_normalization,
    "LOG_SOFTMAX": _log_softmax,
}
"""What operators over numbers become."""
