"""Rows of the table of ops: exponential, softmax, GELU and normalisations in integers, after I-BERT (arXiv 2101.01321).

I-BERT's polynomials with two changes: shifts are attributes, derived from the scale at conversion time, since fixed
ones are wrong for other widths of the input; and reciprocals carry as many bits as an int64 product has room for. Per
row there is one division by a number that is not constant.

    exp(x), x <= 0    q = min(-x, 31 ln2) // ln2;  r = -min(-x, 31 ln2) + q ln2;  (((r (r + b) + c) << left) >> q
                      with ln2 = ln(2) / S, b = 2.70732 / S, c = 2.79211 / S^2 for a scale S of x: exp at the scale
                      0.35815147 S^2 / 2^left, at most c << left
    softmax           e = exp(x - max);  (e * floor(2^62 / sum e) + 2^(61 - bits)) >> (62 - bits), limited to 0..hi:
                      scale 2^-bits
    gelu              t = min(|x|, b) - b;  x * ((c >> shift) + sign(x) * ((c - t^2) >> shift))
                      with b = 1.769 sqrt(2) / S, c = 2 / (0.2888 S^2): scale 0.2888 S^3 2^shift / 4
    layer norm        y = (x - mean) >> x_shift, mean = floor((2 sum x + n) / 2n);  d = isqrt(sum y^2 + epsilon)
                      u = (y * floor(2^46 / max(d, 1))) >> 16, of scale sqrt(n) / 2^30;  (u * weight >> shift) + bias
    rms norm          the same with mean 0 and without bias

`>>` rounds towards minus infinity.
"""

from __future__ import annotations

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.integer_arithmetic import below, fitted, integer_sqrt, magnitude, wide
from qdeploy.ir.ops import integer_intervals as proof
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.tensor import Array

EXP_DEPTH = 31
"""Halvings after which an exponential of at most 31 bits is zero."""
_RECIPROCAL, _NORM_RECIPROCAL, _NORM_SHIFT = 62, 46, 16


def _exponential(x: Array, ln2: int, b: int, c: int, left: int) -> Array:
    if x.size and x.max() > 0:
        raise BadFileError("the integer exponential takes no positive numbers", found=int(x.max()))
    if ln2 < 1 or left < 0 or b < ln2 or not 0 < c << left < 1 << 31 or 4 * c < b * b:
        raise BadFileError(
            "constants of an integer exponential that do not fit",
            found=(ln2, b, c, left),
            allowed="1 <= ln2 <= b, b * b <= 4 c, c << left below 2^31",
        )
    down = np.minimum(-x, EXP_DEPTH * ln2)
    halvings = down // ln2
    rest = halvings * ln2 - down  # -ln2 < rest <= 0
    return np.asarray(((rest * (rest + b) + c) << left) >> halvings)


def integer_exp(x: Array, *, ln2: int, b: int, c: int, left: int = 0) -> Array:
    """exp(x) for x <= 0: int32, from 0 to c << left."""
    return fitted(_exponential(wide(x), ln2, b, c, left), "I32")


def integer_softmax(
    x: Array,
    mask: Array | None = None,
    *,
    ln2: int,
    b: int,
    c: int,
    left: int = 0,
    axis: int = -1,
    bits: int = 8,
    hi: int = 255,
    dtype: str = "U8",
) -> Array:
    """Softmax along an axis at the scale 2^-bits.

    Args:
        x: Scores.
        mask: Integers that are broadcast to x; where 0, the result is 0 and the score has no part. None: all count.
        ln2: ln(2) / S for the scale S of x.
        b: 2.70732 / S.
        c: 2.79211 / S^2.
        left: Bits that the exponentials are raised by.
        axis: Over which the results add up to 1.
        bits: Of the scale of the result, at most 30.
        hi: Greatest result: 1 itself is limited to it.
        dtype: Of the result.
    """
    if not 1 <= bits <= 30 or not 0 < hi <= np.iinfo(element_dtype(dtype)).max:
        raise BadFileError("a scale or limit of an integer softmax that does not fit", found=(bits, hi))
    scores = wide(x)
    kept = np.broadcast_to(True if mask is None else mask != 0, scores.shape)
    top = np.where(kept, scores, np.iinfo(np.int64).min).max(axis=axis, keepdims=True)
    exponential = np.where(kept, _exponential(np.where(kept, np.minimum(scores - top, 0), 0), ln2, b, c, left), 0)
    total = exponential.sum(axis=axis, keepdims=True)  # at most 2^31 for each of fewer than 2^31
    factor = (np.int64(1) << _RECIPROCAL) // np.maximum(total, 1)  # e <= total, so that e * factor <= 2^62
    rounded = (exponential * factor + (1 << (_RECIPROCAL - 1 - bits))) >> (_RECIPROCAL - bits)
    return np.asarray(np.minimum(rounded, hi).astype(element_dtype(dtype)))


