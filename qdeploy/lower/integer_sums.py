"""Sums and products of values, as integers.

Addends are brought to one scale: that of their stream (16 bits), or, where the source gives scales of its own, one so
fine that the rounding of the addends vanishes beside that of the sum: 2^-20 of the greatest addend.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.lower.fixed import Fixed, Float64, Grid
from qdeploy.lower.integer_builder import Builder
from qdeploy.lower.ranges import where

_FINE = 20


def add(build: Builder, node: Node) -> None:
    """Add and Sub, of two values or of a value and a constant."""
    constant = [i for i, name in enumerate(node.inputs) if build.is_constant(name)]
    if len(node.inputs) != 2 or len(constant) == 2:
        raise UnsupportedError("a sum of anything but two values", where=where(node), found=len(node.inputs))
    signs = (1, -1 if node.op == "Sub" else 1)
    name, values = node.outputs[0], [None if i in constant else _addend(build, n) for i, n in enumerate(node.inputs)]
    grid = build.plan.stream(name) or _fine(build, node, [x for x in values if x is not None])
    parts: list[str] = []
    size = 0
    for x, given, sign in zip(values, node.inputs, signs, strict=True):
        if x is None:
            codes = _constant_codes(node, build.real(given) * sign, grid.scale)
            parts.append(build.constant(codes, f"{given}/codes"))
            size += int(np.abs(codes.astype(np.int64)).max(initial=0))
        else:
            part = build.requantize(x, grid, given)
            parts.append(part.name if sign > 0 else negated(build, part.name, given))
            size += max(abs(part.lo), abs(part.hi))
    made = build.add("IntegerAdd", parts, f"{name}/sum")
    build.values[name] = Fixed(made, np.array([grid.scale]), "I32", -size, size)


def _addend(build: Builder, name: str) -> Fixed:
    if build.plan.bits.narrow_sums and build.plan.knows(name):
        return build.narrow(name, zero_point=True)
    return build.value(name)


def _fine(build: Builder, node: Node, values: list[Fixed]) -> Grid:
    """A scale at which every addend has 20 bits."""
    sizes = []
    for x, given in zip(values, [n for n in node.inputs if not build.is_constant(n)], strict=True):
        if x.is_codes:
            sizes.append(max(x.hi - x.zero, x.zero - x.lo) * float(x.scale[0]))
        else:
            grid = build.plan.grid(given, 16)
            sizes.append(max(grid.hi - grid.zero, grid.zero - grid.lo) * grid.scale)
    constants = [np.abs(build.real(n)).max(initial=0) for n in node.inputs if build.is_constant(n)]
    scale = max(*sizes, *constants, 1e-30) / (1 << _FINE)
    return Grid(float(scale), 0, -(1 << _FINE + 1), 1 << _FINE + 1, "I32")


def _constant_codes(node: Node, real: Float64, scale: float) -> Any:
    codes = np.rint(real / scale)
    if np.abs(codes).max(initial=0) >= 1 << 30:
        raise UnsupportedError("a constant addend far beyond the range of its sum", where=where(node),
                               found=float(np.abs(real).max()))  # fmt: skip
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
        made = build.add("IntegerMul", (left.name, right.name), f"{name}/product", a_zero=left.zero, b_zero=right.zero)
        build.values[name] = Fixed.accumulator(made, left.scale * right.scale, -1)
        return
    factor = 1 / build.real(b) if node.op == "Div" else build.real(b)
    if factor.size == 1 and factor.reshape(-1)[0] > 0:
        build.values[name] = build.value(a).times(float(factor.reshape(-1)[0]))
        return
    x = build.codes(a)
    scale = float(np.abs(factor).max(initial=0)) / 32767 or 1.0
    codes = build.constant(np.rint(factor / scale).astype(np.int16), f"{b}/codes")
    made = build.add("IntegerMul", (x.name, codes), f"{name}/product", a_zero=x.zero)
    build.values[name] = Fixed.accumulator(made, x.scale * scale, -1)
