"""A matrix: looks for the grid that its sampled rows lie on, proves it on every row, and describes it as terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import QTensor
from qdeploy.ir.views import Floats
from qdeploy.recover import scales
from qdeploy.recover.families import Family, families, family
from qdeploy.recover.intervals import Stored, bounds, grouped, narrowest
from qdeploy.recover.offsets import lines
from qdeploy.recover.planes import planes
from qdeploy.recover.solve import MANY, Candidate, Solution, nearest_level, solve
from qdeploy.store.storage import storage_dtype

Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
_SAMPLED_ROWS, _SLAB, _FEW, _FACTORS = 16, 1 << 17, 4, 64


@dataclass(frozen=True)
class Grid:
    """A grid that a matrix lies on.

    Attributes:
        family: The levels.
        group: Columns that share a scale; the width of the matrix for a row, 0 for the whole matrix.
        scale: The type of the scales.
        narrow: The storage type that rounded the floats, where a wider one carries them ("BF16", "F16").
        factor: The scale of the whole matrix; for "e4m3" scales what they are multiplied by.
        order: Candidates that the sampled rows needed, the most frequent first.
    """

    family: Family
    group: int
    scale: str = ""
    narrow: str = ""
    factor: float = 1.0
    order: tuple[Candidate, ...] = ()

    def describe(self) -> str:
        """For example "int4 in groups of 32, scales in f16"."""
        where = f"groups of {self.group}" if self.group else "one group"
        return f"{self.family.name} in {where}, scales in {self.scale}"


class Part(NamedTuple):
    """Rows of a matrix on its grid.

    Attributes:
        levels: Before the scale [rows, columns].
        scales: Signed [rows, groups]; [1, 1] for the whole matrix.
        table: Which table a group takes [rows, groups].
        second: Of a family with a second number for each group: that number [rows, groups].
    """

    levels: Float64
    scales: Float64
    table: npt.NDArray[np.int64]
    second: Float64 | None = None


def find(floats: Floats, wanted: Family | None, groups: Sequence[int]) -> Iterator[Grid]:
    """Grids on which all sampled rows of a matrix lie: few levels before many, coarse groups before fine ones.

    Args:
        floats: The matrix.
        wanted: The levels; None: whichever fit.
        groups: As in `RecoverySpec`.
    """
    rows, width = floats.codes.shape
    step = max(1, rows // _SAMPLED_ROWS)
    sample = np.concatenate([floats.rows(row, row + 1) for row in range(0, rows, step)][:_SAMPLED_ROWS])
    narrow = narrowest(sample)
    rounded = _as_rounded(sample, narrow)
    if not np.isfinite(rounded.astype(np.float64)).all() or not rounded.any():
        return
    for row, columns in _cheapest_first(families() if wanted is None else (wanted,), groups, width):
        grid = _fitted(floats, rounded, Grid(row, columns, narrow=narrow))
        if grid is not None:
            yield grid


def _cheapest_first(rows: Sequence[Family], groups: Sequence[int], width: int) -> list[tuple[Family, int]]:
    """Families with groups, in the order of what a weight would take in codes and scales."""
    pairs = []
    for row in rows:
        for group in groups:
            columns = width if group == -1 else group
            published = len(rows) == 1 or not row.group or group == row.group
            shared = not row.zero and not row.paired and len(row.tables) < 2
            whole = not row.offset or (columns and width % columns == 0)
            if columns <= width and published and whole and (group or shared):
                pairs.append((row, columns))
    return sorted(pairs, key=lambda pair: pair[0].bits + (_scale_bits(pair[0]) / pair[1] if pair[1] else 0))


def _scale_bits(row: Family) -> int:
    return (8 if row.scale else 16) + (8 if row.zero or len(row.tables) > 1 else 0) + (16 if row.paired else 0)


def part(raw: Array, grid: Grid) -> Part:
    """Rows of a matrix, as they are stored, on a grid."""
    rows, width = raw.shape
    raw = _as_rounded(raw, grid.narrow)
    if grid.family.paired:
        codes, first, second = _pairs(grouped(raw, grid.group), grid.family, grid.scale)[1:]
        count = len(codes) // rows
        codes, first = codes.reshape(rows, -1)[:, :width], first.reshape(rows, count)
        return Part(codes, first, np.zeros(first.shape, np.int64), second.reshape(rows, count))
    if not grid.group:
        levels = _in_range(nearest_level(raw.astype(np.float64) / grid.factor, grid.family.levels()[0]), grid.family)
        signed = np.full((1, 1), grid.factor)
        table = np.zeros((rows, 1), np.int64)
    else:
        cut = grouped(raw, grid.group)
        solution = solve(bounds(cut), grid.family, grid.order)
        levels, signed = _signed(solution, grid)
        if grid.family.whole and len(grid.family.levels()[0]) > MANY:  # the scale is known better now
            levels = np.clip(np.rint(cut.astype(np.float64) / signed[:, None]), *grid.family.levels()[0][[0, -1]])
        count = len(cut) // rows
        levels = levels.reshape(rows, -1)[:, :width]
        signed, table = signed.reshape(rows, count), solution.table.reshape(rows, count)
    return Part(levels, signed, table)


def share(floats: Floats, grid: Grid, described: QTensor) -> float:
    """The share of rows of which every float is decoded again; 1.0 is the proof that the matrix lies on the grid."""
    rows, _ = floats.codes.shape
    count = 0
    for start, stop in slabs(floats):
        raw = floats.rows(start, stop)
        again = _as_rounded(described.decode(slice(start, stop)).astype(raw.dtype), grid.narrow)
        count += int((again.astype(raw.dtype) == raw).all(axis=1).sum())
    return count / rows


def slabs(floats: Floats) -> Iterator[tuple[int, int]]:
    """Row ranges that are worked on at a time."""
    rows, width = floats.codes.shape
    step = max(1, _SLAB // width)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


# ---- looking for a grid


def _fitted(floats: Floats, sample: Array, grid: Grid) -> Grid | None:
    """The grid with all that is to be known of it, where the sample lies on it."""
    if grid.family.paired:
        return _of_pairs(sample, grid)
    if not grid.group:  # the greatest float of all decides which level is the highest
        row = _greatest_row(floats)
        sample = np.concatenate((sample, _as_rounded(floats.rows(row, row + 1), grid.narrow)))
    cut = grouped(sample, grid.group or sample.size)
    most = max(len(levels) for levels in grid.family.levels())
    for some in (cut[:1], cut[:_FEW], cut):
        if _distinct(some) > most or (grid.family.whole and _too_close(some[:1], grid.family)):
            return None
        solution = solve(bounds(some), grid.family)
        if not solution.fits.all():
            return None
    grid = replace(grid, order=solution.used)
    if not grid.group:
        return _of_one_scale(floats, grid, bounds(sample), solution)
    if grid.family.scale == "e4m3":
        return _of_two_scales(floats, grid)
    for kind in (grid.family.scale,) if grid.family.scale else scales.TYPES:
        if scales.within(solution.low, solution.high, kind)[1].all():
            return replace(grid, scale=kind)
    return None


def _pairs(cut: Array, row: Family, kind: str) -> tuple[npt.NDArray[np.bool_], Float64, Float64, Float64]:
    """Which groups fit, their codes, and the two numbers of each."""
    return (lines(bounds(cut), row.bits, kind) if row.offset else planes(bounds(cut), kind))[:4]


def _of_pairs(sample: Array, grid: Grid) -> Grid | None:
    """The narrowest type of both numbers with which the sample lies on the grid."""
    cut, row = grouped(sample, grid.group), grid.family
    if max(len(np.unique(group.astype(np.float64))) for group in cut[:_FEW]) > 1 << row.bits:
        return None
    for kind in ("", *scales.TYPES) if row.offset else scales.TYPES:
        fits = all(_pairs(some, row, kind)[0].all() for some in (cut[:1], cut[:_FEW], cut))
        if fits and kind:
            return replace(grid, scale=kind)
        if not fits and not kind:
            return None
    return None


def _greatest_row(floats: Floats) -> int:
    """The row that holds the float of greatest magnitude."""
    best = [(np.abs(floats.rows(*span).astype(np.float32)).max(axis=1), span[0]) for span in slabs(floats)]
    return max((float(most.max()), start + int(most.argmax())) for most, start in best)[1]


def _distinct(cut: Array) -> int:
    """The greatest number of distinct floats in one of a few groups."""
    return max(len(np.unique(np.abs(group.astype(np.float64)))) for group in cut[:_FEW])


def _too_close(group: Array, row: Family) -> bool:
    """Whether two floats of a group are nearer to each other than two whole numbers can be, roundings aside."""
    x = bounds(group)
    order = np.argsort(x.values[0])
    values, slack = x.values[0][order], (x.high - x.low)[0][order] / 2
    gaps, loose = np.diff(values), slack[1:] + slack[:-1]
    step = float(np.abs(values).max()) / float(row.levels()[0][-1])
    return bool(np.any((gaps > 0) & (gaps + loose < 0.99 * step)))


def _of_one_scale(floats: Floats, grid: Grid, sample: Stored, solution: Solution) -> Grid | None:
    """The scale that all floats of the matrix allow."""
    low, high = float(solution.low[0]), float(solution.high[0])
    least = most = 0.0
    for start, stop in slabs(floats):
        raw = floats.rows(start, stop)
        x = bounds(_as_rounded(raw, grid.narrow))
        level = nearest_level(x.values / ((low + high) / 2), grid.family.levels()[0])
        least, most = min(least, float(level.min())), max(most, float(level.max()))
        level = np.abs(level)
        some = level > 0
        low = max(low, float((x.low[some] / level[some]).max(initial=low)))
        high = min(high, float((x.high[some] / level[some]).min(initial=high)))
    for kind in (grid.family.scale,) if grid.family.scale else scales.TYPES:
        value, fine = scales.within(np.array([low]), np.array([high]), kind)
        if fine[0]:
            negated = grid.family.whole and (least < grid.family.range[0] or most > grid.family.range[1])
            return replace(grid, scale=kind, factor=-float(value[0]) if negated else float(value[0]))
    return None


def _of_two_scales(floats: Floats, grid: Grid) -> Grid | None:
    """NVFP4: the factor by which every group's scale is a number of e4m3; the greatest is 448, or one of the next."""
    spans = [_intervals(floats, grid, *span) for span in slabs(floats)]
    if any(span is None for span in spans):
        return None
    low, high = (np.concatenate([span[i] for span in spans if span is not None]) for i in (0, 1))
    if not len(low):
        return None
    values = family("e4m3").levels()[0]
    values = values[values > 0][::-1]
    greatest = int(np.argmax(high))
    for top in values[:8]:
        least, most = low[greatest] / top, high[greatest] / top
        code = np.maximum(nearest_level((low + high) / (least + most), family("e4m3").levels()[0]), values[-1])
        for factor in _factors(float((low / code).max()), float((high / code).min())):
            scale = (code.astype(np.float32) * factor).astype(np.float64)
            if np.all((scale >= low) & (scale <= high)):
                return replace(grid, scale="e4m3", factor=float(factor))
    return None


