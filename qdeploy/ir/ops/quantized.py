"""Rows of the table of ops: activations that are quantized while the network runs, and arithmetic on their codes.

    QuantizeLinear     q = saturate(round(x / scale) + zero)     halves to even; a scale for all, per axis or per block
    DequantizeLinear   x = (q - zero) * scale
    QLinear...         the product or sum in int32 (or float32), then one factor scale_a * scale_b / scale_y per
                       channel, rounded, and the zero of the result added

Factors are float32 and are formed in the order that ONNX Runtime has, (scale_a * scale_b) / scale_y, so that results
agree to the last code.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np

from qdeploy.ir.dtype import dtype as number_type
from qdeploy.ir.dtype import is_known
from qdeploy.ir.element import element_dtype
from qdeploy.ir.ops import intervals
from qdeploy.ir.ops.conv import conv, integer_conv
from qdeploy.ir.ops.row import MICROSOFT, ONNX, Op
from qdeploy.ir.tensor import Array


def _is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether a type is integers of less than a byte, which numpy has from ml_dtypes."""
    return dtype.kind not in "iu" and is_known(dtype.name) and number_type(dtype.name).is_integer


def limited(x: Array, dtype: np.dtype[Any]) -> Array:
    """Returns rounded numbers in an integer type, limited to its range."""
    if _is_narrow(dtype):
        return np.clip(x, *number_type(dtype.name).limits).astype(np.int8).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(x.astype(np.float64), limits.min, limits.max).astype(dtype)


