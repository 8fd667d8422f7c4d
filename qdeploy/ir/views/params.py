"""Parameters of a grid by rows of the matrix: scales, zero points and offsets at a common group of columns.

The grid of codes may be folded: a row of the matrix is then several rows of the grid, as where blocks of 64 weights are
the rows of the grid. Groups may be runs of columns, or classes of columns that an index names (act-order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes, decode_lowrank, decode_param
from qdeploy.ir.tensor import Array, Codes, LowRank, Param, Shape

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

    @classmethod
    def under(cls, shape: Shape, decoded: Shape) -> Grid | None:
        """The grid under a matrix; None where either is not a matrix, or their rows do not fit."""
        if len(shape) != 2 or len(decoded) != 2:
            return None
        (n, k), (rows, columns) = shape, decoded
        if n * k != rows * columns or not n * k or k % columns:
            return None
        return cls((n, k), columns, k // columns)

    @classmethod
    def itself(cls, decoded: Shape) -> Grid | None:
        """The grid itself as a matrix; None where it is not a matrix."""
        return cls.under(decoded, decoded)

    def codes(self, codes: Codes) -> RowReader:
        """Reads codes that are one element each: unsigned integers [rows of the matrix, K]."""

        def read(start: int, stop: int) -> Array:
            return read_codes(codes, start * self.fold, stop * self.fold).reshape(stop - start, self.shape[1])

        return read


@dataclass(frozen=True)
class Grouping:
    """Groups of columns over which no parameter changes.

    Attributes:
        grid: Under the matrix.
        group: Columns per group; the last group may be short. With an index, how many there are on average.
        groups: How many groups there are.
        index: Group of each column, int [K], where groups are not runs of columns.
    """

    grid: Grid
    group: int
    groups: int
    index: Array | None = None

    def spread(self, param: Param) -> RowReader:
        """Reads a parameter: float32 [rows of the matrix, groups]."""
        return spread(param, self.grid, self.group, self.groups)

    def factor(self, scale: Param) -> RowReader:
        """Reads a scale as what it multiplies by: its reciprocal, rounded to float32, where the source divides."""
        read = self.spread(scale)
        return (lambda start, stop: (1 / read(start, stop)).astype(np.float32)) if scale.divide else read

    def columns(self, numbers: Array) -> Array:
        """Numbers per group as numbers per column: [rows, groups] -> [rows, K]."""
        which = np.arange(self.grid.shape[1]) // self.group if self.index is None else self.index
        return numbers[:, which]


def grouping(params: list[Param], grid: Grid) -> Grouping | None:
    """The groups of some parameters; None where they do not lie in blocks, or have more than one index."""
    indices = {p.index.key if p.index else "" for p in params if p.values.decoded_shape[-1] > 1}
    if not all(is_blockwise(p, grid) for p in params) or len(indices) > 1:
        return None
    index = next((p.index.read() for p in params if p.index is not None), None)
    if index is None:
        group = common_group(params, grid)
        return Grouping(grid, group, -(-grid.shape[1] // group))
    groups = max(p.values.decoded_shape[1] for p in params)
    group = -(-grid.shape[1] // groups)
    in_order = np.array_equal(index, np.arange(grid.shape[1]) // group)
    return Grouping(grid, group, groups, None if in_order else index)


def two_levels(param: Param, groups: Grouping) -> tuple[RowReader, RowReader, int] | None:
    """A parameter that is a product of small numbers and one number per `span` groups.

    Returns:
        What reads the small numbers, float32 [rows, groups], and the ones above them, float32 [rows, ceil(groups /
        span)], and the span; None where the parameter is anything else.
    """
    values, shape = param.values, groups.grid.shape
    if not isinstance(values, Codes) or param.index is not None or param.divide or values.scale is None:
        return None
    above, plain = values.scale, values.zero is None and values.offset is None
    fits = param.tile == (1, groups.group) and values.decoded_shape == (shape[0], groups.groups)
    if not plain or not fits or above.divide or above.index is not None or len(above.tile) != 2:
        return None
    span = min(above.tile[1], groups.groups)
    small = spread(
        replace(param, values=replace(values, scale=None)), Grid(shape, shape[1]), groups.group, groups.groups
    )

    def read(start: int, stop: int) -> Array:
        return np.ascontiguousarray(decode_param(above, slice(start, stop), values.decoded_shape)[:, ::span])

    return small, read, span


def is_blockwise(param: Param, grid: Grid) -> bool:
    """Whether a param has one number per run of columns (or per class of columns) and per row or run of rows."""
    if len(param.tile) != 2 or (param.index is None and param.tile[1] == 1 < grid.columns):
        return False
    if grid.fold == 1:
        return True
    rows_fit = param.tile[0] == 1 or param.tile[0] >= grid.shape[0] * grid.fold
    return rows_fit and param.index is None and grid.columns % min(param.tile[1], grid.columns) == 0


def common_group(params: list[Param], grid: Grid) -> int:
    """The greatest run of columns over which no param changes; params have no index.

    Runs begin at the first column, so that the last one may be short; a param that is one for a row has no say.
    """
    return math.gcd(*(p.tile[1] for p in params if p.tile[1] < grid.columns)) or grid.columns


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
