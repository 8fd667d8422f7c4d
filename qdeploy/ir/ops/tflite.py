"""A row of the table of ops: the softmax of TFLite's reference kernels, in fixed point to the last bit.

    e = exp((x - max) * multiplier * 2^left_shift / 2^31)     Q5.26 -> Q0.31; x - max below diff_min counts as exp = 0
    y = e / sum(e) in 1/256, less 128                          sum in Q12.19, its reciprocal by three Newton steps

exp(a) for a <= 0 is a polynomial of fourth degree around -1/8 on [-1/4, 0), times exp(-2^k) for each bit k = -2..4 that
is left of -a (Jacob et al., arXiv 1712.05877, section 4; the constants are exp(-2^k), 1/3, 48/17 and -32/17 in fixed
point). Products are the doubling high products of `integer_arithmetic.py`.
"""

from __future__ import annotations

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.integer_arithmetic import fitted, half_away, half_up, wide
from qdeploy.ir.ops import integer_intervals as proof
from qdeploy.ir.ops.row import Op
from qdeploy.ir.tensor import Array

_ONE = (1 << 31) - 1
_THIRD, _EXP_EIGHTH = 715827883, 1895147668
_EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)  # exp(-1/4), ..., exp(-16)
_48_17, _32_17 = 1515870810, -1010580540  # Q2.29
_INTEGER_BITS, _SUM_BITS = 5, 12


def _high(a: Array, b: Array | int) -> Array:
    """A b / 2^31, halves upwards: for b = m >= 0 the doubling high product."""
    return half_up(np.asarray(a * b), np.asarray(31))


def _shifted(x: Array, right: int | Array) -> Array:
    """X / 2^right, halves away from zero; right may be 0."""
    return np.asarray(np.where(np.asarray(right) > 0, half_away(x, np.maximum(right, 1)), x))


def _doubled(x: Array, left: int) -> Array:
    return np.asarray(np.clip(x << left, -(1 << 31), _ONE))


def exp_negative(a: Array) -> Array:
    """exp(a) for a <= 0 in Q5.26, int64; in Q0.31."""
    quarter = 1 << 24
    low = (a & (quarter - 1)) - quarter  # in [-1/4, 0)
    x = _doubled(low, _INTEGER_BITS) + (1 << 28)  # around -1/8, Q0.31
    x2 = _high(x, x)
    x3, x4 = _high(x2, x), _high(x2, x2)
    tail = _shifted(_high(_shifted(x4, 2) + x3, _THIRD) + x2, 1)
    product = _EXP_EIGHTH + _high(x + tail, _EXP_EIGHTH)
    rest = low - a
    for k, factor in enumerate(_EXP_POWERS):
        product = np.where(rest & (1 << (24 + k)), _high(product, factor), product)
    return np.asarray(np.where(a == 0, _ONE, product))


def reciprocal(total: Array) -> tuple[Array, Array]:
    """1 / total for a positive total in Q12.19: Q0.31, and the bits by which it is still to be shifted right."""
    zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros of a uint32
    fraction = (total << zeros) - (1 << 31)  # total = (1 + fraction) 2^..., Q0.31
    half = _half_sum(fraction)
    x = _48_17 + _high(half, _32_17)
    for _ in range(3):
        x = x + _doubled(_high(x, (1 << 29) - _high(half, x)), 2)
    return _doubled(x, 1), _SUM_BITS - zeros


def _half_sum(x: Array) -> Array:
    """(x + 1) / 2 in Q0.31, halves away from zero."""
    total = x + _ONE
    return np.asarray(np.sign(total) * ((np.abs(total) + 1) >> 1))


def tflite_softmax(x: Array, *, multiplier: int, left_shift: int, diff_min: int) -> Array:
    """Softmax along the last axis: int8 at the scale 1/256, zero point -128.

    Args:
        x: int8.
        multiplier: Of the scale of x times 2^26, with `left_shift`: a normalised factor.
        left_shift: At least 0.
        diff_min: The least x - max whose exponential counts.
    """
    if not (0 <= left_shift <= 31 and 0 <= multiplier <= _ONE and diff_min <= 0):
        raise BadFileError("constants of a softmax that do not fit", found=(multiplier, left_shift, diff_min))
    codes = wide(x)
    below = codes - codes.max(axis=-1, keepdims=True)
    counts = below >= diff_min
    scaled = _high(np.where(counts, below, 0) << left_shift, multiplier)
    exponential = np.where(counts, exp_negative(np.maximum(scaled, -(1 << 31))), 0)
    total = np.where(counts, _shifted(exponential, _SUM_BITS), 0).sum(axis=-1, keepdims=True)
    factor, bits = reciprocal(fitted(total, "I32").astype(np.int64))
    probabilities = _shifted(_high(exponential, factor), bits + 31 - 8)
    return np.asarray(np.clip(np.where(counts, probabilities, 0) - 128, -128, 127).astype(np.int8))


TFLITE_ROWS: tuple[Op, ...] = (
    Op(
        "TfliteSoftmax",
        "TFLite",
        "I8: softmax over the last axis at the scale 1/256, zero point -128",
        tflite_softmax,
        interval=proof.tflite_softmax,
        result="I8",
    ),
)
