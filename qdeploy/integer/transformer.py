"""Encoders as integers: embeddings, attention, GELU and normalisations in the forms of ir/ops/integer_functions.py.

    embeddings   tables of 8 bits with a scale per column; their sum is a stream
    attention    scores in 16 bits at SCORE_SCALE, probabilities in 8; what they mix keeps the range of the values
    gelu         of 16 bits, with the shift that keeps its result in an int32
    layer norm   its weight in 15 bits; the result in an int32 with one scale
    pooling      the sum over the tokens that count, since the normalisation behind it has no use for their number

Constants and shifts follow from the scales of the values that they are for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder, Rule
from qdeploy.integer.intervals import where
from qdeploy.integer.quantized_value import Grid, QuantizedValue, signed_grid
from qdeploy.integer.weights import quantized
from qdeploy.ir.graph import Node

SCORE_SCALE = 2.0**-9
"""Of attention scores: 16 bits reach to +-64."""
_PROBABILITY_BITS = 8
_NORM_BITS, _WEIGHT_BITS = 30, 14


def gather(build: Builder, node: Node) -> None:
    """Rows of a constant table, selected by integers."""
    table, ids = node.inputs
    if ids not in build.integers or not build.is_constant(table) or node.attrs.get("axis", 0) != 0:
        raise UnsupportedError("a selection that is not of rows of a constant by integers", where=where(node))
    real, name = build.real(table), node.outputs[0]
    if real.ndim != 2:
        raise UnsupportedError("a table that is not a matrix", where=where(node), found=list(real.shape))
    coded = quantized(real.T, 8).transposed()  # a scale per column
    codes_name = build.weight(coded, 8, f"{table}/codes")
    output = build.add("Gather", (codes_name, build.integers[ids]), name, axis=0)
    build.values[name] = QuantizedValue(output, coded.scale, "I8", -128, 127, axis=-1)


def positions(build: Builder, node: Node) -> None:
    """The places of tokens: integers as they are."""
    name = node.outputs[0]
    build.integers[name] = build.add("Positions", (build.integers[node.inputs[0]],), name)


def softmax_constants(scale: float) -> dict[str, int]:
    """The constants of an integer exponential for numbers of a scale; `left` fills 31 bits."""
    c = math.floor(2.79211 / scale**2)
    ln2, b = math.floor(math.log(2) / scale), math.floor(2.70732 / scale)
    if ln2 < 1 or c.bit_length() > 31:
        raise UnsupportedError("a softmax of numbers whose scale is out of range", found=scale, allowed="3e-5 to 0.6")
    return {"ln2": ln2, "b": b, "c": c, "left": 31 - c.bit_length()}


def softmax(build: Builder, node: Node) -> None:
    """Softmax of scores in 16 bits."""
    name = node.outputs[0]
    x = build.requantize(build.value(node.inputs[0]), _scores(), node.inputs[0])
    build.values[name] = _probabilities(build, x, "", name, int(str(node.attrs.get("axis", -1))))


def attention(build: Builder, node: Node) -> None:
    """Attention without past, rotation or causal mask."""
    attrs: Any = node.attrs
    if (
        attrs.get("causal")
        or attrs.get("rope")
        or attrs.get("state")
        or attrs["heads"] != attrs["kv_heads"]
        or node.inputs[4:]
    ):
        raise UnsupportedError(
            "an attention that is not a plain encoder's",
            where=where(node),
            allowed="no causal mask, no rotation, no past, no biases, a key head per query head",
        )
    name, heads = node.outputs[0], attrs["heads"]
    q, k, v = (
        _heads(build, build.narrow(part), heads, f"{name}/{label}")
        for part, label in zip(node.inputs[:3], "qkv", strict=True)
    )
    output = build.add("IntegerMatMul", (q.name, k.name), f"{name}/scores", a_zero=q.zero, b_zero=k.zero, transpose_b=1)
    scores = QuantizedValue.accumulator(output, q.scale * k.scale * float(attrs["scale"]), -1)
    x = build.requantize(scores, _scores(), f"{name}/scores")
    mask = build.integers[node.inputs[3]] if node.inputs[3:4] and node.inputs[3] else ""
    mask = build.add("Unsqueeze", (mask,), f"{name}/mask", axes=[1, 2]) if mask else ""  # [B, 1, 1, S]
    p = _probabilities(build, x, mask, f"{name}/probabilities", -1)
    mixed = build.add("IntegerMatMul", (p.name, v.name), f"{name}/mixed", b_zero=v.zero)  # [B, heads, T, D]
    own = Grid(float(v.scale[0]), v.zero, v.lo, v.hi, v.dtype)
    y = build.requantize(QuantizedValue.accumulator(mixed, p.scale * v.scale, -1), own, f"{name}/mixed")
    transposed = build.add("Transpose", (y.name,), f"{name}/turned", perm=[0, 2, 1, 3])
    build.values[name] = QuantizedValue.on(own, build.add("Reshape", (transposed,), name, shape=[0, 0, -1]))


def _heads(build: Builder, x: QuantizedValue, heads: int, name: str) -> QuantizedValue:
    """[B, T, heads * D] -> [B, heads, T, D]."""
    split = build.add("Reshape", (x.name,), f"{name}/split", shape=[0, 0, heads, -1])
    transposed = build.add("Transpose", (split,), f"{name}/heads", perm=[0, 2, 1, 3])
    return QuantizedValue(transposed, x.scale, x.dtype, x.lo, x.hi, x.zero)


def _scores() -> Grid:
    return Grid(SCORE_SCALE, 0, -32768, 32767, "I16")


def _probabilities(build: Builder, x: QuantizedValue, mask: str, name: str, axis: int) -> QuantizedValue:
    inputs = (x.name, mask) if mask else (x.name,)
    output = build.add(
        "IntegerSoftmax",
        inputs,
        name,
        axis=axis,
        bits=_PROBABILITY_BITS,
        hi=255,
        dtype="U8",
        **softmax_constants(float(x.scale[0])),
    )
    return QuantizedValue(output, np.array([2.0**-_PROBABILITY_BITS]), "U8", 0, 255)


def gelu(build: Builder, node: Node) -> None:
    """Gelu of 16 bits; the tanh formula is the same function within what 8 bits show."""
    source, name = node.inputs[0], node.outputs[0]
    low, high = build.plan.interval(source)
    x = build.requantize(build.value(source), signed_grid(max(abs(low), abs(high)), 16), source)
    scale, size = float(x.scale[0]), max(abs(x.lo), x.hi)
    b, c = math.floor(1.769 * math.sqrt(2) / scale), math.floor(2 / (0.2888 * scale**2))
    shift = max(0, (2 * size * c).bit_length() - 31)
    output = build.add("IntegerGelu", (x.name,), f"{name}/gelu", b=b, c=c, shift=shift)
    build.values[name] = QuantizedValue.accumulator(output, np.array([0.2888 * scale**3 * 2.0**shift / 4]), -1)


def layer_norm(build: Builder, node: Node) -> None:
    """LayerNormalization over the last axis."""
    source, name = node.inputs[0], node.outputs[0]
    x = build.value(source)
    x = x if x.grid is not None and x.zero == 0 else build.codes(source, 16)
    weight = build.real(node.inputs[1]).reshape(-1)
    bias = build.real(node.inputs[2]).reshape(-1) if node.inputs[2:3] else np.zeros(len(weight))
    n, top = len(weight), float(np.abs(weight).max(initial=0)) or 1.0
    shift = _WEIGHT_BITS + 1
    while np.abs(bias).max(initial=0) / _norm_scale(n, top, shift) >= 1 << 30 and shift < _NORM_BITS:
        shift += 1
    scale = _norm_scale(n, top, shift)
    codes = np.rint(weight / top * (1 << _WEIGHT_BITS)).astype(np.int32)
    inputs = (
        x.name,
        build.constant(codes, f"{name}/weight"),
        build.constant(np.rint(bias / scale).astype(np.int32), f"{name}/bias"),
    )
    epsilon = round(n * float(str(node.attrs.get("epsilon", 1e-5))) / float(x.scale[0]) ** 2)
    output = build.add("IntegerLayerNorm", inputs, f"{name}/norm", epsilon=min(epsilon, 1 << 61), shift=shift)
    build.values[name] = QuantizedValue.accumulator(output, np.array([scale]), -1)


def _norm_scale(n: int, top: float, shift: int) -> float:
    return math.sqrt(n) * top * 2.0 ** (shift - _NORM_BITS - _WEIGHT_BITS)


def mean_pool(build: Builder, node: Node) -> None:
    """MeanPool whose result is only normalised: the sum of the vectors that count."""
    hidden, mask = node.inputs
    name = node.outputs[0]
    users = [user.op for user in build.graph.nodes if name in user.inputs]
    if set(users) != {"LpNormalization"} or any(value.name == name for value in build.graph.outputs):
        raise UnsupportedError(
            "a mean over tokens that is not normalised",
            where=where(node),
            found=", ".join(users),
            allowed="LpNormalization behind it",
        )
    low, high = build.plan.interval(hidden)
    x = build.requantize(build.value(hidden), signed_grid(max(abs(low), abs(high)), 16), hidden)
    counted = build.add("Clip", (build.integers[mask],), f"{name}/mask", min=0, max=1)
    row = build.add("Unsqueeze", (counted,), f"{name}/row", axes=[1])  # [B, 1, T]
    summed = build.add("IntegerMatMul", (row, x.name), f"{name}/sum")  # [B, 1, H]
    build.values[name] = QuantizedValue.accumulator(build.add("Squeeze", (summed,), name, axes=[1]), x.scale, -1)


def lp_normalization(build: Builder, node: Node) -> None:
    """LpNormalization with p = 2 over the last axis."""
    if node.attrs.get("p", 2) != 2 or node.attrs.get("axis", -1) != -1:
        raise UnsupportedError("a normalisation that is not by the last axis's length", where=where(node))
    x, name = build.value(node.inputs[0]), node.outputs[0]
    x = x if x.grid is not None and x.zero == 0 else build.codes(node.inputs[0], 16)
    output = build.add("IntegerRMSNorm", (x.name,), f"{name}/norm")
    build.values[name] = QuantizedValue.accumulator(output, np.array([2.0**-_NORM_BITS]), -1)


TRANSFORMER_RULES: dict[str, Rule] = {
    "Gather": gather,
    "Positions": positions,
    "Softmax": softmax,
    "Attention": attention,
    "Gelu": gelu,
    "LayerNormalization": layer_norm,
    "MeanPool": mean_pool,
    "LpNormalization": lp_normalization,
}
