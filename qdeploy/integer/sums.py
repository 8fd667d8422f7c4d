"""Sums and products of values, as integers.

Addends are brought to one scale: that of their stream (16 bits), or, where the source gives scales of its own, one so
fine that the rounding of the addends vanishes beside that of the sum: 2^-20 of the greatest addend. A number that is
added to sums in int32 goes into their zero point, or, where they have a scale per channel, into the bias before them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder
from qdeploy.integer.intervals import INT32, where
from qdeploy.integer.quantized_value import Float64, Grid, QuantizedValue, fine_grid
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Node
from qdeploy.quantize.allocate import LAYERS


def add(build: Builder, node: Node) -> None:
    """Add and Sub, of two values or of a value and a constant."""
    constant = [i for i, name in enumerate(node.inputs) if build.is_constant(name)]
    if len(node.inputs) != 2 or len(constant) == 2:
        raise UnsupportedError("a sum of anything but two values", where=where(node), found=len(node.inputs))
    if constant and _is_number(build, node, constant[0]):
        build.values[node.outputs[0]] = _shifted(build, node)
        return
    signs = (1, -1 if node.op == "Sub" else 1)
    name, values = node.outputs[0], [None if i in constant else _addend(build, n) for i, n in enumerate(node.inputs)]
    grid = build.plan.stream(name) or _fine(build, node, [x for x in values if x is not None])
    parts: list[str] = []
    size = 0
    for x, operand, sign in zip(values, node.inputs, signs, strict=True):
        if x is None:
            codes = _constant_codes(node, build.real(operand) * sign, grid.scale)
            parts.append(build.constant(codes, f"{operand}/codes"))
            size += int(np.abs(codes.astype(np.int64)).max(initial=0))
        else:
            part = build.requantize(x, grid, operand)
            parts.append(part.name if sign > 0 else negated(build, part.name, operand))
            size += max(abs(part.lo), abs(part.hi))
    output = build.add("IntegerAdd", parts, f"{name}/sum")
    build.values[name] = QuantizedValue(output, np.array([grid.scale]), "I32", -size, size)


def _is_number(build: Builder, node: Node, place: int) -> bool:
    """Whether one number is added to (or taken from) sums in int32 that are of no stream."""
    value = node.inputs[1 - place]
    alone = build.real(node.inputs[place]).size == 1 and not (node.op == "Sub" and place == 0)
    return alone and build.plan.stream(value) is None and build.value(value).dtype == "I32"


def _shifted(build: Builder, node: Node) -> QuantizedValue:
    place = 0 if build.is_constant(node.inputs[0]) else 1
    name, number = node.inputs[1 - place], float(build.real(node.inputs[place]).reshape(-1)[0])
    number = -number if node.op == "Sub" else number
    x = build.value(name)
    steps = np.rint(number / x.scale)
    if np.abs(steps).max() >= 1 << 30:
        raise UnsupportedError("a constant addend far beyond the range of its sum", where=where(node), found=number)
    floor, ceil = (None if end is None else end + number for end in (x.floor, x.ceil))
    if steps.size == 1:
        return replace(x, zero=x.zero - int(steps[0]), floor=floor, ceil=ceil)
    whole = steps.astype(np.int64)
    if not _in_bias(build, name, x.name, whole):
        rank = len(build.shapes[name])
        shape = [-1 if i == x.axis % rank else 1 for i in range(rank)]
        codes = build.constant(whole.astype(np.int32).reshape(shape), f"{node.outputs[0]}/codes")
        x = replace(x, name=build.add("IntegerAdd", (x.name, codes), f"{node.outputs[0]}/sum"))
    return replace(x, floor=floor, ceil=ceil)


def _in_bias(build: Builder, name: str, sums: str, steps: Any) -> bool:
    """Adds to the bias of the layer that made sums, where nothing else takes them."""
    makers = {n.outputs[0]: n for n in build.graph.nodes}
    while build.plan.uses[name] == 1 and name in makers and makers[name].op in ("Relu", "Clip"):
        name = makers[name].inputs[0]
    layer = makers.get(name)
    place = next((i for i, n in enumerate(build.nodes) if n.outputs[0] == sums), None)
    if place is None or layer is None or layer.op not in LAYERS or build.plan.uses[name] != 1:
        return False
    producer = build.nodes[place]
    if producer.op not in ("IntegerConv", "IntegerLinear"):
        return False
    current = (
        as_value(build.constants[producer.inputs[2]]).astype(np.int64)
        if producer.inputs[2:3]
        else np.zeros(1, np.int64)
    )
    bias = current + steps
    if np.abs(bias).max() >= INT32:
        return False
    inputs = (*producer.inputs[:2], build.constant(bias.astype(np.int32), f"{sums}/bias"))
    build.nodes[place] = replace(producer, inputs=inputs)
    return True


def _addend(build: Builder, name: str) -> QuantizedValue:
    if build.plan.bits.narrow_sums and build.plan.knows(name):
        return build.narrow(name, zero_point=True)
    return build.value(name)


def _fine(build: Builder, node: Node, values: list[QuantizedValue]) -> Grid:
    """A scale at which every addend has 20 bits."""
    sizes = []
    for x, operand in zip(values, [n for n in node.inputs if not build.is_constant(n)], strict=True):
        if x.is_codes:
            sizes.append(max(x.hi - x.zero, x.zero - x.lo) * float(x.scale[0]))
        elif build.plan.knows(operand):
            grid = build.plan.grid(operand, 16)
            sizes.append(max(grid.hi - grid.zero, grid.zero - grid.lo) * grid.scale)
        else:
            sizes.append(build.plan.largest_magnitude(operand))
    constants = [float(np.abs(build.real(n)).max(initial=0)) for n in node.inputs if build.is_constant(n)]
    return fine_grid(max(*sizes, *constants, 0.0))


def _constant_codes(node: Node, real: Float64, scale: float) -> Any:
    codes = np.rint(real / scale)
    if np.abs(codes).max(initial=0) >= 1 << 30:
        raise UnsupportedError(
            "a constant addend far beyond the range of its sum", where=where(node), found=float(np.abs(real).max())
        )
    return codes.astype(np.int32)


def negated(build: Builder, x: str, name: str) -> str:
    """-x."""
    return build.add("IntegerMul", (x, build.constant(np.array([-1], np.int32), "minus")), f"{name}/negated")


def multiply(build: Builder, node: Node) -> None:
    """Mul of two values, or of a value and a constant; Div by a constant."""
    a, b = node.inputs
    if node.op == "Mul" and build.is_constant(a):
        a, b = b, a
    name = node.outputs[0]
    if not build.is_constant(b):
        if node.op == "Div":
            raise UnsupportedError("a quotient of two values", where=where(node))
        left, right = build.narrow(a), build.narrow(b)
        output = build.add(
            "IntegerMul", (left.name, right.name), f"{name}/product", a_zero=left.zero, b_zero=right.zero
        )
        build.values[name] = QuantizedValue.accumulator(output, left.scale * right.scale, -1)
        return
    factor = 1 / build.real(b) if node.op == "Div" else build.real(b)
    if factor.size == 1 and factor.reshape(-1)[0] > 0:
        build.values[name] = build.value(a).times(float(factor.reshape(-1)[0]))
        return
    x = build.codes(a)
    scale = float(np.abs(factor).max(initial=0)) / 32767 or 1.0
    codes = build.constant(np.rint(factor / scale).astype(np.int16), f"{b}/codes")
    output = build.add("IntegerMul", (x.name, codes), f"{name}/product", a_zero=x.zero)
    build.values[name] = QuantizedValue.accumulator(output, x.scale * scale, -1)
