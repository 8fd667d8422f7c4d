"""Operators of float TFLite networks that move elements: slices, joins, selections by index.

STRIDED_SLICE has five masks, one bit per entry of begin, end and strides: begin and end that are not looked at, entries
that stand for all axes between (ellipsis), for a new axis, and for one index whose axis goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.float_network import FloatImporter, FloatNetwork
from qdeploy.formats.tflite.schema import Operator

_FAR = (1 << 63) - 1


def _strided_slice(network: FloatNetwork, op: Operator) -> None:
    begins, ends, steps = (network.listed(i) for i in op.inputs[1:4])
    if op.options.get("Offset"):
        ends = [begin + length for begin, length in zip(begins, ends, strict=True)]
    windows, reshaped = _windows(network, op, begins, ends, steps)
    name = network.names[op.outputs[0]]
    x = _sliced(network, network.last(op.inputs[0]), windows, f"{name}/slice" if reshaped else name, op.inputs[0])
    if reshaped:
        shape = list(network.shape(op.outputs[0]))
        if _keeps_first(op, windows) and shape[:1] == list(network.shape(op.inputs[0])[:1]):
            shape[0] = 0
        x = network.add("Reshape", (x,), name, shape=shape)
    elif x != name:
        network.add("Identity", (x,), name)
    network.is_given(op.outputs[0], name)


def _windows(
    network: FloatNetwork, op: Operator, begins: list[int], ends: list[int], steps: list[int]
) -> tuple[list[tuple[int, int, int, int]], bool]:
    """(axis, begin, end, step) of each axis that is cut, and whether axes come or go."""
    o, rank = op.options, len(network.shape(op.inputs[0]))
    new, shrunk, ellipsis = (int(o.get(f"{key}Mask", 0)) for key in ("NewAxis", "ShrinkAxis", "Ellipsis"))
    entries = range(len(begins))
    added = sum(1 for i in entries if new >> i & 1 and not ellipsis >> i & 1)
    windows, axis = [], 0
    for i in entries:
        if ellipsis >> i & 1:
            axis += rank - (len(begins) - added - 1)
        elif not new >> i & 1:
            begin, end, step = begins[i], ends[i], steps[i]
            if shrunk >> i & 1:
                end, step = (begin + 1) or _FAR, 1
            else:
                begin = (0 if step > 0 else _FAR) if int(o.get("BeginMask", 0)) >> i & 1 else begin
                end = (_FAR if step > 0 else -_FAR) if int(o.get("EndMask", 0)) >> i & 1 else end
            windows.append((axis, begin, end, step))
            axis += 1
    if axis > rank or not all(steps):
        raise BadFileError("a slice that does not fit its tensor", where=network.where(op.inputs[0]), found=begins)
    return windows, bool(new or shrunk)


def _keeps_first(op: Operator, windows: list[tuple[int, int, int, int]]) -> bool:
    """Whether the first axis of the result is that of the source, as it is."""
    changed = int(op.options.get("NewAxisMask", 0)) | int(op.options.get("ShrinkAxisMask", 0))
    return not changed & 1 and all(axis for axis, *_ in windows)


def _sliced(network: FloatNetwork, x: str, windows: list[tuple[int, int, int, int]], name: str, index: int) -> str:
    """X cut along axes, without those of which everything is kept; x itself where that are all."""
    shape = network.shape(index)
    cut = [w for w in windows if w[3] != 1 or w[1] not in (0, -shape[w[0]]) or w[2] < shape[w[0]]]
    windows[:] = cut
    if not cut:
        return x
    axes, starts, ends, steps = (list(part) for part in zip(*cut, strict=True))
    attrs: dict[str, Any] = {"starts": starts, "ends": ends, "axes": axes}
    return network.add("Slice", (x,), name, **attrs, **({} if set(steps) == {1} else {"steps": steps}))


def _slice(network: FloatNetwork, op: Operator) -> None:
    """SLICE: where it begins, and how much; -1: all that is left."""
    begins, sizes = (network.listed(i) for i in op.inputs[1:3])
    spans = enumerate(zip(begins, sizes, strict=True))
    windows = [(axis, begin, _FAR if size < 0 else begin + size, 1) for axis, (begin, size) in spans]
    name = network.names[op.outputs[0]]
    x = _sliced(network, network.last(op.inputs[0]), windows, name, op.inputs[0])
    if x != name:
        network.add("Identity", (x,), name)
    network.is_given(op.outputs[0], name)


def _reverse(network: FloatNetwork, op: Operator) -> None:
    axes = [network.axis(op.inputs[0], axis) for axis in network.listed(op.inputs[1])]
    ends = {"starts": [-1] * len(axes), "ends": [-_FAR] * len(axes), "steps": [-1] * len(axes)}
    network.give(op, "Slice", (network.last(op.inputs[0]),), False, axes=axes, **ends)


def _split(network: FloatNetwork, op: Operator) -> None:
    """SPLIT: axis, x."""
    axis = network.axis(op.inputs[1], network.number(op.inputs[0]))
    _parts(network, op, op.inputs[1], axis, [network.shape(i)[axis] for i in op.outputs])


def _split_v(network: FloatNetwork, op: Operator) -> None:
    """SPLIT_V: x, extents of which one may be -1, axis."""
    axis = network.axis(op.inputs[0], network.number(op.inputs[2]))
    _parts(network, op, op.inputs[0], axis, [network.shape(i)[axis] for i in op.outputs])


def _parts(network: FloatNetwork, op: Operator, source: int, axis: int, sizes: list[int]) -> None:
    if sum(sizes) != network.shape(source)[axis]:
        raise BadFileError("parts that do not make up the whole", where=network.where(source), found=sizes)
    lengths = network.constant(np.array(sizes, np.int64), f"{network.names[op.outputs[0]]}/sizes")
    names = [network.names[i] for i in op.outputs]
    network.add_several("Split", (network.last(source), lengths), names, axis=axis)
    for index, name in zip(op.outputs, names, strict=True):
        network.is_given(index, name)


def _pack(network: FloatNetwork, op: Operator) -> None:
    axis = int(op.options["Axis"]) % len(network.shape(op.outputs[0]))
    parts = [
        network.step("Unsqueeze", (network.last(i),), op, f"part{place}", axes=[axis])
        for place, i in enumerate(op.inputs)
    ]
    network.give(op, "Concat", parts, False, axis=axis)


def _unpack(network: FloatNetwork, op: Operator) -> None:
    axis = network.axis(op.inputs[0], int(op.options["Axis"]))
    for place, index in enumerate(op.outputs):
        only = {"starts": [place], "ends": [place + 1], "axes": [axis]}
        name = network.names[index]
        one = network.add("Slice", (network.last(op.inputs[0]),), f"{name}/entry", **only)
        network.is_given(index, network.add("Squeeze", (one,), name, axes=[axis]))


def _gather(network: FloatNetwork, op: Operator) -> None:
    if op.options.get("BatchDims"):
        raise UnsupportedError("a selection along common axes", where=network.where(op.outputs[0]))
    axis = network.axis(op.inputs[0], int(op.options.get("Axis", 0)))
    network.give(op, "Gather", [network.last(i) for i in op.inputs], False, axis=axis)


def _gather_nd(network: FloatNetwork, op: Operator) -> None:
    data, indices = (network.last(i) for i in op.inputs)
    wide = network.step("Cast", (indices,), op, "indices", to="I64")
    network.give(op, "GatherND", (data, wide), False)


def _embedding_lookup(network: FloatNetwork, op: Operator) -> None:
    """EMBEDDING_LOOKUP: indices, table."""
    network.give(op, "Gather", (network.last(op.inputs[1]), network.last(op.inputs[0])), False, axis=0)


def _tile(network: FloatNetwork, op: Operator) -> None:
    repeats = np.array(network.listed(op.inputs[1]), np.int64)
    wide = network.constant(repeats, f"{network.names[op.outputs[0]]}/repeats")
    network.give(op, "Tile", (network.last(op.inputs[0]), wide), False)


def _broadcast(network: FloatNetwork, op: Operator) -> None:
    shape = np.array(network.listed(op.inputs[1]), np.int64)
    wide = network.constant(shape, f"{network.names[op.outputs[0]]}/shape")
    network.give(op, "Expand", (network.last(op.inputs[0]), wide), False)


def _shape(network: FloatNetwork, op: Operator) -> None:
    lengths = network.step("Shape", (network.last(op.inputs[0]),), op, "extents")
    network.give(op, "Cast", (lengths,), False, to=network.dtype(op.outputs[0]))


MOVES: dict[str, FloatImporter] = {
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "REVERSE_V2": _reverse,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "PACK": _pack,
    "UNPACK": _unpack,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "EMBEDDING_LOOKUP": _embedding_lookup,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast,
    "SHAPE": _shape,
}
"""What operators that move elements become."""
