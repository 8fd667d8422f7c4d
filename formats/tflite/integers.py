"""Operators of integer TFLite networks, in the arithmetic of the reference kernels, which rounds twice.

factor      real = m / 2^e, m = round(f 2^31) for real = f 2^p, e = 31 - p      (QuantizeMultiplier)
rescaling   high product (x m / 2^31, halves upwards), then / 2^(e - 31), halves away from zero: "tflite_double"
layers      one factor s_x s_w / s_y per channel, formed in float64. Convolutions of int16 that add up in 64 bits: m
            rounded to 15 bits, one rounding, halves upwards. FULLY_CONNECTED: one rounding, halves away from zero
ADD         both sides (x - zero) << 20 (15 for int16) times s / (2 max s), their sum times 2 max s / (2^20 s_y)
MEAN        sum - n zero, times (m << k) / n (floor, k = floor(log2 n)): two Requantize nodes where that is below 2^30
fused ReLU  limits round(bound / s) + zero, in float32, halves away from zero
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.graph import CODES, Importer, Network
from qdeploy.formats.tflite.schema import Operator
from qdeploy.ir.dtype import element_row
from qdeploy.ir.dyadic import ONE, dyadic, dyadics
from qdeploy.ir.tensor import Array

_I32 = {"dtype": "I32", "lo": -(1 << 31), "hi": (1 << 31) - 1}
_BOUNDS: dict[int, tuple[float | None, float | None]] = {0: (None, None), 1: (0, None), 2: (-1, 1), 3: (0, 6)}
"""Fused activation functions: none, ReLU, ReLU-1..1, ReLU6."""


def limits(network: Network, index: int, activation: int) -> dict[str, int]:
    """Zero point and limits of a result behind its activation function."""
    if activation not in _BOUNDS:
        raise UnsupportedError(
            "a fused activation function that is not read",
            where=network.where(index),
            found=activation,
            allowed="none, RELU, RELU_N1_TO_1, RELU6",
        )
    scale, zero = network.scale(index)
    low, high = element_row(network.dtype(index)).limits
    floor, ceil = (None if b is None else zero + _rounded(np.float32(b) / scale) for b in _BOUNDS[activation])
    lo = low if floor is None else min(max(low, floor), high)
    return {"zero": zero, "lo": lo, "hi": high if ceil is None else max(min(high, ceil), lo)}


def _rounded(x: np.float32) -> int:
    """To the nearest, halves away from zero, within an int32."""
    size = min(abs(float(x)), float(1 << 30))
    return int(math.copysign(math.floor(size + 0.5), float(x)))


def _activation(op: Operator) -> int:
    return int(op.options.get("FusedActivationFunction", 0))


def _rescale(network: Network, x: str, factors: Any, output: str, **attrs: Any) -> str:
    """Adds a Requantize node; `factors` are multipliers and shifts, one or per index of the last axis."""
    m, e = (np.atleast_1d(np.asarray(part, np.int32)) for part in factors)
    parts = [network.constant(part, f"{output}/{key}") for key, part in (("multiplier", m), ("shift", e))]
    attrs.setdefault("rounding", "tflite_double")
    return network.add("Requantize", (x, *parts), output, **attrs, **({"axis": -1} if m.size > 1 else {}))


def _result(network: Network, op: Operator) -> dict[str, Any]:
    output = op.outputs[0]
    return {"dtype": network.dtype(output), **limits(network, output, _activation(op))}


# ---- layers


def _bias(network: Network, op: Operator) -> tuple[list[str], bool]:
    """The bias as an int32 constant, and whether sums are kept in 64 bits."""
    wide = network.dtype(op.inputs[0]) == "I16"
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return [], wide
    part = network.part(op.inputs[2])
    if part.stored.dtype.element == "I32":
        return [network.integers(op.inputs[2])], False
    numbers = part.array()
    if part.stored.dtype.element != "I64" or np.abs(numbers).max(initial=0) >= 1 << 31:
        raise UnsupportedError(
            "a bias that does not fit an int32", where=network.where(op.inputs[2]), found=part.stored.dtype.element
        )
    return [network.constant(numbers.astype(np.int32), f"{network.names[op.inputs[2]]}/i32")], True


def _layer_factors(network: Network, op: Operator) -> tuple[Array, Array]:
    """Multipliers and shifts of a layer's results."""
    (x, _), (y, _) = network.scale(op.inputs[0]), network.scale(op.outputs[0])
    weight = network.tensor(op.inputs[1])
    if weight.zeros.any() or not (weight.scales > 0).all() or not weight.scales.size:
        raise UnsupportedError(
            "a weight with zero points, or without scales",
            where=network.where(op.inputs[1]),
            allowed="int8 with scales above 0 and zero points of 0",
        )
    return dyadics([float(x) * float(w) / float(y) for w in weight.scales])


