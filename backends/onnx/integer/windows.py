"""Windows of integer images, exactly: sums and maxima as slices with steps, one axis after the other.

ONNX Runtime's AveragePool is of floats, and its MaxPool of at most 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.backends.onnx.integer import shifts
from qdeploy.backends.onnx.integer.lowering import IntegerLowering
from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.conv import borders


def window_borders(low: IntegerLowering, node: Node) -> list[tuple[int, int]]:
    """What is added on both sides of each axis of an image."""
    attrs: Any = node.attrs
    kernel = attrs["kernel_shape"]
    ones = [1] * len(kernel)
    shape = low.shapes[node.inputs[0]]
    space = shape[2:] if attrs.get("layout", "NCHW") == "NCHW" else shape[1:-1]
    automatic = attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if automatic and not all(isinstance(n, int) and n > 0 for n in space):
        raise low.refuse(node, "automatic padding of an image of free extent", list(shape))
    sizes = [int(n) for n in space] if automatic else ones
    dilations, strides = attrs.get("dilations") or ones, attrs.get("strides") or ones
    pairs = borders(sizes, kernel, strides, dilations, attrs.get("auto_pad", "NOTSET"), attrs.get("pads"))
    return [(int(a), int(z)) for a, z in pairs]


def reduced(low: IntegerLowering, node: Node, x: str, op: str, fill: int) -> str:
    """An int32 image, reduced by an operator of two arguments over each window."""
    attrs: Any = node.attrs
    b, kernel = low.builder, attrs["kernel_shape"]
    strides, dilations = ([*(attrs.get(key) or [1] * len(kernel))] for key in ("strides", "dilations"))
    border = window_borders(low, node)
    first = 2 if attrs.get("layout", "NCHW") == "NCHW" else 1
    axes = list(range(first, first + len(kernel)))
    if any(n for pair in border for n in pair):
        pads = [pair[i] for i in (0, 1) for pair in border]
        x = b.node("Pad", [x, b.tensor(pads, "int64"), b.tensor(fill, "int32"), b.tensor(axes, "int64")])
    for axis, size, stride, step in zip(axes, kernel, strides, dilations, strict=True):
        x = _along(b, x, axis, (int(size), int(stride), int(step)), op)
    return x


def _along(b: GraphBuilder, x: str, axis: int, window: tuple[int, int, int], op: str) -> str:
    size, stride, step = window
    span, combined = (size - 1) * step, ""
    for place in range(0, span + 1, step):
        end = place - span if place < span else np.iinfo(np.int64).max
        ends = [b.tensor([n], "int64") for n in (place, end, axis, stride)]
        part = b.node("Slice", [x, *ends])
        combined = b.node(op, [combined, part]) if combined else part
    return combined


def average_pool(low: IntegerLowering, node: Node) -> None:
    """IntegerAveragePool: the sum of each window, over how much of it is inside of the image."""
    attrs: Any = node.attrs
    b, name = low.builder, node.outputs[0]
    count: int | str = int(np.prod(attrs["kernel_shape"]))
    if any(n for pair in window_borders(low, node) for n in pair):
        channel = 1 if attrs.get("layout", "NCHW") == "NCHW" else low.rank(name) - 1
        spot = [b.tensor(n, "int64") for n in ([0, 0], [1, 1], [0, channel])]
        inside = b.node("Mul", [b.node("Slice", [low.wide(node.inputs[0]), *spot]), b.tensor(0, "int32")])
        inside = b.node("Add", [inside, b.tensor(1, "int32")])
        count = low.cast(reduced(low, node, inside, "Add", 0), "I64")
    total = low.cast(reduced(low, node, low.wide(node.inputs[0]), "Add", 0), "I64")
    mean = shifts.divided(low.builder, total, count, attrs.get("rounding", "floor"))
    mean = shifts.limited(b, mean, attrs.get("lo"), attrs.get("hi"))
    low.give(name, low.cast(mean, low.types[name], name))
