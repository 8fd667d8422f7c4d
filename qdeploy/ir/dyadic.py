"""Real factors as dyadic ones: `m / 2^e`, the form in which an integer network rescales.

    frexp(factor) = (f, p), f in [1/2, 1)        m = floor(f 2^31 + 1/2),  e = 31 - p

m is then in [2^30, 2^31]; the upper end does not fit an int32 and becomes (2^30, e - 1) (HAWQ-V3, arXiv 2011.10680,
section 3.2; its code leaves it). A factor below 2^-32 has an e beyond 62, the most that an int64 product can be shifted
by; it becomes 0 / 2^31, since the product with any int32 is below 1/2 then and rounds to 0. The shift is 31 because a
rounding in two steps takes 31 of it in the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.ir.integer_arithmetic import SHIFT

Int32 = npt.NDArray[np.int32]
ONE = (1 << 30, 30)
"""The factor 1."""


def dyadic(factor: float) -> tuple[int, int]:
    """Returns (m, e) with m / 2^e next to a factor, halves upwards.

    Raises:
        UnsupportedError: The factor is negative, not finite, or 2^29 or more.
    """
    if not 0 <= factor < 2**29:
        raise UnsupportedError("a factor that no multiplier and shift can hold", found=factor, allowed="0 to 2^29")
    fraction, power = math.frexp(factor)
    m, e = math.floor(fraction * (1 << 31) + 0.5), 31 - power
    if m == 1 << 31:
        m, e = m >> 1, e - 1
    return (0, 31) if m == 0 or e > SHIFT[1] else (m, e)


def dyadics(factors: Sequence[float] | npt.NDArray[np.float64]) -> tuple[Int32, Int32]:
    """Multipliers and shifts of several factors: int32 each, [len(factors)]."""
    pairs = [dyadic(float(factor)) for factor in factors]
    return np.array([m for m, _ in pairs], np.int32), np.array([e for _, e in pairs], np.int32)


def quotient(numerator: npt.NDArray[np.float64], denominator: float, *, hawq: bool = False) -> npt.NDArray[np.float64]:
    """The quotient in float64; as HAWQ forms it, both are rounded to float32 first."""
    top = numerator.astype(np.float32).astype(np.float64) if hawq else numerator
    return np.asarray(top / (float(np.float32(denominator)) if hawq else denominator))
