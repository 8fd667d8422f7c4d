"""Limits, pooling and what only moves elements, as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder
from qdeploy.integer.intervals import where
from qdeploy.integer.quantized_value import QuantizedValue
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node


def relu(build: Builder, node: Node) -> None:
    """Relu: a lower limit for the next rescaling."""
    build.values[node.outputs[0]] = build.value(node.inputs[0]).limited(0.0, None)


def clip(build: Builder, node: Node) -> None:
    """Clip: limits for the next rescaling."""
    low, high = node.attrs.get("min"), node.attrs.get("max")
    build.values[node.outputs[0]] = build.value(node.inputs[0]).limited(low, high)  # type: ignore[arg-type]


def clip_by_value(build: Builder, node: Node) -> None:
    """Max and Min with a constant number."""
    value, limit = node.inputs if build.is_constant(node.inputs[-1]) else node.inputs[::-1]
    if len(node.inputs) != 2 or not build.is_constant(limit) or build.real(limit).size != 1:
        raise UnsupportedError(f"{node.op} of anything but a value and a number", where=where(node))
    number = float(build.real(limit).reshape(()))
    low, high = (number, None) if node.op == "Max" else (None, number)
    build.values[node.outputs[0]] = build.value(value).limited(low, high)


def max_pool(build: Builder, node: Node) -> None:
    """MaxPool over codes."""
    x = build.codes(node.inputs[0])
    build.values[node.outputs[0]] = _renamed(x, build.add("MaxPool", (x.name,), node.outputs[0], **node.attrs))


def average_pool(build: Builder, node: Node) -> None:
    """AveragePool, halves away from zero; padding that counts is added before."""
    attrs = dict(node.attrs)
    x = build.codes(node.inputs[0])
    counted, rank = attrs.pop("count_include_pad", 0), len(attrs["kernel_shape"])  # type: ignore[arg-type]
    if attrs.pop("ceil_mode", 0) or any(n != 1 for n in attrs.pop("dilations", [])):  # type: ignore[union-attr]
        raise UnsupportedError("an average pooling with ceil_mode or dilations", where=where(node))
    if counted and attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("an average pooling that counts automatic padding", where=where(node))
    pads: Any = attrs.get("pads", [0] * 2 * rank)
    if counted and any(pads):
        every = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
        x = _padded(build, x, build.constant(every, "pads"), x.zero, node.outputs[0])
        attrs["pads"] = [0] * 2 * rank
    output = build.add("IntegerAveragePool", (x.name,), node.outputs[0], rounding="half_away", **attrs)
    build.values[node.outputs[0]] = _renamed(x, output)


def mean(build: Builder, node: Node) -> None:
    """ReduceMean and GlobalAveragePool: the sum, at a scale that is divided by how many there are."""
    x, shape = build.codes(node.inputs[0]), build.shapes[node.inputs[0]]
    declared: Any = node.attrs.get("axes") or list(range(2 if node.op == "GlobalAveragePool" else 0, len(shape)))
    axes = sorted(axis % len(shape) for axis in declared)
    counts: list[Any] = [shape[axis] for axis in axes]
    if not all(isinstance(n, int) and n > 0 for n in counts):
        raise UnsupportedError("a mean over an axis of free extent", where=where(node), found=list(shape))
    count = int(np.prod(counts, dtype=np.int64))
    keep = 1 if node.op == "GlobalAveragePool" else node.attrs.get("keepdims", 1)
    output = build.add("IntegerSum", (x.name,), f"{node.outputs[0]}/sum", axes=axes, keepdims=keep)
    build.values[node.outputs[0]] = QuantizedValue.accumulator(output, x.scale / count, -1, x.zero * count)


def move(build: Builder, node: Node) -> None:
    """Reshape, Transpose, Flatten, Slice and their kind: the codes, moved."""
    if node.inputs[0] in build.integers:
        inputs = (build.integers[node.inputs[0]], *_constants(build, node))
        build.integers[node.outputs[0]] = build.add(node.op, inputs, node.outputs[0], **node.attrs)
        return
    x = build.codes(node.inputs[0])
    output = build.add(node.op, (x.name, *_constants(build, node)), node.outputs[0], **node.attrs)
    build.values[node.outputs[0]] = _renamed(x, output)


def split(build: Builder, node: Node) -> None:
    """Split: a Slice for each piece."""
    x, shape = build.codes(node.inputs[0]), build.shapes[node.inputs[0]]
    declared: Any = node.attrs.get("axis", 0)
    axis, start = declared % len(shape), 0
    for name in node.outputs:
        size = build.shapes[name][axis]
        if not isinstance(size, int):
            raise UnsupportedError("a piece of free extent", where=where(node), found=list(build.shapes[name]))
        output = build.add("Slice", (x.name,), name, starts=[start], ends=[start + size], axes=[axis], steps=[1])
        build.values[name] = _renamed(x, output)
        start += size


def pad(build: Builder, node: Node) -> None:
    """Pad with a constant, as the code of that number."""
    if node.attrs.get("mode", "constant") != "constant" or any(node.inputs[3:]):
        raise UnsupportedError("a padding that is not by a constant on all axes", where=where(node))
    x = build.codes(node.inputs[0])
    number = float(build.real(node.inputs[2]).reshape(())) if node.inputs[2:3] and node.inputs[2] else 0.0
    code = int(np.clip(np.rint(number / float(x.scale[0])) + x.zero, x.lo, x.hi))
    pads = _constants(build, Node(node.op, node.inputs[:2], node.outputs))[0]
    build.values[node.outputs[0]] = _padded(build, x, pads, code, node.outputs[0])


def concat(build: Builder, node: Node) -> None:
    """Concat: every part on one grid, that of the result."""
    parts = [build.value(name) for name in node.inputs]
    grids = {x.grid for x in parts if x.is_codes}
    name = node.outputs[0]
    alike = len(grids) == 1 and all(x.is_codes for x in parts) and name not in build.plan.source
    if not alike:
        grid = build.plan.stream(name) or build.plan.grid(name, 8)
        parts = [build.requantize(x, grid, part) for x, part in zip(parts, node.inputs, strict=True)]
    output = build.add("Concat", [x.name for x in parts], name, axis=node.attrs["axis"])
    lo, hi = min(x.lo for x in parts), max(x.hi for x in parts)
    build.values[name] = QuantizedValue(output, parts[0].scale, parts[0].dtype, lo, hi, parts[0].zero)


def _padded(build: Builder, x: QuantizedValue, pads: str, code: int, name: str) -> QuantizedValue:
    fill = build.constant(np.array(code, element_dtype(x.dtype)), "fill")
    return _renamed(x, build.add("Pad", (x.name, pads, fill), name, mode="constant"))


def _constants(build: Builder, node: Node) -> tuple[str, ...]:
    """The inputs behind the first: integers of the source (a shape, pads, indices)."""
    names = []
    for name in node.inputs[1:]:
        array = build.array(name) if name else None
        if name and (array is None or array.dtype.kind not in "iu"):
            raise UnsupportedError("a shape or index that is not constant", where=where(node), found=name)
        names.append("" if array is None else build.constant(array, name))
    return tuple(names)


def _renamed(x: QuantizedValue, name: str) -> QuantizedValue:
    return QuantizedValue(name, x.scale, x.dtype, x.lo, x.hi, x.zero, x.axis)
