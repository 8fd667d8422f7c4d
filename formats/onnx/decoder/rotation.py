"""Rotary frequencies from tables of cosines and sines, which is all that a graph holds of them.

    cos[p, i] = factor * cos(p * f[i])        sin[p, i] = factor * sin(p * f[i])        p = 0, 1, ...

Row 0 is the factor. Row 1 gives f up to the rounding of float32, and every doubling of p halves what is left open: the
angle at 2 p is known from f well enough to say how many turns it has made. At powers of two, p * f is exact in float32,
so a table of 2^17 rows fixes every frequency to its last bit. A short table does not, but mostly its frequencies are
powers of one base: where those of a round base give the table as well, they are what was meant.
"""

from __future__ import annotations

import numpy as np

from qdeploy.ir.tensor import Array, Float32

ROUNDING = {"F32": 3e-6, "F16": 6e-4, "BF16": 5e-3}
"""How far a table of this type may be from its frequencies: a few of its roundings."""


def frequencies(cos: Array, sin: Array, kind: str = "F32") -> tuple[Float32, float] | None:
    """The frequencies of a table.

    Args:
        cos: [positions, pairs].
        sin: The same shape.
        kind: The type that they are stored in: F32, F16 or BF16.

    Returns:
        float32 [pairs], and the factor; None where the tables are no rotation by positions from 0 on.
    """
    if cos.shape != sin.shape or cos.ndim != 2 or len(cos) < 2 or not cos.size or not np.isfinite([cos, sin]).all():
        return None
    factor = float(cos[0].mean(dtype=np.float64))
    if factor <= 0 or np.ptp(cos[0]) > 0 or np.any(sin[0]):
        return None
    factor = float(np.float32(factor))
    estimate, tolerance = _unwrapped(cos, sin), ROUNDING[kind]
    for candidate in (*_of_round_bases(estimate), estimate.astype(np.float32)):
        if _gives(candidate, factor, cos, sin, tolerance * max(factor, 1.0)):
            return candidate, factor
    return None


def _unwrapped(cos: Array, sin: Array) -> Array:
    """Frequencies in float64, from rows 1, 2, 4, ..."""
    estimate: Array = np.arctan2(sin[1], cos[1]).astype(np.float64)
    estimate = np.where(estimate < -1e-6, estimate + 2 * np.pi, estimate)
    place = 2
    while place < len(cos):
        angle = np.arctan2(sin[place], cos[place]).astype(np.float64)
        turns = np.round((place * estimate - angle) / (2 * np.pi))
        estimate = (angle + 2 * np.pi * turns) / place
        place *= 2
    return estimate


def _of_round_bases(estimate: Array) -> list[Float32]:
    """base^(-i / pairs) for bases of few digits near the one that the frequencies suggest, in both usual roundings."""
    pairs = len(estimate)
    if pairs < 2 or estimate[1:].min() <= 0:
        return []
    base = float(np.exp(-np.log(estimate[-1]) * pairs / (pairs - 1)))
    exponents = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    candidates = []
    for digits in (1, 2, 3, 4, 5, 6):
        round_base = float(f"{base:.{digits - 1}e}")
        powers = np.power(round_base, exponents.astype(np.float64)).astype(np.float32)
        candidates.append(np.float32(1) / powers)
    return candidates


def _gives(inv_freq: Array, factor: float, cos: Array, sin: Array, tolerance: float) -> bool:
    """Whether frequencies give the tables, by the angles in float32 that everyone computes."""
    for start in range(0, len(cos), 4096):
        place = np.arange(start, min(start + 4096, len(cos)), dtype=np.float32)
        angle = (place[:, None] * inv_freq[None, :].astype(np.float32)).astype(np.float64)
        slack = tolerance + _doubt(place) * factor
        for table, turn in ((cos, np.cos), (sin, np.sin)):
            if np.any(np.abs(turn(angle) * factor - table[start : start + len(place)]) > slack[:, None]):
                return False
    return True


def _doubt(place: Array) -> Array:
    """How far the rounding of an angle in float32 moves it, and with it its cosine."""
    doubt: Array = place.astype(np.float64) * 2.0**-23
    return doubt
