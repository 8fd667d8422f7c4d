"""Planning of nodes that move elements, pool them, or reduce over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qdeploy.backends.tvm.packing import padded
from qdeploy.backends.tvm.planner import Open, Place, Planner, integer, integers
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.integer_arithmetic import half_up
from qdeploy.ir.ops.conv import borders
from qdeploy.ir.ops.tflite import exp_negative


def plan_identity(planner: Planner, node: Node) -> None:
    """Identity."""
    step = planner.open(node.inputs[0])
    planner.set(node.outputs[0], step or planner.place(node.inputs[0]))


def plan_reshape(planner: Planner, node: Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: a view, of what lies without padding or keeps its last axis."""
    shape = planner.shapes[node.outputs[0]]
    source = planner.place(node.inputs[0])
    stored = planner.operand(source).shape
    if (
        source.last
        and math.prod(source.shape[2:]) == 1
        and len(shape) >= 2
        and shape[1] == source.shape[1]
        and (math.prod(shape[2:]) == 1)
    ):  # [N, C, 1, 1] to [N, C]: channels stay last
        place = Place(planner.view(source.buffer, (shape[0], *shape[2:], stored[-1])), shape, len(shape) > 2)
    elif not source.last and shape and source.shape and shape[-1] == source.shape[-1]:
        place = Place(planner.view(source.buffer, (*shape[:-1], stored[-1])), shape)
    else:
        place = Place(planner.view(planner.plain(node.inputs[0]).buffer, shape), shape)
    planner.set(node.outputs[0], place)


def plan_transpose(planner: Planner, node: Node) -> None:
    """Transpose; of an image, between channels first and last, it moves nothing."""
    origin = planner.place(node.inputs[0])
    rank, shape = len(origin.shape), planner.shapes[node.outputs[0]]
    perm = [int(n) % rank for n in node.attrs.get("perm") or range(rank - 1, -1, -1)]  # type: ignore[union-attr]
    if origin.last and perm == [0, *range(2, rank), 1]:
        place = Place(origin.buffer, shape)
    elif not origin.last and rank > 2 and perm == [0, rank - 1, *range(1, rank - 1)]:
        place = Place(origin.buffer, shape, True)
    else:
        source = planner.plain(node.inputs[0])
        dtype = planner.operand(source).dtype
        place = Place(planner.step("transpose", [source.buffer], {"perm": perm}, shape, dtype), shape)
    planner.set(node.outputs[0], place)


def plan_concat(planner: Planner, node: Node) -> None:
    """Concat; of images over their channels, channels stay last."""
    shape = planner.shapes[node.outputs[0]]
    axis = integer(node, "axis") % len(shape)
    places = [planner.place(name) for name in node.inputs]
    last = all(place.last for place in places)
    if not last:
        places = [planner.plain(name) for name in node.inputs]
    joined = Place("", shape, last)
    along = joined.axis(axis)
    attrs = {"axis": along, "extents": [place.stored[along] for place in places]}
    stored = list(joined.stored)
    if last:
        widest = max(planner.operand(place).shape[-1] for place in places)
        stored[-1] = padded(stored[-1], 4) if along == len(stored) - 1 else widest
    dtype = planner.dtypes[node.outputs[0]]
    buffer = planner.step("concat", [place.buffer for place in places], attrs, tuple(stored), dtype)
    planner.set(node.outputs[0], Place(buffer, shape, last))


def plan_slice(planner: Planner, node: Node) -> None:
    """Slice with attributes."""
    source, shape = planner.plain(node.inputs[0]), planner.shapes[node.outputs[0]]
    starts = integers(node, "starts")
    axes, steps = integers(node, "axes") or list(range(len(starts))), integers(node, "steps") or [1] * len(starts)
    begin, pace = [0] * len(shape), [1] * len(shape)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        extent = source.shape[axis]
        begin[axis] = min(max(start + extent if start < 0 else start, 0), extent - (step < 0))
        pace[axis] = step
    attrs = {"begin": begin, "pace": pace}
    dtype = planner.operand(source).dtype
    planner.set(node.outputs[0], Place(planner.step("slice", [source.buffer], attrs, shape, dtype), shape))


def plan_pad(planner: Planner, node: Node) -> None:
    """Pad with a constant."""
    if node.attrs.get("mode", "constant") != "constant":
        raise UnsupportedError("padding of this mode in an integer graph", found=node.attrs["mode"], allowed="constant")
    source, shape = planner.plain(node.inputs[0]), planner.shapes[node.outputs[0]]
    pads, fill = _input(planner, node, 1, "pads"), _input(planner, node, 2, "value")
    axes = _input(planner, node, 3, "axes") or list(range(len(shape)))
    before = [0] * len(shape)
    for axis, n in zip(axes, pads[: len(axes)], strict=True):
        before[axis] = n
    attrs = {"before": before, "fill": fill[0] if fill else 0}
    dtype = planner.operand(source).dtype
    planner.set(node.outputs[0], Place(planner.step("pad", [source.buffer], attrs, shape, dtype), shape))


def plan_gather(planner: Planner, node: Node) -> None:
    """Gather: rows of a table, selected by integers that the interpreter would have refused outside of it."""
    data, indices = (planner.plain(name) for name in node.inputs)
    shape = planner.shapes[node.outputs[0]]
    attrs = {"axis": integer(node, "axis") % len(data.shape)}
    dtype = planner.operand(data).dtype
    buffer = planner.step("gather", [data.buffer, indices.buffer], attrs, shape, dtype)
    planner.set(node.outputs[0], Place(buffer, shape))


