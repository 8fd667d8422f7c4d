"""Levels, and an interval of scales, for groups of floats.

The float of greatest magnitude of a group stands on one of a few levels. For each of them in turn the others follow:
float / scale lies next to one level, every level narrows the interval of scales that all floats so far allow, and a
group lies on the grid when the interval is not empty at the end. A few columns are tried before all are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qdeploy.recover.families import Family
from qdeploy.recover.intervals import Stored

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_PROBED = 8  # columns that are tried first
_SURE = 0.4  # of the distance between whole numbers: a quotient less uncertain than that has one nearest
_ROUNDS = 4
_PIECES = 8
MANY = 32  # levels from which on the first estimate of a scale is too coarse to tell neighbours apart

Candidate = tuple[int, int]
"""A table, and which of its levels the greatest float stands on, counted from the greatest."""


class Solution(NamedTuple):
    """What groups of floats may be made from.

    Attributes:
        fits: Whether a group lies on the grid [n]; the rest is of those that do.
        levels: The level of each float [n, group].
        low: The least scale [n].
        high: The greatest [n].
        table: The table that a group chooses [n].
        used: Candidates in the order of how many groups they solved.
    """

    fits: Bools
    levels: Float64
    low: Float64
    high: Float64
    table: npt.NDArray[np.int64]
    used: tuple[Candidate, ...]


def candidates(family: Family) -> tuple[Candidate, ...]:
    """Every candidate of a family, the usual ones first: the greatest float on the greatest level, or on the next.

    Levels whose doubles are levels, too, need not be tried: twice the levels at half the scale are the same floats.
    """
    tables = family.levels()
    if not family.whole:
        ranks = [_undoubled(table) for table in tables]
        return tuple((t, i) for i in range(max(map(len, tables))) for t in range(len(tables)) if i in ranks[t])
    most = (len(tables[0]) - 1) // 2
    if not family.zero:
        return tuple((0, i) for i in range(most // 2 + 1))
    middle = most // 2  # with a zero point either side may take all of the range
    return tuple((0, i) for i in (*range(middle, -1, -1), *range(middle + 1, most - most // 4 + 1)) if i < most)


def _undoubled(levels: Float64) -> range:
    """Ranks of levels to try: of a minifloat those of which the double is none, else all."""
    positive = levels[levels > 0][::-1]
    known = set(levels.tolist())
    least = int(np.sum([2 * level not in known for level in positive]))
    closed = all(2 * level in known for level in positive[least:]) and np.array_equal(levels, -levels[::-1])
    return range(least if closed else max(len(positive), len(levels) - len(positive)))


def solve(x: Stored, family: Family, order: Sequence[Candidate] = ()) -> Solution:
    """Solves groups one by one.

    Args:
        x: Floats [n, group].
        family: The levels.
        order: Candidates to try first.
    """
    count = len(x.values)
    tables = [_Levels(levels) for levels in family.levels()]
    fits = ~np.any(x.values, axis=1)
    levels, table = np.zeros(x.values.shape), np.zeros(count, np.int64)
    low, high = np.ones(count), np.ones(count)
    used: dict[Candidate, int] = {}
    greatest = np.argmax(np.abs(x.values), axis=1)
    for candidate in _ordered(order, candidates(family)):
        left = np.flatnonzero(~fits)
        if not len(left):
            break
        which, rank = candidate
        level = tables[which].ranked(rank, x.values[left, greatest[left]])
        left, level = left[level != 0], level[level != 0]
        left, level = _probed(x, tables[which], left, level, greatest)
        if not len(left):
            continue
        part, at = x.of(left), (np.arange(len(left)), greatest[left])
        start = part.low[at] / np.abs(level), part.high[at] / np.abs(level)
        ok, on, below, above = _searched(part, tables[which], *start)
        ok &= _within_range(on, family)
        won = left[ok]
        fits[won], table[won] = True, which
        levels[won], low[won], high[won] = on[ok], below[ok], above[ok]
        if len(won):
            used[candidate] = len(won)
    ranked = sorted(used, key=lambda c: -used[c])
    return Solution(fits, levels, low, high, table, tuple(ranked))


def nearest_level(x: Float64, levels: Float64) -> Float64:
    """The level next to each number: levels ascending, or whole numbers around zero."""
    return _Levels(levels).nearest(x)


class _Levels:
    """Ascending levels with a zero among them."""

    def __init__(self, levels: Float64) -> None:
        self._levels = levels
        self._middles = (levels[1:] + levels[:-1]) / 2
        self.whole = bool(np.array_equal(levels, np.arange(levels[0], levels[-1] + 1)))
        self._positive, self._negative = levels[levels > 0][::-1], levels[levels < 0]

    @property
    def many(self) -> bool:
        """Whether one estimate of the scale does not tell neighbours apart."""
        return self.whole and len(self._levels) > MANY

    def nearest(self, x: Float64) -> Float64:
        """The level next to each number."""
        if self.whole:
            return np.clip(np.rint(x), self._levels[0], self._levels[-1])
        on: Float64 = self._levels[np.searchsorted(self._middles, x)]
        return on

    def ranked(self, rank: int, signs: Float64) -> Float64:
        """The level of a rank, on the side of each number's sign; 0 where that side has fewer."""
        sides = [side[rank] if rank < len(side) else 0.0 for side in (self._positive, self._negative)]
        return np.where(signs > 0, *sides)


