"""Rows of the table of ops: comparisons, selection and the arithmetic of shapes that exported networks carry.

They take their arguments as ONNX does: a shape that is computed by other nodes is an input here, and so is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.row import ONNX, Op
from qdeploy.ir.tensor import Array

MAX_ELEMENTS = 1 << 28
"""Of a value whose shape the graph computes: more is an attack on the memory, or a mistake."""

_PAD_MODES = ("constant", "reflect", "edge", "wrap")


def bounded(shape: Sequence[int]) -> list[int]:
    """Returns a computed shape; UnsupportedError where it is negative or absurdly large."""
    sizes, count = [int(n) for n in shape], 1
    for n in sizes:
        count *= n
    if any(n < 0 for n in sizes) or count > MAX_ELEMENTS:
        raise UnsupportedError("a computed shape is out of bounds", found=sizes, allowed=f"{MAX_ELEMENTS} elements")
    return sizes


def expand(x: Array, shape: Array) -> Array:
    """Broadcasts in both directions."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(bounded(shape.tolist()))))


def constant_of_shape(shape: Array, *, value: float = 0.0, dtype: str = "F32") -> Array:
    """A tensor of one number."""
    return np.full(bounded(shape.tolist()), value, element_dtype(dtype))


def pad(
    x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """Adds to (or, where negative, takes from) both ends of axes."""
    if mode not in _PAD_MODES:
        raise UnsupportedError("unknown way of padding", found=mode, allowed=", ".join(_PAD_MODES))
    listed = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
    half = len(listed)
    ends = {axis: (int(pads[i]), int(pads[i + half])) for i, axis in enumerate(listed)}
    spans = [ends.get(axis, (0, 0)) for axis in range(x.ndim)]
    bounded([n + low + high for n, (low, high) in zip(x.shape, spans, strict=True)])
    kept = tuple(slice(max(0, -low), n - max(0, -high)) for n, (low, high) in zip(x.shape, spans, strict=True))
    added = [(max(0, low), max(0, high)) for low, high in spans]
    if mode != "constant":
        return np.pad(x[kept], added, mode=mode)  # type: ignore[call-overload,no-any-return]
    fill = x.dtype.type(0) if value is None else value.reshape(()).astype(x.dtype)
    return np.pad(x[kept], added, constant_values=fill)


def split(x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int | None = None) -> tuple[Array, ...]:
    """Cuts an axis into pieces of given sizes, or of equal ones (the last may be shorter)."""
    if sizes is None:
        step = -(-x.shape[axis] // (num_outputs or 1))
        return tuple(np.split(x, list(range(step, x.shape[axis], step)), axis=axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def tile(x: Array, repeats: Array) -> Array:
    """Repeats along each axis."""
    bounded([n * int(r) for n, r in zip(x.shape, repeats, strict=True)])
    return np.tile(x, tuple(int(r) for r in repeats))


def flatten(x: Array, *, axis: int = 1) -> Any:
    """Two axes: everything before `axis`, and the rest."""
    rows = int(np.prod(x.shape[: axis if axis >= 0 else x.ndim + axis], dtype=np.int64))
    columns = x.size // rows if rows else 0
    matrix: Array = x.reshape(rows, columns)
    return matrix


def arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The index of the greatest element, the first (or last) of equal ones."""
    if select_last_index:
        return np.asarray(x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis, keepdims=bool(keepdims)))
    return np.asarray(np.argmax(x, axis=axis, keepdims=bool(keepdims)))


def reducer(function: Any) -> Any:
    """A reduction over axes that are an attribute; without it, over all, or (noop_with_empty_axes) over none."""

    def reduce(x: Array, *, axes: Sequence[int] = (), keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        if not axes and noop_with_empty_axes:
            return x
        return np.asarray(function(x, axis=tuple(axes) or None, keepdims=bool(keepdims)))

    return reduce


def extreme(function: Any, greatest: bool) -> Any:
    """np.max or np.min; of no elements the number that changes nothing, as ONNX has it since version 20."""

    def reduce(x: Array, *, axis: Any, keepdims: bool) -> Any:
        return function(x, axis=axis, keepdims=keepdims, **({} if x.size else {"initial": _last(x.dtype, greatest)}))

    return reduce


def _last(dtype: np.dtype[Any], least: bool) -> Any:
    """The least number of a type, or the greatest: an infinity where it has one."""
    if dtype.kind == "b":
        return not least
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if least else np.iinfo(dtype).max
    return dtype.type(-np.inf if least else np.inf)


def gather_elements(x: Array, index: Array, *, axis: int = 0) -> Array:
    """The elements of x at `index` along one axis; negative ones count from the end."""
    extent = x.shape[axis]
    if index.size and not (-extent <= int(index.min()) and int(index.max()) < extent):
        raise BadFileError("an index lies outside of the axis", found=int(index.max()), allowed=f"below {extent}")
    along = axis % x.ndim
    inner = tuple(slice(0, n) for place, n in enumerate(index.shape) if place != along)
    cut = x[(*inner[:along], slice(None), *inner[along:])]
    return np.take_along_axis(cut, np.where(index < 0, index + extent, index), axis=axis)


SHAPE_ROWS: tuple[Op, ...] = (
    Op("Expand", ONNX, "x broadcast with a shape", expand, moves=True),
    Op("ConstantOfShape", ONNX, "one number everywhere", constant_of_shape),
    Op("Pad", ONNX, "both ends of axes lengthened or cut", pad, keeps_scale=True, interval=intervals.pad),
    Op("Split", ONNX, "an axis cut into pieces", split, moves=True, keeps_scale=True, interval=intervals.same),
    Op(
        "GatherElements",
        ONNX,
        "along an axis, the element that an index of the same rank names",
        gather_elements,
        moves=True,
    ),
    Op("Tile", ONNX, "repeats along each axis", tile, moves=True),
    Op(
        "Flatten",
        ONNX,
        "all axes before `axis` as one, and the others",
        flatten,
        moves=True,
        keeps_scale=True,
        interval=intervals.same,
    ),
    Op("Size", ONNX, "I64: the number of elements", lambda x: np.array(x.size, np.int64)),
    Op("Where", ONNX, "a where the condition holds, else b", lambda condition, a, b: np.where(condition, a, b)),
    Op("Equal", ONNX, "a == b", lambda a, b: a == b),
    Op("Less", ONNX, "a < b", lambda a, b: a < b),
    Op("LessOrEqual", ONNX, "a <= b", lambda a, b: a <= b),
    Op("Greater", ONNX, "a > b", lambda a, b: a > b),
    Op("GreaterOrEqual", ONNX, "a >= b", lambda a, b: a >= b),
    Op("Not", ONNX, "not x", lambda x: ~x),
    Op("And", ONNX, "a and b", lambda a, b: a & b),
    Op("Or", ONNX, "a or b", lambda a, b: a | b),
    Op("ArgMax", ONNX, "I64: where the greatest element of an axis is", arg_max),
    Op("ReduceMax", ONNX, "the greatest over axes", reducer(extreme(np.max, True)), constants=("axes",)),
    Op("ReduceMin", ONNX, "the smallest over axes", reducer(extreme(np.min, False)), constants=("axes",)),
    Op("ReduceProd", ONNX, "the product over axes", reducer(np.prod), constants=("axes",)),
)
