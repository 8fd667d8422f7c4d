"""Groups of floats that are sums of two planes: bit * a + bit * b, with two free scales for every group (DB-LLM).

Such a group has at most three numbers besides zero. Of three, one is the sum of the others; of fewer, each is a scale.
(arXiv 2402.11960, section 3.2: W = a1 b1 + a2 b2 with bits of 0 and 1.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qdeploy.recover.intervals import Stored
from qdeploy.recover.offsets import around, rounded_up, signed

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Which two of three numbers are scales, and which one is their sum."""


class Planes(NamedTuple):
    """What groups of floats may be made from.

    Attributes:
        fits: Whether a group is such a sum [n].
        codes: 1 where the first plane has a bit, 2 where the second has one, 3 for both [n, group].
        first: Its scale, in the type that was asked for [n].
        second: Likewise.
    """

    fits: Bools
    codes: Float64
    first: Float64
    second: Float64


def planes(x: Stored, kind: str) -> Planes:
    """Solves groups [n, group] one by one, with scales of a type ("f16", "bf16", "f32")."""
    count = len(x.values)
    numbers, amount = _distinct(x.values)
    low, high = signed(x, kind)
    result = Planes(amount == 0, np.zeros(x.values.shape), np.ones(count), np.ones(count))
    for one, two, both in _ORDERS:
        left = np.flatnonzero(~result.fits & (amount <= 3) & ((amount == 3) | (both == 2)))
        if not len(left):
            continue
        chosen = numbers[left][:, (one, two, both)]
        inside = [x.values[left] == chosen[:, i, None] for i in range(3)]
        edges = [_edges(low[left], high[left], here) for here in inside]
        fits, first, second = _chosen(edges, amount[left], kind)
        won = left[fits]
        codes = inside[0] * 1.0 + inside[1] * 2.0 + inside[2] * 3.0
        result.fits[won], result.codes[won] = True, codes[fits]
        result.first[won], result.second[won] = first[fits], second[fits]
    return result


def _distinct(values: Float64) -> tuple[Float64, npt.NDArray[np.int64]]:
    """The first three numbers of each group that are not zero [n, 3], nan for none, and how many there are."""
    ordered = np.sort(np.where(values == 0, np.nan, values), axis=1)  # nan comes last
    new = ~np.isnan(ordered)
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    place = np.cumsum(new, axis=1)
    numbers = np.full((len(values), 3), np.nan)
    for i in range(3):
        at = new & (place == i + 1)
        rows = at.any(axis=1)
        numbers[rows, i] = ordered[rows, at[rows].argmax(axis=1)]
    return numbers, new.sum(axis=1)


def _edges(low: Float64, high: Float64, here: Bools) -> tuple[Float64, Float64]:
    """What one number allows; all numbers where a group does not have it."""
    return np.where(here, low, -np.inf).max(axis=1), np.where(here, high, np.inf).min(axis=1)


def _chosen(
    edges: list[tuple[Float64, Float64]], amount: npt.NDArray[np.int64], kind: str
) -> tuple[Bools, Float64, Float64]:
    """Whether there are two scales of a type, and which."""
    (low, high), (low2, high2), (low3, high3) = edges
    middle = (low + high) / 2
    first, second = middle.copy(), middle.copy()
    fits, single = np.zeros(len(low), np.bool_), amount == 1
    for value in around(middle, kind):
        below, above = np.maximum(low2, low3 - value), np.minimum(high2, high3 - value)
        edge = np.where(single, value, rounded_up(np.where(np.isfinite(below), below, 0.0), kind))
        better = ~fits & (value >= low) & (value <= high) & (single | (edge <= above))
        first, second, fits = np.where(better, value, first), np.where(better, edge, second), fits | better
        if fits.all():
            break
    return fits & (first != 0) & (second != 0), first, second