def _ordered(first: Sequence[Candidate], rest: Sequence[Candidate]) -> Iterator[Candidate]:
    yield from dict.fromkeys((*first, *rest))


def _probed(
    x: Stored, table: _Levels, left: npt.NDArray[np.int64], level: Float64, greatest: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Float64]:
    """The groups whose first columns do not contradict a candidate."""
    count = 4 * _PROBED if table.many else _PROBED
    if x.values.shape[1] <= 2 * count or not len(left):
        return left, level
    columns = np.concatenate((np.broadcast_to(np.arange(count), (len(left), count)), greatest[left, None]), axis=1)
    part = x.of((left[:, None], columns))
    start = part.low[:, -1] / np.abs(level), part.high[:, -1] / np.abs(level)
    ok = _narrowed(part, table, *start)[0]
    return left[ok], level[ok]


def _searched(x: Stored, table: _Levels, low: Float64, high: Float64) -> tuple[Bools, Float64, Float64, Float64]:
    """As `_narrowed`; of many levels the interval that is left is searched in parts where it does not decide."""
    fits, on, below, above = _narrowed(x, table, low, high)
    if not table.many:
        return fits, on, below, above
    for piece in range(_PIECES):
        undecided = np.flatnonzero(~fits & (below <= above))
        if not len(undecided):
            break
        least, step = below[undecided], (above - below)[undecided] / _PIECES
        part = _narrowed(x.of(undecided), table, least + piece * step, least + (piece + 1) * step)
        won = undecided[part[0]]
        fits[won] = True
        on[won], below[won], above[won] = (column[part[0]] for column in part[1:])
    return fits, on, below, above


def _narrowed(x: Stored, table: _Levels, low: Float64, high: Float64) -> tuple[Bools, Float64, Float64, Float64]:
    """Levels and the interval of scales that all floats of a group allow, from a first interval on.

    Returns:
        Whether a group fits [n], its levels [n, group], the least and the greatest scale [n].
    """
    rounds = _ROUNDS if table.many else 1
    on = np.zeros(x.values.shape)
    for _ in range(rounds):
        scale = np.where(low <= high, (low + high) / 2, 1.0)
        quotient = x.values / scale[:, None]
        on = table.nearest(quotient)
        magnitude = np.abs(on)
        counts = magnitude > 0
        if table.many:  # those whose level is sure narrow the scale, until most are
            width = (high - low) / (2 * scale)
            counts &= np.abs(quotient) * width[:, None] + (x.high - x.low) / scale[:, None] / 2 < _SURE
        divisor = np.where(counts, magnitude, 1.0)
        low = np.maximum(low, np.where(counts, x.low / divisor, 0.0).max(axis=1))
        high = np.minimum(high, np.where(counts, x.high / divisor, np.inf).min(axis=1))
        if not np.any(low <= high):
            break
    same_sign = np.sign(on) == np.sign(x.values)
    fits = same_sign.all(axis=1) & (low <= high)
    if table.many:
        middle = np.abs(on) * ((low + high) / 2)[:, None]
        slack = (x.high - x.low) / 2  # the scale is chosen later; the proof is that the floats are decoded again
        fits &= ((middle >= x.low - slack) & (middle <= x.high + slack)).all(axis=1)
    return fits, on, low, high


def _within_range(levels: Float64, family: Family) -> Bools:
    """Whether whole numbers fit into the bits: with a zero point, or as they are, or with a negative scale."""
    if not family.whole:
        return np.ones(len(levels), np.bool_)
    least, most = np.minimum(levels.min(axis=1), 0), np.maximum(levels.max(axis=1), 0)
    fits: Bools
    if family.zero:
        fits = most - least <= (1 << family.bits) - 1
        return fits
    low, high = family.range
    fits = ((least >= low) & (most <= high)) | ((-most >= low) & (-least <= high))
    return fits