def plan_pool(planner: Planner, node: Node) -> None:
    """MaxPool and IntegerAveragePool; over one axis, of an image of one row."""
    last = node.attrs.get("layout", "NCHW") == "NCHW"
    x = planner.channels_last(node.inputs[0]) if last else planner.place(node.inputs[0])
    place = Place("", planner.shapes[node.outputs[0]], last)
    kernel = integers(node, "kernel_shape")
    if len(kernel) not in (1, 2):
        raise UnsupportedError(
            "the TVM backend pools over one or two axes", where=node.name, found=f"{len(kernel)} axes"
        )
    row = [1] * (2 - len(kernel))
    strides, dilations = (integers(node, name) or [1] * len(kernel) for name in ("strides", "dilations"))
    border = borders(
        x.stored[1:-1],
        kernel,
        strides,
        dilations,
        str(node.attrs.get("auto_pad", "NOTSET")),
        node.attrs.get("pads"),  # type: ignore[arg-type]
    )
    attrs: dict[str, Any] = {
        "kernel": row + kernel,
        "strides": row + strides,
        "dilations": row + dilations,
        "before": [0] * len(row) + [b for b, _ in border],
        "rounding": node.attrs.get("rounding", "floor"),
        "lo": node.attrs.get("lo"),
        "hi": node.attrs.get("hi"),
    }
    buffer = planner.operand(x)
    image = planner.view(x.buffer, (buffer.shape[0], *row, *buffer.shape[1:]))
    n, *positions, _ = place.stored
    shape, final = (n, *row, *positions, buffer.shape[-1]), (n, *positions, buffer.shape[-1])
    kind = "max_pool" if node.op == "MaxPool" else "average_pool"
    planner.set(node.outputs[0], Open(kind, [image], attrs, shape, place, final, buffer.dtype))


def plan_reduce(planner: Planner, node: Node) -> None:
    """IntegerSum and IntegerMean."""
    source, shape = planner.place(node.inputs[0]), planner.shapes[node.outputs[0]]
    rank, keep = len(source.shape), bool(integer(node, "keepdims", 1))
    axes = sorted(int(axis) % rank for axis in node.attrs["axes"])  # type: ignore[union-attr]
    if source.last and axes != list(range(2, rank)):
        source = planner.plain(node.inputs[0])
    if rank - 1 in axes and not source.last:
        source = planner.plain(node.inputs[0])
    buffer = planner.operand(source)
    over = [source.axis(axis) for axis in axes]
    kept = [1 if i in over else n for i, n in enumerate(buffer.shape) if keep or i not in over]
    dtype = "int32" if node.op == "IntegerSum" else buffer.dtype
    attrs = {
        "axes": sorted(over),
        "keepdims": keep,
        "mean": node.op == "IntegerMean",
        "rounding": node.attrs.get("rounding", "floor"),
    }
    place = Place("", shape, source.last and keep)
    planner.set(node.outputs[0], Open("reduce", [source.buffer], attrs, tuple(kept), place, tuple(kept), dtype))


def plan_rows(planner: Planner, node: Node) -> None:
    """Softmax and normalisations: functions of whole rows."""
    x, shape = planner.plain(node.inputs[0]), planner.shapes[node.outputs[0]]
    if integer(node, "axis", -1) % len(shape) != len(shape) - 1:
        raise UnsupportedError("a function of rows over another axis than the last", where=node.name, found=node.op)
    present = [bool(name) for name in node.inputs[1:]]
    inputs = [x.buffer, *(planner.plain(name).buffer for name in node.inputs[1:] if name)]
    attrs = {**node.attrs, "present": present}
    place = Place("", shape)
    step = Open(node.op, inputs, attrs, shape, place, shape, planner.dtypes[node.outputs[0]])
    planner.set(node.outputs[0], step)


def plan_tflite_softmax(planner: Planner, node: Node) -> None:
    """TfliteSoftmax: the exponential of every difference of two int8 becomes a table."""
    x, shape = planner.plain(node.inputs[0]), planner.shapes[node.outputs[0]]
    if planner.operand(x).dtype != "int8":
        raise UnsupportedError("a TFLite softmax of this type", where=node.name, found=planner.operand(x).dtype)
    below = -np.arange(256, dtype=np.int64)
    counts = below >= integer(node, "diff_min")
    scaled = np.where(counts, below, 0) << integer(node, "left_shift")
    scaled = half_up(scaled * integer(node, "multiplier"), np.array(31))
    powers = np.where(counts, exp_negative(np.maximum(scaled, -(1 << 31))), 0).astype(np.int32)
    inputs = [x.buffer, planner.data(powers)]
    planner.set(node.outputs[0], Open(node.op, inputs, {}, shape, Place("", shape), shape, "int8"))


def _input(planner: Planner, node: Node, place: int, name: str) -> list[int]:
    """A list of integers that is an input or an attribute."""
    if len(node.inputs) > place and node.inputs[place]:
        array = planner.constant(node.inputs[place])
        if array is None:
            raise UnsupportedError("padding that the network computes", where=node.name)
        return [int(n) for n in array.ravel()]
    attribute = node.attrs.get(name)
    return [int(n) for n in (attribute if isinstance(attribute, list) else [] if attribute is None else [attribute])]  # type: ignore[arg-type]
