"""Rows of the table of ops: elements that are chosen by indices, and indices that are found by values."""

from __future__ import annotations

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.row import ONNX, Op
from qdeploy.ir.tensor import Array


def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Slices of data at the places that the last axis of indices names, behind `batch_dims` common axes."""
    batch, depth = data.shape[:batch_dims], indices.shape[-1]
    limits = np.array(data.shape[batch_dims : batch_dims + depth], np.int64)
    if indices.size and not ((indices >= -limits) & (indices < limits)).all():
        raise BadArgumentError("an index lies outside of the tensor that it selects from", allowed=str(limits))
    places = np.moveaxis(indices, -1, 0)  # [depth, *batch, *rest]
    rest = places.ndim - 1 - batch_dims
    common = [
        np.arange(n).reshape(*[1] * axis, n, *[1] * (batch_dims - axis - 1 + rest)) for axis, n in enumerate(batch)
    ]
    return np.asarray(data[(*common, *places)])


def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Of every place of indices, the element of data at that index of an axis."""
    extent = data.shape[axis]
    if indices.size and not ((indices >= -extent) & (indices < extent)).all():
        raise BadArgumentError("an index lies outside of the tensor that it selects from", allowed=f"{extent}")
    window = tuple(slice(None) if i == axis % data.ndim else slice(n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(data[window], np.where(indices < 0, indices + extent, indices), axis)


def top_k(x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    """The k greatest (or smallest) along an axis and their indices, in order; of equal ones the first."""
    count = int(k.reshape(()))
    if not 0 <= count <= x.shape[axis]:
        raise BadArgumentError("more elements are asked for than there are", found=count, allowed=f"{x.shape[axis]}")
    if largest:
        flipped = np.flip(x, axis)
        order = np.flip(x.shape[axis] - 1 - np.argsort(flipped, axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(x, chosen, axis), chosen


def arg_min(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The index of the smallest element, the first (or last) of equal ones."""
    if select_last_index:
        return np.asarray(x.shape[axis] - 1 - np.argmin(np.flip(x, axis), axis=axis, keepdims=bool(keepdims)))
    return np.asarray(np.argmin(x, axis=axis, keepdims=bool(keepdims)))


SELECTION_ROWS: tuple[Op, ...] = (
    Op("GatherND", ONNX, "slices of data at places", gather_nd, moves=True, interval=intervals.same),
    Op("GatherElements", ONNX, "elements of data along an axis", gather_elements, moves=True, interval=intervals.same),
    Op("TopK", ONNX, "the k greatest along an axis, and I64 where they are", top_k),
    Op("ArgMin", ONNX, "I64: where the smallest element of an axis is", arg_min),
)
