"""Rows of the table of ops: networks of integers alone.

A graph of these rows (and of rows that only move or compare elements) computes with integer multiplication, addition
and shift; every row is exact, so that any backend can be held equal to the last bit.

    accumulate     IntegerConv, IntegerLinear, IntegerMatMul, IntegerAdd, IntegerMul, IntegerSum  -> I32
    rescale        Requantize: y = limited(round(((x - x_zero) << left_shift) * m / 2^e) + zero)  -> any type
    keep the type  IntegerAveragePool, IntegerMean, IntegerSqrt; Lookup gives that of its table

Zero points are attributes; factors are data (`integer_arithmetic.py` says what a legal factor is). Images are
[N, C, *space], or [N, *space, C] with layout="NHWC", whose filters are [M, *kernel, C / group].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.element import element_dtype, element_name
from qdeploy.ir.integer_arithmetic import (
    below,
    divided,
    dyadic_product,
    fitted,
    integer_sqrt,
    magnitude,
    product_dtype,
    wide,
)
from qdeploy.ir.ops import integer_intervals as proof
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.conv import Ints, borders, conv, windows
from qdeploy.ir.ops.integer_functions import FUNCTION_ROWS
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.tensor import Array

LAYOUTS = ("NCHW", "NHWC")


def channels_first(x: Array, layout: str) -> Array:
    """An image, or filters, with channels behind the first axis."""
    if layout not in LAYOUTS:
        raise UnsupportedError("unknown layout of an image", found=layout, allowed=", ".join(LAYOUTS))
    return x if layout == "NCHW" else np.moveaxis(x, -1, 1)


def _as_layout(x: Array, layout: str) -> Array:
    return x if layout == "NCHW" else np.moveaxis(x, 1, -1)


def _biased(total: Array, bias: Array | None, shape: Sequence[int]) -> Array:
    return fitted(total if bias is None else total + wide(bias).reshape(shape), "I32")


def integer_conv(
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
    layout: str = "NCHW",
    x_zero: int = 0,
) -> Array:
    """The sum of (x - x_zero) * weight, plus bias: int32. Padding is x_zero and so adds nothing."""
    codes, filters = channels_first(wide(x) - x_zero, layout), channels_first(wide(weight), layout)
    per_filter = np.abs(filters).reshape(len(filters), -1).sum(axis=1)
    kind = product_dtype(magnitude(codes) * magnitude(per_filter))
    total = conv(
        codes.astype(kind),
        filters.astype(kind),
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
        auto_pad=auto_pad,
    )
    return _as_layout(_biased(total.astype(np.int64), bias, (-1, *[1] * (x.ndim - 2))), layout)


def integer_linear(x: Array, weight: Array, bias: Array | None = None, *, x_zero: int = 0) -> Array:
    """(x - x_zero) @ weight.T + bias for x [..., K], weight [N, K]: int32 [..., N]."""
    codes, rows = wide(x) - x_zero, wide(weight)
    kind = product_dtype(magnitude(codes) * magnitude(np.abs(rows).sum(axis=1)))
    total = codes.astype(kind) @ rows.astype(kind).T
    return _biased(total.astype(np.int64), bias, (-1,))


def integer_mat_mul(a: Array, b: Array, *, a_zero: int = 0, b_zero: int = 0, transpose_b: int = 0) -> Array:
    """The product of two activations over their last two axes, without their zero points: int32."""
    left, right = wide(a) - a_zero, wide(b) - b_zero
    right = right.swapaxes(-1, -2) if transpose_b else right
    kind = product_dtype(left.shape[-1] * magnitude(left) * magnitude(right))
    return fitted((left.astype(kind) @ right.astype(kind)).astype(np.int64), "I32")


def requantize(
    x: Array,
    multiplier: Array,
    shift: Array,
    *,
    lo: int,
    hi: int,
    dtype: str,
    axis: int = 1,
    rounding: str = "half_up",
    zero: int = 0,
    x_zero: int = 0,
    left_shift: int = 0,
) -> Array:
    """limited(round(((x - x_zero) << left_shift) * multiplier / 2^shift) + zero), for all or per index of an axis.

    Args:
        x: Integers.
        multiplier: I32 [1] or [C]: m.
        shift: I32 [1] or [C]: e.
        lo: Least result.
        hi: Greatest result; a code of few bits has narrow limits in a wide type.
        dtype: Of the result.
        axis: The axis of C.
        rounding: half_up | half_even | half_away | tflite_double.
        zero: The zero point of the result.
        x_zero: The zero point of x.
        left_shift: Bits that x is raised by first, at most 31.

    Raises:
        BadFileError: A factor is not dyadic, the limits do not fit the type, or the product does not fit an int64.
    """
    limits = np.iinfo(element_dtype(dtype))
    if not limits.min <= lo <= hi <= limits.max or not 0 <= left_shift < 32:
        raise BadFileError(
            "limits that do not fit",
            found=f"{lo}..{hi} << {left_shift}",
            allowed=f"{limits.min}..{limits.max} ({dtype})",
        )
    codes = wide(x) - x_zero
    below(magnitude(codes) << left_shift, 1 << 62, "a left shift")
    m, e = (_along(part, x.ndim, axis) for part in (multiplier, shift))
    return np.asarray(np.clip(dyadic_product(codes << left_shift, m, e, rounding) + zero, lo, hi).astype(limits.dtype))


def _along(param: Array, rank: int, axis: int) -> Array:
    """One number, or one for each index of an axis, as int64 that is broadcast."""
    if param.size == 1:
        return wide(param).reshape(())
    place = axis % rank
    return wide(param).reshape([-1 if i == place else 1 for i in range(rank)])


def integer_add(a: Array, b: Array) -> Array:
    """A + b, broadcast: int32."""
    return fitted(wide(a) + wide(b), "I32")


def integer_mul(a: Array, b: Array, *, a_zero: int = 0, b_zero: int = 0) -> Array:
    """(a - a_zero) * (b - b_zero), broadcast: int32."""
    left, right = wide(a) - a_zero, wide(b) - b_zero
    below(magnitude(left) * magnitude(right), 1 << 63, "a product")
    return fitted(left * right, "I32")


def integer_sum(x: Array, *, axes: Sequence[int], keepdims: int = 1) -> Array:
    """The sum over axes: int32."""
    return fitted(np.asarray(wide(x).sum(axis=tuple(axes), keepdims=bool(keepdims))), "I32")


def integer_mean(x: Array, *, axes: Sequence[int], keepdims: int = 1, rounding: str = "floor") -> Array:
    """The mean over axes, rounded, in the type of x."""
    total = np.asarray(wide(x).sum(axis=tuple(axes), keepdims=bool(keepdims)))
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    return fitted(divided(total, count, rounding), element_name(x.dtype))


def integer_average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Ints = None,
    pads: Ints = None,
    auto_pad: str = "NOTSET",
    layout: str = "NCHW",
    rounding: str = "floor",
    lo: int | None = None,
    hi: int | None = None,
) -> Array:
    """The mean of what is inside of the image, for each window, rounded and limited, in the type of x."""
    image, rank = channels_first(wide(x), layout), x.ndim - 2
    steps, ones = list(strides or [1] * rank), [1] * rank
    border = borders(image.shape[2:], kernel_shape, steps, ones, auto_pad, pads)
    axes = tuple(range(-rank, 0))

    def summed(part: Array) -> Array:
        padded = np.pad(part, [(0, 0), (0, 0), *border])
        return np.asarray(windows(padded, kernel_shape, steps, ones).sum(axis=axes))

    mean = divided(summed(image), summed(np.ones((1, 1, *image.shape[2:]), np.int64)), rounding)
    return _as_layout(
        fitted(np.clip(mean, lo, hi) if lo is not None or hi is not None else mean, element_name(x.dtype)), layout
    )


def integer_sqrt_row(x: Array) -> Array:
    """floor(sqrt(x)), exactly, in the type of x."""
    return fitted(integer_sqrt(wide(x)), element_name(x.dtype))


def lookup(x: Array, table: Array) -> Array:
    """table[x - least x of the type], for x of 8 bits and a table of 256 entries, in whose type the result is."""
    if x.dtype.itemsize != 1 or table.shape != (256,):
        raise BadFileError("a table look-up takes 8 bits and 256 entries", found=f"{x.dtype}, {list(table.shape)}")
    return np.asarray(table[wide(x) - np.iinfo(x.dtype).min])


INTEGER_ROWS: tuple[Op, ...] = (
    Op(
        "IntegerConv",
        QDEPLOY,
        "I32: sum of (x - x_zero) * weight, plus bias",
        integer_conv,
        interval=proof.product,
        result="I32",
    ),
    Op(
        "IntegerLinear",
        QDEPLOY,
        "I32: (x - x_zero) @ weight.T + bias; weight [N, K]",
        integer_linear,
        interval=proof.product,
        result="I32",
    ),
    Op(
        "IntegerMatMul",
        QDEPLOY,
        "I32: (a - a_zero) @ (b - b_zero)",
        integer_mat_mul,
        interval=proof.mat_mul,
        result="I32",
    ),
    Op(
        "Requantize",
        QDEPLOY,
        "limited(round(((x - x_zero) << left_shift) * m / 2^e) + zero)",
        requantize,
        interval=proof.requantize,
    ),
    Op("IntegerAdd", QDEPLOY, "I32: a + b, broadcast", integer_add, interval=proof.add, result="I32"),
    Op(
        "IntegerMul",
        QDEPLOY,
        "I32: (a - a_zero) * (b - b_zero), broadcast",
        integer_mul,
        interval=proof.multiply,
        result="I32",
    ),
    Op("IntegerSum", QDEPLOY, "I32: the sum over axes", integer_sum, interval=proof.sum_over_axes, result="I32"),
    Op("IntegerMean", QDEPLOY, "the mean over axes, rounded, in the type of x", integer_mean, interval=intervals.same),
    Op(
        "IntegerAveragePool",
        QDEPLOY,
        "the mean of each window inside of the image, rounded",
        integer_average_pool,
        interval=intervals.same,
    ),
    Op("IntegerSqrt", QDEPLOY, "floor(sqrt(x)), exactly", integer_sqrt_row, interval=proof.square_root),
    Op("Lookup", QDEPLOY, "table[x], for x of 8 bits", lookup, interval=intervals.looked_up),
    *FUNCTION_ROWS,
)