def integer_gelu(x: Array, *, b: int, c: int, shift: int = 0) -> Array:
    """X * (1 + erf(x / sqrt 2)), with erf as a polynomial of second degree: int32."""
    codes = wide(x)
    if b < 0 or not 0 <= shift < 63 or not b * b <= c < 1 << 62:
        raise BadFileError(
            "constants of an integer GELU that do not fit", found=(b, c, shift), allowed="b * b <= c < 2^62"
        )
    below(2 * magnitude(codes) * (c >> shift), 1 << 63, "an integer GELU")
    clipped = np.minimum(np.abs(codes), b) - b
    return fitted(codes * ((c >> shift) + np.sign(codes) * ((c - clipped * clipped) >> shift)), "I32")


def _normal(y: Array, epsilon: int) -> Array:
    below(y.shape[-1] * magnitude(y) ** 2 + epsilon, 1 << 63, "a sum of squares")
    root = integer_sqrt((y * y).sum(axis=-1, keepdims=True) + epsilon)  # |y| <= root, so that no product is over 2^46
    return np.asarray((y * ((np.int64(1) << _NORM_RECIPROCAL) // np.maximum(root, 1))) >> _NORM_SHIFT)


def _weighted(normal: Array, weight: Array | None, bias: Array | None, shift: int) -> Array:
    if not 0 <= shift < 63:
        raise BadFileError("a shift is out of range", found=shift, allowed="0..62")
    total = normal if weight is None else (normal * wide(weight)) >> shift
    return fitted(total if bias is None else total + wide(bias), "I32")


def integer_layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    x_shift: int = 0,
    epsilon: int = 0,
    shift: int = 0,
) -> Array:
    """(x - mean) / deviation * weight + bias over the last axis: int32.

    Args:
        x: [..., n].
        weight: I32 [n]; None: the bare quotient, of scale sqrt(n) / 2^30.
        bias: I32 [n], at the scale of the result.
        x_shift: Bits dropped from the centred x, so that its squares fit.
        epsilon: Added to the sum of squares.
        shift: Bits dropped from the product with `weight`.
    """
    codes, n = wide(x), x.shape[-1]
    mean = (2 * codes.sum(axis=-1, keepdims=True) + n) // (2 * n)
    return _weighted(_normal((codes - mean) >> x_shift, epsilon), weight, bias, shift)


def integer_rms_norm(
    x: Array, weight: Array | None = None, *, x_shift: int = 0, epsilon: int = 0, shift: int = 0
) -> Array:
    """X over the root of its mean square, times weight, over the last axis: int32; as the layer norm otherwise."""
    return _weighted(_normal(wide(x) >> x_shift, epsilon), weight, None, shift)


FUNCTION_ROWS: tuple[Op, ...] = (
    Op("IntegerExp", QDEPLOY, "I32: exp(x) for x <= 0", integer_exp, interval=proof.exponential, result="I32"),
    Op(
        "IntegerSoftmax", QDEPLOY, "softmax along an axis at the scale 2^-bits", integer_softmax, interval=proof.softmax
    ),
    Op("IntegerGelu", QDEPLOY, "I32: x * (1 + erf(x / sqrt 2))", integer_gelu, interval=proof.gelu, result="I32"),
    Op(
        "IntegerLayerNorm",
        QDEPLOY,
        "I32: (x - mean) / deviation * weight + bias, last axis",
        integer_layer_norm,
        interval=proof.norm,
        result="I32",
    ),
    Op(
        "IntegerRMSNorm",
        QDEPLOY,
        "I32: x / root of the mean square * weight, last axis",
        integer_rms_norm,
        interval=proof.norm,
        result="I32",
    ),
)