def to_float(x: Array, dtype: np.dtype[Any], clamp: bool) -> Array:
    """Returns numbers in a float type of few bits; what is too large becomes its greatest number if `clamp` says so."""
    if not clamp:
        return x.astype(dtype)
    import ml_dtypes

    top = np.float32(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return np.where(np.isnan(x), x, np.clip(x, -top, top)).astype(dtype)


def spread(param: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Brings a scale or zero point into a form that is broadcast over the tensor that it belongs to."""
    if param.ndim == 0 or param.size == 1:
        return param.reshape(())
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} of {len(shape)}")
    if block_size:
        grid = tuple(-(-n // block_size) if i == axis % len(shape) else n for i, n in enumerate(shape))
        if param.shape != grid:
            raise ValueError(f"parameters {list(param.shape)} for blocks of {block_size}, not {list(grid)}")
        return np.repeat(param, block_size, axis=axis)[tuple(slice(n) for n in shape)]
    place = axis % len(shape)
    return param.reshape([-1 if i == place else 1 for i in range(len(shape))])


def _wide(x: Array) -> Array:
    """Codes in a type in which they can be subtracted: int32 for integers, float32 for floats of few bits."""
    if (x.dtype.kind in "iu" and x.dtype.itemsize < 8) or _is_narrow(x.dtype):
        return x.astype(np.int32)
    return x.astype(np.float32)


def quantize_linear(
    x: Array,
    scale: Array,
    zero: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    saturate: int = 1,
    output_dtype: str = "U8",
) -> Array:
    """The codes of x; in the type of the zero points, or in `output_dtype` where there are none."""
    dtype = element_dtype(output_dtype) if zero is None else zero.dtype
    factor = spread(scale, x.shape, axis, block_size)
    quotient = x.astype(np.float32) / factor.astype(np.float32)
    shift = np.int32(0) if zero is None else _wide(spread(zero, x.shape, axis, block_size))
    if dtype.kind in "iu" or _is_narrow(dtype):
        return limited(np.rint(quotient).astype(np.float64) + shift, dtype)
    return to_float(quotient + shift.astype(np.float32), dtype, bool(saturate))


def dequantize_linear(
    q: Array, scale: Array, zero: Array | None = None, *, axis: int = 1, block_size: int = 0
) -> Array:
    """(q - zero) * scale, in the type of the scale."""
    codes = _wide(q)
    if zero is not None:
        codes = codes - _wide(spread(zero, q.shape, axis, block_size))
    factor = spread(scale, q.shape, axis, block_size).astype(np.float32)
    return np.asarray(codes.astype(np.float32) * factor).astype(scale.dtype)


def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """Codes in uint8, with the scale and zero point that cover the range of x and zero."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    scale = scale if scale else np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return limited(np.rint(x / scale) + zero, np.dtype(np.uint8)), np.array(scale), np.array(zero)


def _row_zero(zero: Array) -> Array:
    """A zero point per row of a left operand as a column: [M] -> [M, 1]."""
    return zero[:, None] if zero.ndim == 1 and zero.size > 1 else zero


def integer_product(a: Array, b: Array, a_zero: Array | None, b_zero: Array | None) -> Array:
    """(a - a_zero) @ (b - b_zero), exactly, in int32."""
    left = a.astype(np.float64) - (0 if a_zero is None else _row_zero(a_zero).astype(np.float64))
    right = b.astype(np.float64) - (0 if b_zero is None else b_zero.astype(np.float64))
    return np.asarray(left @ right).astype(np.int64).astype(np.int32)


def mat_mul_integer(a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    """The product of codes without their zero points: int32."""
    return integer_product(a, b, a_zero, b_zero)


def conv_integer(
    x: Array, weight: Array, x_zero: Array | None = None, w_zero: Array | None = None, **attrs: Any
) -> Array:
    """The convolution of codes without their zero points: int32."""
    codes = x.astype(np.int32) - (0 if x_zero is None else x_zero.astype(np.int32))
    shape = (-1, *[1] * (weight.ndim - 1))
    filters = weight.astype(np.int32) - (0 if w_zero is None else w_zero.astype(np.int32).reshape(shape))
    return integer_conv(codes, filters, **attrs)


def requantized(total: Array, factor: Array, zero: Array) -> Array:
    """round(total * factor) + zero in the type of the zero point."""
    return limited(np.rint(total.astype(np.float32) * factor) + zero.astype(np.float32), zero.dtype)


def q_linear_mat_mul(
    a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, y_scale: Array, y_zero: Array
) -> Array:
    """The product of quantized matrices, quantized."""
    factor = _row_zero(a_scale).astype(np.float32) * b_scale.astype(np.float32) / y_scale.astype(np.float32)
    return requantized(integer_product(a, b, a_zero, b_zero), factor, y_zero)


def q_gemm(
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Array:
    """Alpha A B + C of quantized matrices, C int32 at the scale of the product; quantized where y_scale is given."""
    if transB and b_zero.ndim:
        b_zero = b_zero.reshape(-1, 1)
    left, right = _wide(a) - _wide(a_zero), _wide(b) - _wide(b_zero)
    total = integer_product(left.T if transA else left, right.T if transB else right, None, None)
    total = total if c is None else total + c
    factor = (np.float32(alpha) * a_scale * b_scale).astype(np.float32)
    if y_scale is None or y_zero is None:
        return np.asarray(total.astype(np.float32) * factor)
    return requantized(total, factor / y_scale, y_zero)


def _like_conv(function: Any) -> Any:
    """Gives a function with **attrs the attributes of a convolution as keywords of its own."""

    @functools.wraps(function)
    def called(*inputs: Array, **attrs: Any) -> Any:
        return function(*inputs, **attrs)

    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    keywords = [p for p in inspect.signature(conv).parameters.values() if p.kind is p.KEYWORD_ONLY]
    called.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
    return called


def q_linear_conv(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    weight: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    bias: Array | None = None,
    **attrs: Any,
) -> Array:
    """The convolution of quantized images, quantized; bias int32 at the scale of the product."""
    shape = (-1, *[1] * (x.ndim - 2))
    total = conv_integer(x, weight, x_zero, w_zero, **attrs)
    total = total if bias is None else total + bias.reshape(shape)
    factor = x_scale * w_scale / y_scale
    return requantized(total, factor.reshape(shape) if factor.size > 1 else factor, y_zero)


def _numbers(q: Array, scale: Array, zero: Array | None) -> Array:
    return (_wide(q) - (0 if zero is None else _wide(zero))).astype(np.float32) * scale


def _codes(x: Array, scale: Array, zero: Array | None, dtype: np.dtype[Any]) -> Array:
    return limited(np.rint(x / scale) + (0 if zero is None else zero.astype(np.float32)), dtype)


def q_linear_add(
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
) -> Array:
    """The sum of quantized values, quantized."""
    return _codes(_numbers(a, a_scale, a_zero) + _numbers(b, b_scale, b_zero), y_scale, y_zero, a.dtype)


def q_linear_mul(
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
) -> Array:
    """The product of quantized values, element by element, quantized."""
    return _codes(_numbers(a, a_scale, a_zero) * _numbers(b, b_scale, b_zero), y_scale, y_zero, a.dtype)


def q_linear_global_average_pool(
    x: Array, x_scale: Array, x_zero: Array, y_scale: Array, y_zero: Array, *, channels_last: int = 0
) -> Array:
    """The mean over space of a quantized image, quantized."""
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    mean = _numbers(x, x_scale, x_zero).mean(axis=axes, keepdims=True, dtype=np.float32)
    return _codes(mean, y_scale, y_zero, y_zero.dtype)


QUANTIZED_ROWS: tuple[Op, ...] = (
    Op(
        "QuantizeLinear",
        ONNX,
        "codes of x: saturate(round(x / scale) + zero)",
        quantize_linear,
        interval=intervals.quantized,
    ),
    Op("DequantizeLinear", ONNX, "(codes - zero) * scale", dequantize_linear, interval=intervals.dequantized),
    Op("DynamicQuantizeLinear", ONNX, "codes of x, their scale and zero, by its range", dynamic_quantize_linear),
    Op("MatMulInteger", ONNX, "I32: the product of codes without their zeros", mat_mul_integer),
    Op("ConvInteger", ONNX, "I32: the convolution of codes without their zeros", _like_conv(conv_integer)),
    Op("QLinearMatMul", ONNX, "the product of quantized matrices, quantized", q_linear_mat_mul),
    Op("QLinearConv", ONNX, "the convolution of a quantized image, quantized", _like_conv(q_linear_conv)),
    Op("QGemm", MICROSOFT, "alpha A B + C of quantized matrices", q_gemm),
    Op("QLinearAdd", MICROSOFT, "the sum of quantized values, quantized", q_linear_add),
    Op("QLinearMul", MICROSOFT, "the product of quantized values, quantized", q_linear_mul),
    Op("QLinearGlobalAveragePool", MICROSOFT, "the mean over space, quantized", q_linear_global_average_pool),
)
