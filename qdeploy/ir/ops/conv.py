"""Rows of the table of ops: convolution, pooling and what stands around them. Images are [N, C, *space].

A convolution is a matrix product over the windows of the input, [N, C, *space] -> [N, *positions, C * kernel]; integers
take the same way through float64, whose products and sums are exact up to 2 ** 53.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.rounding import rounded_once
from qdeploy.ir.ops.row import ONNX, Op
from qdeploy.ir.tensor import Array

Ints = Sequence[int] | None


def borders(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str,
    pads: Ints,
) -> list[tuple[int, int]]:
    """What is added before and behind each axis of space."""
    rank = len(space)
    if auto_pad == "NOTSET":
        padding = list(pads or [0] * (2 * rank))
        return [(padding[i], padding[i + rank]) for i in range(rank)]
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(
            "unknown way of padding", found=auto_pad, allowed="NOTSET, VALID, SAME_UPPER, SAME_LOWER"
        )
    widths = []
    for n, k, stride, dilation in zip(space, kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n)
        small, large = total // 2, total - total // 2
        widths.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return widths


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """A view of every window of a padded image: [N, C, *positions, *kernel]."""
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + len(kernel)))
    every = np.lib.stride_tricks.sliding_window_view(x, extent, axes)
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    inside = tuple(slice(None, None, d) for d in dilations)
    view: Array = every[(*steps, *inside)]
    return view


@rounded_once
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_shape: Ints = None,
    strides: Ints = None,
    pads: Ints = None,
    dilations: Ints = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Array:
    """Cross-correlation: x [N, C, *space], weight [M, C / group, *kernel], bias [M]."""
    kernel, rank = weight.shape[2:], x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    border = borders(x.shape[2:], kernel, strides, dilations, auto_pad, pads)
    patches = windows(np.pad(x, [(0, 0), (0, 0), *border]), kernel, strides, dilations)
    places, (n, channels), filters = patches.shape[2 : 2 + rank], patches.shape[:2], weight.shape[0]
    width = channels // group
    if width == 1 and channels > 1:
        out = _depthwise(patches, weight)
        return out if bias is None else out + bias.reshape(-1, *[1] * rank)
    out = np.empty((n, filters, *places), np.result_type(x, weight))
    for g in range(group):
        part = np.moveaxis(patches[:, g * width : (g + 1) * width], 1, 1 + rank)  # [N, *places, C / group, *kernel]
        rows = part.reshape(n, -1, width * int(np.prod(kernel)))
        chosen = slice(g * (filters // group), (g + 1) * (filters // group))
        product = rows @ weight[chosen].reshape(filters // group, -1).T  # [N, places, M / group]
        out[:, chosen] = product.transpose(0, 2, 1).reshape(n, -1, *places)
    return out if bias is None else out + bias.reshape(-1, *[1] * rank)


def _depthwise(patches: Array, weight: Array) -> Array:
    """Each channel with filters of its own, one place of the kernel after the other: no products with zeros."""
    (n, channels), kernel = patches.shape[:2], weight.shape[2:]
    places, filters = patches.shape[2 : 2 + len(kernel)], weight.reshape(channels, -1, *kernel)  # [C, M / C, *kernel]
    out = np.zeros((n, *filters.shape[:2], *places), np.result_type(patches, weight))
    for place in np.ndindex(*kernel):
        factor = filters[(slice(None), slice(None), *place)].reshape(*filters.shape[:2], *[1] * len(kernel))
        out += patches[(..., *place)][:, :, None] * factor
    return out.reshape(n, -1, *places)  # [N, C, M / C, *places] -> [N, M, *places]


def integer_conv(x: Array, weight: Array, **attrs: Any) -> Array:
    """The same over integers, exactly: int32."""
    total: Array = conv(x.astype(np.float64), weight.astype(np.float64), **attrs)
    return total.astype(np.int64).astype(np.int32)


@rounded_once
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Any:
    """Alpha A B + beta C; the names of the attributes are ONNX's."""
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else product * product.dtype.type(alpha)
    if c is None:
        return product
    return product + (c if beta == 1 else c * c.dtype.type(beta))


