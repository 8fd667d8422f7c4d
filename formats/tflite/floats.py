"""Operators of float TFLite networks as rows of the table: layers, pooling, functions; and the table of all of them.

float_network.py  where the channels of an image are, and what importers ask for
float_images.py   operators that change the extent of images
float_moves.py    operators that move elements
float_numbers.py  reductions, comparisons, products of values
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.float_images import IMAGES
from qdeploy.formats.tflite.float_moves import MOVES
from qdeploy.formats.tflite.float_network import FIRST, LIMITS, FloatImporter, FloatNetwork
from qdeploy.formats.tflite.float_numbers import NUMBERS, same
from qdeploy.formats.tflite.schema import Operator


def _layer_inputs(network: FloatNetwork, op: Operator, x: str, weight: str) -> list[str]:
    return [x, weight, *(network.last(i) for i in op.inputs[2:3] if i >= 0)]


def _conv(network: FloatNetwork, op: Operator) -> None:
    """CONV_2D [M, h, w, C / group] and DEPTHWISE_CONV_2D [1, h, w, M]: both [M, C / group, h, w]."""
    filters, channels = network.shape(op.inputs[1]), network.shape(op.inputs[0])[3]
    deep = op.kind == "DEPTHWISE_CONV_2D"
    if len(filters) != 4 or (filters[0] != 1 or filters[3] % channels if deep else channels % filters[3]):
        raise BadFileError("filters that do not fit their image", where=network.where(op.inputs[1]), found=filters)
    group = channels if deep else channels // filters[3]
    weight = network.transposed(op.inputs[1], [3, 0, 1, 2] if deep else FIRST)
    attrs = {"kernel_shape": list(filters[1:3]), **network.spatial(op, op.inputs[0], filters[1:3])}
    attrs |= {"group": group} if group > 1 else {}
    network.give(op, "Conv", _layer_inputs(network, op, network.first(op.inputs[0]), weight), True, **attrs)


def _fully_connected(network: FloatNetwork, op: Operator) -> None:
    shape, width, x = network.shape(op.inputs[0]), network.shape(op.inputs[1])[1], network.last(op.inputs[0])
    if op.options.get("WeightsFormat", 0):
        raise UnsupportedError("a weight in a shuffled order", where=network.where(op.inputs[1]))
    if not shape or shape[-1] != width or (len(shape) != 2 and not op.options.get("KeepNumDims")):
        x = network.add("Reshape", (x,), f"{network.names[op.outputs[0]]}/rows", shape=[-1, width])
    network.give(op, "Linear", _layer_inputs(network, op, x, network.last(op.inputs[1])), False)


def _pool(row: str, **more: Any) -> Callable[[FloatNetwork, Operator], None]:
    def pool(network: FloatNetwork, op: Operator) -> None:
        kernel = [op.options["FilterHeight"], op.options["FilterWidth"]]
        attrs = {"kernel_shape": kernel, **network.spatial(op, op.inputs[0], kernel), **more}
        network.give(op, row, (network.first(op.inputs[0]),), True, **attrs)

    return pool


def _softmax(network: FloatNetwork, op: Operator) -> None:
    if op.options["Beta"] != 1:
        raise UnsupportedError("a softmax with a factor", where=network.where(op.outputs[0]), found=op.options["Beta"])
    network.give(op, "Softmax", (network.last(op.inputs[0]),), False, axis=-1)


def _reshape(network: FloatNetwork, op: Operator) -> None:
    network.give(op, "Reshape", (network.last(op.inputs[0]),), False, shape=network.target(op))


def _concat(network: FloatNetwork, op: Operator) -> None:
    axis, rank = int(op.options["Axis"]), len(network.shape(op.outputs[0]))
    first = rank == 4 and network.has_first(*op.inputs)
    names = [(network.first if first else network.last)(i) for i in op.inputs]
    network.give(op, "Concat", names, first, axis=FIRST.index(axis % 4) if first else axis)


def _transpose(network: FloatNetwork, op: Operator) -> None:
    network.give(op, "Transpose", (network.last(op.inputs[0]),), False, perm=network.listed(op.inputs[1]))


def _pad(network: FloatNetwork, op: Operator, **how: str) -> None:
    spans = np.array(network.listed(op.inputs[1]), np.int64).reshape(-1, 2)
    first = network.has_first(op.inputs[0])
    x = network.first(op.inputs[0]) if first else network.last(op.inputs[0])
    ordered = spans[FIRST] if first else spans
    pads = network.constant(ordered.T.reshape(-1), f"{network.names[op.outputs[0]]}/pads")
    network.give(op, "Pad", (x, pads, *(network.last(i) for i in op.inputs[2:3])), first, **how)


def _dequantize(network: FloatNetwork, op: Operator) -> None:
    """DEQUANTIZE and DENSIFY of a constant: its decoded form; of a value, which would need codes before it, none."""
    network.alias(op.outputs[0], op.inputs[0])


def _leaky_relu(network: FloatNetwork, op: Operator) -> None:
    same("LeakyRelu", alpha=float(op.options["Alpha"]))(network, op)


def _prelu(network: FloatNetwork, op: Operator) -> None:
    """PRELU: the slopes [1, 1, C], or one per place, are a constant."""
    network.part(op.inputs[1])
    first = network.has_first(op.inputs[0])
    network.give(op, "PRelu", [(network.first if first else network.last)(i) for i in op.inputs], first)


def _gelu(network: FloatNetwork, op: Operator) -> None:
    same("Gelu", approximate="tanh" if op.options.get("Approximate") else "none")(network, op)


def _mirror_pad(network: FloatNetwork, op: Operator) -> None:
    """MIRROR_PAD without the border itself; with it (SYMMETRIC), no row means the same."""
    if op.options["Mode"]:
        raise UnsupportedError("padding that repeats the border", where=network.where(op.outputs[0]))
    _pad(network, op, mode="reflect")


FLOAT: dict[str, FloatImporter] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": same("Add"),
    "SUB": same("Sub"),
    "MUL": same("Mul"),
    "DIV": same("Div"),
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "SOFTMAX": _softmax,
    "CONCATENATION": _concat,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "DEQUANTIZE": _dequantize,
    "RELU": same("Relu"),
    "RELU6": same("Clip", **LIMITS[3]),
    "RELU_N1_TO_1": same("Clip", **LIMITS[2]),
    "LOGISTIC": same("Sigmoid"),
    "TANH": same("Tanh"),
    "EXP": same("Exp"),
    "ABS": same("Abs"),
    "SQRT": same("Sqrt"),
    "NEG": same("Neg"),
    "HARD_SWISH": same("HardSwish"),
    "LEAKY_RELU": _leaky_relu,
    "DENSIFY": _dequantize,
    "PRELU": _prelu,
    "GELU": _gelu,
    "MIRROR_PAD": _mirror_pad,
    **IMAGES,
    **MOVES,
    **NUMBERS,
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
}
"""What each operator of a float network becomes."""
