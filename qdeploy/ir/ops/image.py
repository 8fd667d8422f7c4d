"""Rows of the table of ops: images that change their extent. Images are [N, C, *space].

Resizing maps every place of the result to a place of the source, axis by axis; linear interpolation is then a sum of
two entries per axis, nearest one entry. A transposed convolution adds every element of x, times a filter, to the window
of the result that a convolution would have read it from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.rounding import rounded_once
from qdeploy.ir.ops.row import ONNX, Op
from qdeploy.ir.ops.shape import bounded
from qdeploy.ir.tensor import Array

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
"""How places of the result become places of the source: `coordinate_transformation_mode` of Resize."""
_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
NEAREST = tuple(_NEAREST)


def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Nearest or linear interpolation to another shape; `roi` belongs to a way of cropping that is not here."""
    if mode not in ("nearest", "linear") or coordinate_transformation_mode not in COORDINATES:
        raise UnsupportedError("unknown way of resizing", found=f"{mode}, {coordinate_transformation_mode}")
    if sizes is not None and sizes.size:
        shape = [int(n) for n in sizes]
        factors = [np.float32(after) / np.float32(before) for after, before in zip(shape, x.shape, strict=True)]
    else:
        factors = [np.float32(f) for f in (scales if scales is not None else ())]
        shape = [int(np.floor(n * f)) for n, f in zip(x.shape, factors, strict=True)]
    bounded(shape)
    for axis, (after, factor) in enumerate(zip(shape, factors, strict=True)):
        if after != x.shape[axis] or factor != 1:
            places = _places(after, x.shape[axis], factor, coordinate_transformation_mode)
            x = _nearest(x, axis, places, nearest_mode) if mode == "nearest" else _linear(x, axis, places)
    return x


def _places(after: int, before: int, factor: np.float32, mode: str) -> Array:
    """Of every index of the result, the place in the source: float32 [after]."""
    index = np.arange(after, dtype=np.float32)
    if mode == "asymmetric":
        return index / factor
    if mode == "align_corners":
        return index * np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.zeros(after, np.float32)
    if mode == "pytorch_half_pixel" and after == 1:
        return np.zeros(1, np.float32)
    return (index + np.float32(0.5)) / factor - np.float32(0.5)


def _nearest(x: Array, axis: int, places: Array, mode: str) -> Array:
    chosen = np.clip(_NEAREST[mode](places), 0, x.shape[axis] - 1).astype(np.int64)
    return np.asarray(np.take(x, chosen, axis=axis))


def _linear(x: Array, axis: int, places: Array) -> Array:
    places = np.clip(places, 0, x.shape[axis] - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    wide = x.astype(np.float32) if x.dtype.kind != "f" else x
    share = (places - low).astype(wide.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
    mixed = np.take(wide, low, axis=axis) * (1 - share) + np.take(wide, high, axis=axis) * share
    return np.asarray(mixed.astype(x.dtype))


@rounded_once
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int = 1,
) -> Array:
    """The transpose of a convolution: x [N, C, *space], weight [C, M / group, *kernel], bias [M]."""
    kernel, space, rank = weight.shape[2:], x.shape[2:], x.ndim - 2
    steps, gaps, more = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    border, (n, channels), filters = pads or [0] * (2 * rank), x.shape[:2], weight.shape[1]
    full = [
        (size - 1) * step + (k - 1) * gap + 1 + extra
        for size, step, k, gap, extra in zip(space, steps, kernel, gaps, more, strict=True)
    ]
    bounded([n, group * filters, *full])
    sums = np.zeros((n, group, filters, *full), np.result_type(x, weight))
    parts = x.reshape(n, group, channels // group, -1)  # [N, groups, C / group, places]
    filter_rows = weight.reshape(group, channels // group, filters, *kernel)
    for place in np.ndindex(*kernel):
        product = np.einsum("ngcp,gcm->ngmp", parts, filter_rows[(..., *place)], optimize=True)
        window = tuple(
            slice(k * gap, k * gap + (size - 1) * step + 1, step)
            for k, gap, size, step in zip(place, gaps, space, steps, strict=True)
        )
        sums[(slice(None), slice(None), slice(None), *window)] += product.reshape(n, group, filters, *space)
    inside = tuple(slice(border[i], full[i] - border[i + rank]) for i in range(rank))
    out = sums.reshape(n, group * filters, *full)[(slice(None), slice(None), *inside)]
    return out if bias is None else out + bias.reshape(-1, *[1] * rank)


def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Any:
    """Channels as squares of places: [N, C, H, W] -> [N, C / b^2, H b, W b]."""
    n, channels, height, width = x.shape
    b, deep = blocksize, channels // blocksize**2
    if mode == "DCR":
        parts = x.reshape(n, b, b, deep, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, deep, b, b, height, width).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, deep, height * b, width * b)


def space_to_depth(x: Array, *, blocksize: int) -> Any:
    """Squares of places as channels: [N, C, H, W] -> [N, C b^2, H / b, W / b]."""
    n, channels, height, width = x.shape
    b = blocksize
    parts = x.reshape(n, channels, height // b, b, width // b, b).transpose(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, channels * b * b, height // b, width // b)


@rounded_once
def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the places of each channel of each image."""
    axes, shape = tuple(range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    normal = centred / np.sqrt(variance + x.dtype.type(epsilon))
    return normal * scale.reshape(shape) + bias.reshape(shape)


IMAGE_ROWS: tuple[Op, ...] = (
    Op("Resize", ONNX, "another shape by nearest or linear interpolation", resize, interval=intervals.same),
    Op("ConvTranspose", ONNX, "the transpose of a convolution; weight [C, M / group, *kernel]", conv_transpose),
    Op(
        "DepthToSpace",
        ONNX,
        "channels as squares of places",
        depth_to_space,
        moves=True,
        keeps_scale=True,
        interval=intervals.same,
    ),
    Op(
        "SpaceToDepth",
        ONNX,
        "squares of places as channels",
        space_to_depth,
        moves=True,
        keeps_scale=True,
        interval=intervals.same,
    ),
    Op(
        "InstanceNormalization", ONNX, "each channel of each image by its own mean and variance", instance_normalization
    ),
)
