"""Exact arithmetic of integer graphs: fixed-point factors, roundings, the integer square root.

A factor is dyadic: `m / 2^e` with m in [2^30, 2^31) (or 0) and e in 1..62, so that the product of an int32 and m fits
an int64 and rounding is one addition and one shift (HAWQ-V3, arXiv 2011.10680, section 3.2). Everything is computed in
int64; what does not fit a stated type is an error and never wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.tensor import Array

MULTIPLIER = (1 << 30, (1 << 31) - 1)
SHIFT = (1, 62)
_INT64 = 1 << 63
_FLOAT32_EXACT, _FLOAT64_EXACT = 1 << 24, 1 << 53


def wide(x: Array) -> Array:
    """Integers as int64; BadFileError for anything else."""
    if x.dtype.kind not in "iu" and x.dtype.name not in ("int4", "uint4", "int2", "uint2"):
        raise BadFileError("an integer op takes integers only", found=x.dtype)
    return x.astype(np.int64)


def magnitude(x: Array) -> int:
    """The greatest absolute value, as a Python integer."""
    return max(int(x.max()), -int(x.min())) if x.size else 0


def fitted(x: Array, dtype: str) -> Array:
    """Returns int64 numbers in a type that holds all of them; BadFileError where it does not."""
    limits = np.iinfo(element_dtype(dtype))
    if x.size and not (limits.min <= x.min() and x.max() <= limits.max):
        extreme = int(x.max() if x.max() > limits.max else x.min())
        raise BadFileError(
            "the result of an integer op does not fit its type",
            found=extreme,
            allowed=f"{limits.min}..{limits.max} ({dtype})",
        )
    return x.astype(limits.dtype)


def below(bound: int, limit: int, what: str) -> None:
    """Raises BadFileError where an intermediate result could reach a limit."""
    if bound >= limit:
        raise BadFileError(f"{what} can overflow", found=bound, allowed=f"below {limit}")


def product_dtype(bound: int) -> np.dtype[Any]:
    """The fastest type in which a sum of products is exact, given what its terms' magnitudes add up to."""
    below(bound, _INT64, "a sum of products")
    if bound < _FLOAT32_EXACT:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if bound < _FLOAT64_EXACT else np.dtype(np.int64)


def half_up(p: Array, e: Array) -> Array:
    """floor(p / 2^e + 1/2)."""
    return np.asarray((p + (np.int64(1) << (e - 1))) >> e)


def half_even(p: Array, e: Array) -> Array:
    """P / 2^e to the nearest, halves to even: as IEEE and PyTorch round."""
    floor = p >> e
    rest, half = p - (floor << e), np.int64(1) << (e - 1)
    return np.asarray(floor + ((rest > half) | ((rest == half) & (floor & 1 == 1))))


def half_away(p: Array, e: Array) -> Array:
    """P / 2^e to the nearest, halves away from zero."""
    return np.asarray(np.sign(p) * half_up(np.abs(p), e))


SINGLE_ROUNDINGS: dict[str, Callable[[Array, Array], Array]] = {
    "half_up": half_up,
    "half_even": half_even,
    "half_away": half_away,
}
ROUNDINGS = (*SINGLE_ROUNDINGS, "tflite_double")


def dyadic_product(x: Array, multiplier: Array, shift: Array, rounding: str) -> Array:
    """Returns round(x * multiplier / 2^shift), int64, for int64 arguments that are broadcast.

    Raises:
        BadFileError: The factor is not dyadic, or the product does not fit an int64.
        UnsupportedError: An unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise UnsupportedError("unknown rounding", found=rounding, allowed=", ".join(ROUNDINGS))
    _check_factor(multiplier, shift)
    if rounding == "tflite_double":
        return _rounded_twice(x, multiplier, shift)
    widest = int(shift.max()) if shift.size else 1
    below(magnitude(x) * magnitude(multiplier) + (1 << (widest - 1)), _INT64, "the product of a requantization")
    return SINGLE_ROUNDINGS[rounding](x * multiplier, shift)


def _check_factor(multiplier: Array, shift: Array) -> None:
    legal = (multiplier == 0) | ((multiplier >= MULTIPLIER[0]) & (multiplier <= MULTIPLIER[1]))
    if not legal.all():
        raise BadFileError(
            "a multiplier is not normalised",
            found=int(multiplier[~legal][0]),
            allowed=f"0 or {MULTIPLIER[0]}..{MULTIPLIER[1]}",
        )
    legal = (shift >= SHIFT[0]) & (shift <= SHIFT[1])
    if not legal.all():
        raise BadFileError("a shift is out of range", found=int(shift[~legal][0]), allowed=f"{SHIFT[0]}..{SHIFT[1]}")


def _rounded_twice(x: Array, multiplier: Array, shift: Array) -> Array:
    """TFLite's MultiplyByQuantizedMultiplier: a doubling high product, then a rounding division by a power of two.

    The high product is (x * m + nudge) / 2^31 towards zero with nudge 2^30, or 1 - 2^30 below zero. A factor above 1
    shifts x to the left first.
    """
    left, right = np.maximum(31 - shift, 0), np.maximum(shift - 31, 0)
    moved = fitted(x << left, "I32").astype(np.int64)
    product = moved * multiplier
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    mask = (np.int64(1) << right) - 1
    return np.asarray((high >> right) + ((high & mask) > (mask >> 1) + (high < 0)))


def integer_sqrt(x: Array) -> Array:
    """floor(sqrt(x)), exactly, for int64 numbers that are not negative."""
    if x.size and x.min() < 0:
        raise BadFileError("the square root of a negative number", found=int(x.min()))
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)  # off by at most one, corrected below
    root = np.minimum(root, 3037000499)  # its square is the greatest that fits
    root -= root * root > x
    above = np.minimum(root + 1, 3037000499)
    return np.asarray(np.where(above * above <= x, above, root))


def divided(total: Array, count: Array | int, rounding: str) -> Array:
    """Total / count for a positive count: floor, or to the nearest with halves away from zero."""
    if rounding == "floor":
        return np.asarray(total // count)
    if rounding != "half_away":
        raise UnsupportedError("unknown rounding of a mean", found=rounding, allowed="floor, half_away")
    return np.asarray(np.sign(total) * ((np.abs(total) + np.asarray(count) // 2) // count))
