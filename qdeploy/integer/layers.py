"""Convolutions and matrix products as integers: codes of at most 8 bits, weights, and an int32 bias at their scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder
from qdeploy.integer.divided import smoothed
from qdeploy.integer.intervals import INT32, where
from qdeploy.integer.quantized_value import Float64, QuantizedValue
from qdeploy.integer.weights import Coded, quantized
from qdeploy.ir.graph import Node

_WIDEST = 512
"""Codes up to here are split into a few of 8 bits."""
_CONV_ATTRS = ("strides", "pads", "dilations", "group", "auto_pad", "kernel_shape")


def layer(build: Builder, node: Node) -> None:
    """Conv, Linear and Gemm."""
    weight_bits, activation_bits = build.plan.layer_bits(node.inputs[1])
    divided = smoothed(build, node, activation_bits) if node.op == "Linear" else None
    stored = build.coded(node.inputs[1])
    weight = (stored or _weight(build, node, weight_bits, divided[1] if divided else None)).settled()
    bias = build.real(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else None
    attrs: dict[str, Any] = {}
    if node.op == "Conv":
        attrs = {key: node.attrs[key] for key in _CONV_ATTRS if key in node.attrs}
    elif node.op == "Gemm":
        weight, bias = _gemm(node, weight, bias)
    if divided:
        x = divided[0]
    else:
        x = build.narrow(node.inputs[0], activation_bits, zero_point=True, most=_most_bits(weight))
    accumulate(build, node, x, weight, bias, weight.bits if stored else weight_bits, attrs)


def _most_bits(weight: Coded) -> int:
    """Bits of a signed input with which the products of a weight surely fit an int32, and a bias besides; up to 16."""
    rows = np.abs(weight.codes).reshape(len(weight.codes), -1).sum(axis=1)
    return max(2, min(16, 31 - int(rows.max(initial=0)).bit_length()))


def accumulate(
    build: Builder, node: Node, x: QuantizedValue, weight: Coded, bias: Float64 | None, bits: int, attrs: dict[str, Any]
) -> None:
    """Adds the product of codes with a weight; the result of the node is the accumulator."""
    scale = x.scale * _per_output(node, weight)
    name = node.outputs[0]
    op = "IntegerConv" if node.op == "Conv" else "IntegerLinear"
    total = ""
    for part in _bytes(weight):
        inputs = [x.name, build.weight(part, bits, f"{node.inputs[1]}/codes")]
        if not total and bias is not None and bias.any():
            inputs.append(build.constant(_bias(node, bias, scale), f"{name}/bias"))
        product = build.add(op, inputs, f"{name}/sum", x_zero=x.zero, **attrs)
        total = build.add("IntegerAdd", (total, product), f"{name}/sum") if total else product
    build.values[name] = QuantizedValue.accumulator(total, scale, 1 if node.op == "Conv" else -1)


def _bytes(weight: Coded) -> list[Coded]:
    """A weight as a sum of codes of 8 bits; one with codes far beyond them as it is."""
    rest = weight.codes
    parts: list[Coded] = []
    if not rest.size or np.abs(rest).max() > _WIDEST:
        return [weight]
    while rest.any() or not parts:
        parts.append(replace(weight, codes=np.clip(rest, -128, 127)))
        rest = rest - parts[-1].codes
    return parts


def product(build: Builder, node: Node) -> None:
    """MatMul: with a constant matrix it is a layer, else a product of two activations."""
    a, b = node.inputs
    if build.is_constant(b):
        coded = build.coded(b)
        if coded is None or coded.codes.ndim != 2:
            raise UnsupportedError("a product with a constant that is not a matrix", where=where(node))
        x = build.narrow(a)
        accumulate(build, node, x, coded.transposed(), None, coded.bits, {})
        return
    left, right = build.narrow(a), build.narrow(b)
    output = build.add(
        "IntegerMatMul", (left.name, right.name), f"{node.outputs[0]}/sum", a_zero=left.zero, b_zero=right.zero
    )
    build.values[node.outputs[0]] = QuantizedValue.accumulator(output, left.scale * right.scale, -1)


def _weight(build: Builder, node: Node, bits: int, divisors: Float64 | None) -> Coded:
    array = build.array(node.inputs[1])
    if array is None or array.dtype.kind != "f":
        raise UnsupportedError("a layer whose weight is not a constant", where=where(node), found=node.inputs[1])
    if node.op == "Gemm" and not node.attrs.get("transB", 0):
        return quantized(np.ascontiguousarray(array.T), bits).transposed()  # a scale per column
    moments = build.moments.get(node.inputs[1])
    if divisors is not None:
        array = array * divisors
        moments = None if moments is None else moments / np.outer(divisors, divisors)
    return quantized(array, bits, moments)


def _gemm(node: Node, weight: Coded, bias: Float64 | None) -> tuple[Coded, Float64 | None]:
    """The weight as [N, K], and the bias, with alpha and beta in them."""
    if node.attrs.get("transA", 0):
        raise UnsupportedError("a Gemm whose activation is transposed", where=where(node))
    alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))  # type: ignore[arg-type]
    matrix = weight if node.attrs.get("transB", 0) else weight.transposed()
    sign = -1 if alpha < 0 else 1
    scaled = Coded(matrix.codes * sign, matrix.scale * abs(alpha), matrix.axis, matrix.bits)
    return scaled, None if bias is None else bias.reshape(-1) * beta


def _per_output(node: Node, weight: Coded) -> Float64:
    """One scale per output, or one for all."""
    if weight.scale.size > 1 and weight.axis % weight.codes.ndim != 0:
        raise UnsupportedError(
            "a weight with scales along its inputs",
            where=where(node),
            found=weight.axis,
            allowed="one scale for all, or one per output",
        )
    if (weight.scale <= 0).any():
        raise UnsupportedError("a weight with a scale that is not positive", where=where(node))
    return weight.scale


def _bias(node: Node, bias: Float64, scale: Float64) -> Any:
    codes = np.rint(bias / scale)
    if np.abs(codes).max() >= INT32:
        raise UnsupportedError(
            "a bias does not fit an int32 at the scale of its products",
            where=where(node),
            found=float(np.abs(codes).max()),
            allowed=f"below {INT32}",
        )
    return codes.astype(np.int32)
