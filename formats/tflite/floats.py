"""Operators of float TFLite networks as rows of the table, with weights of any kind.

The rows of convolution and pooling have channels first. Images are transposed where such a row needs it and transposed
back where something else takes them, but not between two such rows. Weights stay in the order of the file, and a
Transpose of a constant stands before the row. Weights that are int8 (dynamic range) or float16 are decoded as they are:
activations, which TFLite's hybrid kernels would quantize while they run, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.graph import Network
from qdeploy.formats.tflite.schema import Operator, Parsed
from qdeploy.formats.tflite.stored import Part

_FIRST, _LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_LIMITS = {2: {"min": -1.0, "max": 1.0}, 3: {"min": 0.0, "max": 6.0}}


class FloatNetwork(Network):
    """A float subgraph, whose images exist with channels last, first, or both."""

    def __init__(self, file: str, parsed: Parsed, names: Sequence[str], parts: Mapping[int, Part]) -> None:
        super().__init__(file, parsed, names, parts)
        self._first: dict[int, str] = {}
        self._last: dict[int, str] = {i: names[i] for i in (*parts, *parsed.inputs)}
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}

    def last(self, index: int) -> str:
        """A value as the file has it."""
        if index not in self._last:
            if index not in self._first:
                raise BadFileError("an operator takes what nothing before it gives", where=self.where(index))
            self._last[index] = self.add("Transpose", (self._first[index],), self.names[index], perm=_LAST)
        return self._last[index]

    def first(self, index: int) -> str:
        """An image with channels first."""
        if index not in self._first:
            if len(self.shape(index)) != 4:
                raise BadFileError("an image without four axes", where=self.where(index), found=self.shape(index))
            self._first[index] = self.add("Transpose", (self.last(index),), f"{self.names[index]}/nchw", perm=_FIRST)
        return self._first[index]

    def has_first(self, *indices: int) -> bool:
        """Whether values exist with channels first already."""
        return all(i in self._first for i in indices)

    def transposed(self, index: int, perm: Sequence[int]) -> str:
        """A constant with its axes permuted."""
        key = (self.last(index), tuple(perm))
        if key not in self._transposed:
            self._transposed[key] = self.add(
                "Transpose", (key[0],), f"{key[0]}/turned{len(self._transposed)}", perm=list(perm)
            )
        return self._transposed[key]

    def give(self, op: Operator, row: str, inputs: Sequence[str], first: bool, **attrs: Any) -> None:
        """Adds a row and its fused activation function, as the operator's result."""
        index, activation = op.outputs[0], int(op.options.get("FusedActivationFunction", 0))
        name = f"{self.names[index]}/nchw" if first else self.names[index]
        if activation not in (0, 1, *_LIMITS):
            raise UnsupportedError(
                "a fused activation function that is not read",
                where=self.where(index),
                found=activation,
                allowed="none, RELU, RELU_N1_TO_1, RELU6",
            )
        output = self.add(row, inputs, f"{name}/linear" if activation else name, **attrs)
        if activation:
            limits = _LIMITS.get(activation, {})
            self.add("Clip" if limits else "Relu", (output,), name, **limits)
        (self._first if first else self._last)[index] = name

    def alias(self, index: int, of: int) -> None:
        """Lets a tensor stand for another one."""
        self._last[index] = self.last(of)


def _layer_inputs(network: FloatNetwork, op: Operator, x: str, weight: str) -> list[str]:
    return [x, weight, *(network.last(i) for i in op.inputs[2:3] if i >= 0)]


def _conv(network: FloatNetwork, op: Operator) -> None:
    """CONV_2D [M, h, w, C / group] and DEPTHWISE_CONV_2D [1, h, w, M]: both [M, C / group, h, w]."""
    filters, channels = network.shape(op.inputs[1]), network.shape(op.inputs[0])[3]
    deep = op.kind == "DEPTHWISE_CONV_2D"
    if len(filters) != 4 or (filters[0] != 1 or filters[3] % channels if deep else channels % filters[3]):
        raise BadFileError("filters that do not fit their image", where=network.where(op.inputs[1]), found=filters)
    group = channels if deep else channels // filters[3]
    weight = network.transposed(op.inputs[1], [3, 0, 1, 2] if deep else _FIRST)
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


def _same(row: str, **attrs: Any) -> Callable[[FloatNetwork, Operator], None]:
    """An operator of elements: it does not matter where channels are, if all inputs agree."""

    def add(network: FloatNetwork, op: Operator) -> None:
        first = network.has_first(*op.inputs)
        network.give(op, row, [(network.first if first else network.last)(i) for i in op.inputs], first, **attrs)

    return add


def _mean(network: FloatNetwork, op: Operator) -> None:
    source = op.inputs[0]
    rank, keep = len(network.shape(source)), int(bool(op.options.get("KeepDims")))
    axes = sorted({a % rank for a in network.listed(op.inputs[1])})
    if network.has_first(source) and axes == [1, 2]:
        network.give(op, "ReduceMean", (network.first(source),), bool(keep), axes=[2, 3], keepdims=keep)
    else:
        network.give(op, "ReduceMean", (network.last(source),), False, axes=axes, keepdims=keep)


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
    network.give(op, "Concat", names, first, axis=_FIRST.index(axis % 4) if first else axis)


def _transpose(network: FloatNetwork, op: Operator) -> None:
    network.give(op, "Transpose", (network.last(op.inputs[0]),), False, perm=network.listed(op.inputs[1]))


def _pad(network: FloatNetwork, op: Operator) -> None:
    spans = np.array(network.listed(op.inputs[1]), np.int64).reshape(-1, 2)
    first = network.has_first(op.inputs[0])
    x = network.first(op.inputs[0]) if first else network.last(op.inputs[0])
    ordered = spans[_FIRST] if first else spans
    pads = network.constant(ordered.T.reshape(-1), f"{network.names[op.outputs[0]]}/pads")
    network.give(op, "Pad", (x, pads, *(network.last(i) for i in op.inputs[2:3])), first)


def _dequantize(network: FloatNetwork, op: Operator) -> None:
    """DEQUANTIZE of a constant: its decoded form; of a value, which would need codes before it, none."""
    network.part(op.inputs[0])
    network.alias(op.outputs[0], op.inputs[0])


def _leaky_relu(network: FloatNetwork, op: Operator) -> None:
    _same("LeakyRelu", alpha=float(op.options["Alpha"]))(network, op)


FLOAT: dict[str, Callable[[FloatNetwork, Operator], None]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _same("Add"),
    "SUB": _same("Sub"),
    "MUL": _same("Mul"),
    "DIV": _same("Div"),
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    "CONCATENATION": _concat,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "DEQUANTIZE": _dequantize,
    "RELU": _same("Relu"),
    "RELU6": _same("Clip", **_LIMITS[3]),
    "RELU_N1_TO_1": _same("Clip", **_LIMITS[2]),
    "LOGISTIC": _same("Sigmoid"),
    "TANH": _same("Tanh"),
    "EXP": _same("Exp"),
    "ABS": _same("Abs"),
    "SQRT": _same("Sqrt"),
    "NEG": _same("Neg"),
    "HARD_SWISH": _same("HardSwish"),
    "LEAKY_RELU": _leaky_relu,
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
}
"""What each operator of a float network becomes."""