def _short(m: Array, e: Array) -> tuple[Array, Array]:
    """Multipliers of 15 bits."""
    rounded = np.minimum((m.astype(np.int64) + (1 << 15)) >> 16, (1 << 15) - 1)
    return (rounded << 16).astype(np.int32), e


def _checked_layer(network: Network, op: Operator) -> None:
    kinds = [network.tensor(i).kind for i in op.inputs[:2]]
    if kinds[0] not in CODES or kinds[1] not in ("INT8", "INT4") or op.inputs[1] not in network.parts:
        raise UnsupportedError(
            "a layer of these types has no integer form here",
            where=network.where(op.outputs[0]),
            found=", ".join(kinds),
            allowed="INT8 or INT16 with a constant INT8 weight",
        )


def _conv(network: Network, op: Operator) -> None:
    """CONV_2D: filters [M, h, w, C / group]."""
    _checked_layer(network, op)
    filters, channels = network.shape(op.inputs[1]), network.shape(op.inputs[0])[3]
    if len(filters) != 4 or channels % filters[3]:
        raise BadFileError("filters that do not fit their image", where=network.where(op.inputs[1]), found=filters)
    _convolved(network, op, network.integers(op.inputs[1]), filters[1:3], channels // filters[3])


def _depthwise(network: Network, op: Operator) -> None:
    """DEPTHWISE_CONV_2D: filters [1, h, w, M], brought to [M, h, w, 1]."""
    _checked_layer(network, op)
    filters, channels = network.shape(op.inputs[1]), network.shape(op.inputs[0])[3]
    if len(filters) != 4 or filters[0] != 1 or filters[3] % channels:
        raise BadFileError("filters that do not fit their image", where=network.where(op.inputs[1]), found=filters)
    name = f"{network.names[op.inputs[1]]}/grouped"
    if name not in network.constants:
        codes = network.part(op.inputs[1]).array().astype(np.int8)
        network.constant(np.ascontiguousarray(codes.transpose(3, 1, 2, 0)), name)  # [1, h, w, M] -> [M, h, w, 1]
    _convolved(network, op, name, filters[1:3], channels)


def _convolved(network: Network, op: Operator, weight: str, kernel: Sequence[int], group: int) -> None:
    attrs = {"kernel_shape": list(kernel), "layout": "NHWC", **network.spatial(op, op.inputs[0], kernel)}
    attrs |= {"group": group} if group > 1 else {}
    bias, wide = _bias(network, op)
    name, factors = network.names[op.outputs[0]], _layer_factors(network, op)
    total = network.add(
        "IntegerConv",
        (network.names[op.inputs[0]], weight, *bias),
        f"{name}/sum",
        x_zero=network.scale(op.inputs[0])[1],
        **attrs,
    )
    _rescale(
        network,
        total,
        _short(*factors) if wide else factors,
        name,
        rounding="half_up" if wide else "tflite_double",
        **_result(network, op),
    )


def _fully_connected(network: Network, op: Operator) -> None:
    """FULLY_CONNECTED: weight [N, K]; the input as rows of K."""
    _checked_layer(network, op)
    name, x = network.names[op.outputs[0]], network.names[op.inputs[0]]
    width = network.shape(op.inputs[1])[1]
    if op.options.get("WeightsFormat", 0):
        raise UnsupportedError("a weight in a shuffled order", where=network.where(op.inputs[1]))
    shape = network.shape(op.inputs[0])
    if not shape or shape[-1] != width or (len(shape) != 2 and not op.options.get("KeepNumDims")):
        x = network.add("Reshape", (x,), f"{name}/rows", shape=[-1, width])
    bias, _ = _bias(network, op)
    total = network.add(
        "IntegerLinear",
        (x, network.integers(op.inputs[1]), *bias),
        f"{name}/sum",
        x_zero=network.scale(op.inputs[0])[1],
    )
    _rescale(network, total, _layer_factors(network, op), name, rounding="half_away", **_result(network, op))


# ---- sums and products of values


def _add(network: Network, op: Operator) -> None:
    """ADD: both sides at a common scale, in 32 bits."""
    name, output = network.names[op.outputs[0]], op.outputs[0]
    left = 15 if network.dtype(output) == "I16" else 20
    twice = 2 * max(float(network.scale(i)[0]) for i in op.inputs)
    sides = []
    for place, index in enumerate(op.inputs):
        scale, zero = network.scale(index)
        sides.append(
            _rescale(
                network,
                _codes(network, index),
                dyadic(float(scale) / twice),
                f"{name}/{'ab'[place]}",
                x_zero=zero,
                left_shift=left,
                **_I32,
            )
        )
    total = network.add("IntegerAdd", sides, f"{name}/sum")
    factor = dyadic(twice / ((1 << left) * float(network.scale(output)[0])))
    _rescale(network, total, factor, name, **_result(network, op))


def _mul(network: Network, op: Operator) -> None:
    """MUL: the product of both sides, rescaled."""
    name = network.names[op.outputs[0]]
    (a, a_zero), (b, b_zero) = (network.scale(i) for i in op.inputs)
    total = network.add(
        "IntegerMul", [_codes(network, i) for i in op.inputs], f"{name}/product", a_zero=a_zero, b_zero=b_zero
    )
    real = float(np.float32(np.float32(a * b) / network.scale(op.outputs[0])[0]))
    _rescale(network, total, dyadic(real), name, **_result(network, op))


def _codes(network: Network, index: int) -> str:
    return network.integers(index) if index in network.parts else network.names[index]


def _rescaled(network: Network, op: Operator, activation: int) -> None:
    """QUANTIZE between codes, and ReLU on its own: one rescaling."""
    source, output = op.inputs[0], op.outputs[0]
    if network.tensor(source).kind not in (*CODES, "UINT8"):
        raise UnsupportedError("a conversion from floats inside of an integer network", where=network.where(output))
    (x, zero), (y, _) = network.scale(source), network.scale(output)
    _rescale(
        network,
        network.names[source],
        dyadic(float(x) / float(y)),
        network.names[output],
        x_zero=zero,
        dtype=network.dtype(output),
        **limits(network, output, activation),
    )


# ---- pooling and means


def _same_scale(network: Network, op: Operator) -> None:
    """Refuses an operator that moves codes between scales."""
    scales = {(float(s), z) for s, z in map(network.scale, (*op.inputs, op.outputs[0]))}
    if len(scales) > 1:
        raise UnsupportedError("codes that move between scales", where=network.where(op.outputs[0]), found=scales)


def _average_pool(network: Network, op: Operator) -> None:
    _same_scale(network, op)
    kernel = [op.options["FilterHeight"], op.options["FilterWidth"]]
    bounds = limits(network, op.outputs[0], _activation(op))
    network.add(
        "IntegerAveragePool",
        (network.names[op.inputs[0]],),
        network.names[op.outputs[0]],
        kernel_shape=kernel,
        layout="NHWC",
        rounding="half_away",
        lo=bounds["lo"],
        hi=bounds["hi"],
        **network.spatial(op, op.inputs[0], kernel),
    )


def _max_pool(network: Network, op: Operator) -> None:
    """MAX_POOL_2D: the row has channels first, so the image is transposed before and after it."""
    _same_scale(network, op)
    name, kernel = network.names[op.outputs[0]], [op.options["FilterHeight"], op.options["FilterWidth"]]
    bounds = limits(network, op.outputs[0], _activation(op))
    channels_first = network.add("Transpose", (network.names[op.inputs[0]],), f"{name}/nchw", perm=[0, 3, 1, 2])
    pooled = network.add(
        "MaxPool", (channels_first,), f"{name}/max", kernel_shape=kernel, **network.spatial(op, op.inputs[0], kernel)
    )
    if _activation(op):
        pooled = network.add("Clip", (pooled,), f"{name}/limited", min=bounds["lo"], max=bounds["hi"])
    network.add("Transpose", (pooled,), name, perm=[0, 2, 3, 1])


def _mean(network: Network, op: Operator) -> None:
    """MEAN: the factor holds 1 / n, rounded down, and may have 30 bits only; then it rounds in two nodes."""
    source, name = op.inputs[0], network.names[op.outputs[0]]
    shape = network.shape(source)
    axes = sorted({a % len(shape) for a in network.listed(op.inputs[1])})
    if not axes or 0 in axes:
        raise UnsupportedError("a mean over the first axis, or over none", where=network.where(source), found=axes)
    (x, zero), (y, _) = network.scale(source), network.scale(op.outputs[0])
    n = math.prod(shape[a] for a in axes)
    total = network.add(
        "IntegerSum", (network.names[source],), f"{name}/sum", axes=axes, keepdims=int(bool(op.options.get("KeepDims")))
    )
    m, e = dyadic(float(x) / float(y))
    k = min(n.bit_length() - 1, 32, 62 - e)
    m, e = (m << k) // n, e + k
    result = _result(network, op)
    if m >= ONE[0] or m == 0:
        _rescale(network, total, (m, e), name, x_zero=zero * n, **result)
        return
    left = max(31 - e, 0)
    high = _rescale(
        network, total, (2 * m, 32), f"{name}/high", x_zero=zero * n, left_shift=left, rounding="half_up", **_I32
    )
    _rescale(network, high, (ONE[0], ONE[1] + max(e - 31, 0)), name, rounding="half_away", **result)


# ---- functions and moves


def _softmax(network: Network, op: Operator) -> None:
    """SOFTMAX of int8: exp in Q5.26 of the scaled distance to the greatest."""
    scale, _ = network.scale(op.inputs[0])
    dtype, output = network.dtype(op.inputs[0]), network.tensor(op.outputs[0])
    if dtype != "I8" or output.kind != "INT8" or network.scale(op.outputs[0]) != (np.float32(1 / 256), -128):
        raise UnsupportedError(
            "a softmax of this type or scale",
            where=network.where(op.outputs[0]),
            found=f"{dtype}, {output.kind}",
            allowed="INT8 at 1/256, zero point -128",
        )
    real = min(float(np.float32(op.options["Beta"])) * float(scale) * (1 << 26), float((1 << 31) - 1))
    if real <= 1:
        raise UnsupportedError("a softmax of so small a scale", where=network.where(op.inputs[0]), found=float(scale))
    m, e = dyadic(real)
    left = 31 - e
    network.add(
        "TfliteSoftmax",
        (network.names[op.inputs[0]],),
        network.names[op.outputs[0]],
        multiplier=m,
        left_shift=left,
        diff_min=-((31 << 26) >> left),
    )


def _reshape(network: Network, op: Operator) -> None:
    network.add("Reshape", (network.names[op.inputs[0]],), network.names[op.outputs[0]], shape=network.target(op))


def _concat(network: Network, op: Operator) -> None:
    _same_scale(network, op)
    if _activation(op):
        raise UnsupportedError("a fused activation function here", where=network.where(op.outputs[0]))
    network.add(
        "Concat", [_codes(network, i) for i in op.inputs], network.names[op.outputs[0]], axis=int(op.options["Axis"])
    )


def _transpose(network: Network, op: Operator) -> None:
    network.add(
        "Transpose", (network.names[op.inputs[0]],), network.names[op.outputs[0]], perm=network.listed(op.inputs[1])
    )


def _pad(network: Network, op: Operator) -> None:
    """PAD with the zero point, PADV2 with a code."""
    name, spans = network.names[op.outputs[0]], np.array(network.listed(op.inputs[1]), np.int64).reshape(-1, 2)
    pads = network.constant(spans.T.reshape(-1), f"{name}/pads")  # [axes, 2] -> every begin, then every end
    if len(op.inputs) > 2:
        value = network.integers(op.inputs[2])
    else:
        kind = {"I8": np.int8, "I16": np.int16}[network.dtype(op.outputs[0])]
        value = network.constant(np.array(network.scale(op.outputs[0])[1], kind), f"{name}/zero")
    network.add("Pad", (network.names[op.inputs[0]], pads, value), name)


INTEGER: dict[str, Importer] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
    "MUL": _mul,
    "AVERAGE_POOL_2D": _average_pool,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    "CONCATENATION": _concat,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": lambda network, op: _rescaled(network, op, 0),
    "RELU": lambda network, op: _rescaled(network, op, 1),
    "RELU_N1_TO_1": lambda network, op: _rescaled(network, op, 2),
    "RELU6": lambda network, op: _rescaled(network, op, 3),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
}
"""What each operator of an integer network becomes."""
