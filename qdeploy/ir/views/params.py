"""Parameters of a grid by rows of the matrix: scales, zero points and offsets at a common group of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qdeploy.ir.decode import decode_codes, decode_lowrank
from qdeploy.ir.tensor import Array, LowRank, Param

RowReader = Callable[[int, int], Array]
"""Gives rows [start, stop)."""

_CHUNK = 1 << 20
"""Numbers of a parameter that are looked at together."""


@dataclass(frozen=True)
class Grid:
    """A grid of codes under a matrix: row n of the matrix is rows [n * fold, (n + 1) * fold) of the grid.

    Attributes:
        shape: Of the matrix, [N, K].
        columns: Of the grid, K / fold.
        fold: Rows of the grid per row of the matrix.
    """

    shape: tuple[int, int]
    columns: int
    fold: int = 1


def is_blockwise(param: Param, grid: Grid) -> bool:
    """Whether a param has one number per run of columns (or per class of columns) and per row or run of rows."""
    if len(param.tile) != 2 or (param.index is None and param.tile[1] == 1 < grid.columns):
        return False
    if grid.fold == 1:
        return True
    rows_fit = param.tile[0] == 1 or param.tile[0] >= grid.shape[0] * grid.fold
    return rows_fit and param.index is None and grid.columns % min(param.tile[1], grid.columns) == 0


def common_group(params: list[Param], grid: Grid) -> int:
    """The greatest run of columns over which no param changes; params have no index."""
    return math.gcd(*(min(p.tile[1], grid.columns) for p in params)) if params else grid.columns


def spread(param: Param, grid: Grid, group: int, groups: int) -> RowReader:
    """Reads a param at groups of `group` columns: float32 [rows of the matrix, groups]."""
    tile = param.tile[0]

    def read(start: int, stop: int) -> Array:
        first, last = start * grid.fold, stop * grid.fold
        small = _values(param, first // tile, -(-last // tile))
        if tile > 1:
            small = np.repeat(small, tile, axis=0)[first % tile : first % tile + last - first]
        if param.index is None:
            wide = -(-grid.columns // group)  # groups in a row of the grid
            which = np.arange(wide) * group // min(param.tile[1], grid.columns)
            small = small if small.shape[1] == wide else small[:, which]
        elif small.shape[1] != groups:
            small = np.broadcast_to(small, (len(small), groups))
        return np.ascontiguousarray(small.reshape(stop - start, groups))

    return read


@dataclass(frozen=True)
class Survey:
    """What values a parameter has: the least, the greatest, and whether all are integers."""

    low: float
    high: float
    whole: bool


def survey(param: Param) -> Survey:
    """Reads a parameter through."""
    low, high, whole = math.inf, -math.inf, True
    for part in _parts(param):
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        whole = whole and bool(np.array_equal(part, np.rint(part)))
    return Survey(low, high, whole)


def distinct(param: Param, limit: int) -> Array | None:
    """The distinct values of a parameter, float32, or None where they are more than `limit`."""
    seen = np.zeros(0, np.float32)
    for part in _parts(param):
        seen = np.union1d(seen, part)
        if len(seen) > limit:
            return None
    return seen


def _parts(param: Param) -> Iterator[Array]:
    rows, columns = param.values.decoded_shape
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield _values(param, start, min(start + step, rows))


def _values(param: Param, start: int, stop: int) -> Array:
    if isinstance(param.values, LowRank):
        return decode_lowrank(param.values, slice(start, stop))
    return decode_codes(param.values, slice(start, stop))