def _factors(low: float, high: float) -> Iterator[np.float32]:
    """The float32 numbers of an interval, and the next ones: products with them are rounded to float32."""
    number = np.nextafter(np.float32(low), np.float32(0))
    for _ in range(_FACTORS):
        if number > 0:
            yield number
        if number > high:
            return
        number = np.nextafter(number, np.float32(np.inf))


def _intervals(floats: Floats, grid: Grid, start: int, stop: int) -> tuple[Float64, Float64] | None:
    """The intervals of the scales of all groups that are not zero; None where one is on no grid."""
    raw = floats.rows(start, stop)
    cut = grouped(_as_rounded(raw, grid.narrow), grid.group)
    solution = solve(bounds(cut), grid.family, grid.order)
    if not solution.fits.all():
        return None
    some = solution.levels.any(axis=1)
    return solution.low[some], solution.high[some]


# ---- scales and signs


def _signed(solution: Solution, grid: Grid) -> tuple[Float64, Float64]:
    """Levels [n, group] and scales [n] in the type of the grid: a scale is negative where that brings them in range."""
    if grid.family.scale == "e4m3":
        values = family("e4m3").levels()[0]
        middle = (solution.low + solution.high) / 2 / grid.factor
        value = np.maximum(nearest_level(middle, values), values[values > 0][0])
    else:
        value, _ = scales.within(solution.low, solution.high, grid.scale)
    value = np.where(solution.levels.any(axis=1), value, 1.0)
    if not grid.family.whole or grid.family.zero:
        return solution.levels, value
    low, high = grid.family.range
    negated = (solution.levels.min(axis=1) < low) | (solution.levels.max(axis=1) > high)
    sign = np.where(negated, -1.0, 1.0)
    return solution.levels * sign[:, None], value * sign


def _in_range(levels: Float64, row: Family) -> Float64:
    """Whole numbers within what the bits hold; a number beyond it is left to the proof."""
    return np.clip(levels, *row.range) if row.whole else levels


def _as_rounded(raw: Array, narrow: str) -> Array:
    """Rows in the type that rounded them."""
    return raw if not narrow else raw.astype(storage_dtype(narrow))