def _pooled(
    x: Array,
    fill: Any,
    kernel_shape: Sequence[int],
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    auto_pad: str,
    ceil_mode: int,
) -> Array:
    """Windows of an image that is padded with `fill`; with ceil_mode, the last ones may reach beyond the border."""
    rank, space = len(kernel_shape), x.shape[2:]
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    border = borders(space, kernel_shape, strides, dilations, auto_pad, pads)
    if ceil_mode:
        for i in range(rank):
            low, high = border[i]
            room = space[i] + low + high - (kernel_shape[i] - 1) * dilations[i] - 1
            extra = -room % strides[i]
            if room + extra >= space[i] + low:  # a window must not begin in the padding behind
                extra -= strides[i]
            border[i] = (low, high + extra)
    cut = tuple(slice(None, n + min(0, high)) for n, (_, high) in zip(space, border, strict=True))
    added = [(low, max(0, high)) for low, high in border]
    padded = np.pad(x[(slice(None), slice(None), *cut)], [(0, 0), (0, 0), *added], constant_values=fill)
    return windows(padded, kernel_shape, strides, dilations)


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Ints = None,
    pads: Ints = None,
    dilations: Ints = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Array:
    """The greatest element of each window."""
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    patches = _pooled(x, least, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return np.asarray(patches.max(axis=tuple(range(-len(kernel_shape), 0))))


def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Ints = None,
    pads: Ints = None,
    dilations: Ints = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Any:
    """The mean of each window, over what is inside of the image (or of the image and its padding)."""
    axes = tuple(range(-len(kernel_shape), 0))
    total = _pooled(x, 0, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode).sum(axis=axes, dtype=x.dtype)
    inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if not count_include_pad:
        count = _pooled(inside, 0, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode).sum(axis=axes)
        return total / count
    rank = len(kernel_shape)
    border = borders(x.shape[2:], kernel_shape, strides or [1] * rank, dilations or [1] * rank, auto_pad, pads)
    padded = np.pad(inside, [(0, 0), (0, 0), *border], constant_values=1)
    beyond = [  # what ceil_mode adds behind the padding counts for nothing; as many windows as of the image itself
        (0, max(0, (n - 1) * (strides or [1] * rank)[i] + (k - 1) * (dilations or [1] * rank)[i] + 1 - extent))
        for i, (n, k, extent) in enumerate(zip(total.shape[2:], kernel_shape, padded.shape[2:], strict=True))
    ]
    padded = np.pad(padded, [(0, 0), (0, 0), *beyond])
    count = _pooled(padded, 0, kernel_shape, strides, [0] * 2 * rank, dilations, "NOTSET", 0).sum(axis=axes)
    return total / count[tuple(slice(n) for n in (1, 1, *total.shape[2:]))]


@rounded_once
def batch_normalization(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, per channel, as in inference."""
    shape = (-1, *[1] * (x.ndim - 2))
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def _space(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


CONV_ROWS: tuple[Op, ...] = (
    Op(
        "Conv",
        ONNX,
        "cross-correlation of x [N, C, *space] with weight [M, C / group, *kernel]; bias [M]",
        conv,
        interval=intervals.layer,
    ),
    Op("Gemm", ONNX, "alpha A B + beta C, either transposed", gemm, interval=intervals.layer),
    Op("MaxPool", ONNX, "the greatest of each window", max_pool, keeps_scale=True, interval=intervals.same),
    Op("AveragePool", ONNX, "the mean of each window", average_pool, keeps_scale=True, interval=intervals.same),
    Op(
        "GlobalAveragePool",
        ONNX,
        "the mean over space",
        lambda x: x.mean(axis=_space(x), keepdims=True, dtype=x.dtype),
        interval=intervals.same,
    ),
    Op(
        "GlobalMaxPool",
        ONNX,
        "the greatest over space",
        lambda x: x.max(axis=_space(x), keepdims=True),
        interval=intervals.same,
    ),
    Op("BatchNormalization", ONNX, "per channel, with stored mean and variance", batch_normalization),
)
