"""Terms that speak of some elements only: a mask over the grid, and the run of codes that it selects.

The mask has one bit per element of the grid, or one per column ([1, columns], valid for every row). The codes are a
single run in row-major order, so a range of rows is a range of the run: as many codes in as were selected before.
Codes of vectors that stand in a column are selected by columns.
"""

from __future__ import annotations

import math
import weakref

import numpy as np

from qdeploy.ir.codes import Reader, read_codes, read_grid
from qdeploy.ir.tensor import Array, Codes, Shape

_STEP = 1 << 21  # elements of a mask that are counted at a time


def mask_rows(where: Codes, grid: Shape, start: int, stop: int) -> Array:
    """Returns which elements of rows [start, stop) of the grid are selected: bool [stop - start, *grid[1:]]."""
    if where.shape == grid:
        return read_codes(where, start, stop).astype(bool)
    return np.broadcast_to(read_codes(where, 0, where.shape[0]).astype(bool), (stop - start, *grid[1:]))


def selected_before(where: Codes, grid: Shape, row: int) -> int:
    """Returns how many elements are selected in the rows before `row`."""
    if where.shape == grid:
        return int(_prefix(where)[row])
    return row * math.prod(grid[1:-1]) * int(np.count_nonzero(read_codes(where, 0, where.shape[0])))


def under_mask(where: Codes, mask: Array, first: int, resident: int | None) -> Reader:
    """Returns a reader that puts each selected code in its place in the grid; the places between hold zero.

    Args:
        where: The mask.
        mask: Its rows that will be read.
        first: The row at which `mask` begins.
        resident: How many leading planes to read; None: all.
    """

    def read(codes: Codes, start: int, stop: int) -> Array:
        of_vectors = codes.block[0] != 1
        chosen = mask_rows(where, codes.shape, start, stop) if of_vectors else mask
        before = selected_before(where, codes.shape, start if of_vectors else first)
        length = selected_before(where, codes.shape, codes.shape[0])
        run = read_grid(codes, (length,), before, before + int(np.count_nonzero(chosen)), resident)
        grid = np.zeros(chosen.shape, run.dtype)
        grid[chosen] = run
        return grid

    return read


_PREFIX: dict[int, tuple[weakref.ref[Codes], Array]] = {}


def _prefix(where: Codes) -> Array:
    """int64 [rows + 1]: selected elements before each row. Counted once per mask, for as long as the mask lives."""
    key = id(where)
    if key not in _PREFIX:
        counts = np.zeros(where.shape[0] + 1, np.int64)
        step = max(1, _STEP // max(1, math.prod(where.shape[1:])))
        for start in range(0, where.shape[0], step):
            stop = min(start + step, where.shape[0])
            mask = read_codes(where, start, stop).reshape(stop - start, -1)
            counts[start + 1 : stop + 1] = np.count_nonzero(mask, axis=1)
        _PREFIX[key] = weakref.ref(where, lambda _: _PREFIX.pop(key, None)), counts.cumsum()
    return _PREFIX[key][1]
