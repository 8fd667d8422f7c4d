"""Where minimal filtering (winograd.py) is exact, and where it pays.

Exact: the input's transform fits int16, and no sum on the way to four times the output leaves int32, whatever the
input. The bound is taken from the filters at hand: it grows with the sums of their magnitudes, not with their type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.backends.tvm.packing import as_int8
from qdeploy.backends.tvm.targets import LANES
from qdeploy.ir.tensor import Array

MOST_TILES = 64
"""Of a chunk: its sums, 16 places of 16 lanes of int32, then take 64 KB."""
MOST_INPUTS = 4096
"""Tiles times channels of a chunk whose input is transformed where it is used: 128 KB of int16."""
_READ = 0.4
_FILTER = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
"""Magnitudes of the output's transform."""


def form(filters: Array, shape: Sequence[int], limits: tuple[int, int], positions: int) -> dict[str, Any] | None:
    """How a convolution is filtered, or None where the plain one is better or safer.

    Args:
        filters: Integers [O, 3, 3, I], of a convolution with stride and dilation 1.
        shape: Of the output: [N, H, W, ...].
        limits: Least and greatest input, as it is fed.
        positions: Most tiles of a register tile.

    Returns:
        "rows" of tiles of a chunk, "positions": tiles of a register tile, "order" of the loops (winograd.py).
    """
    out, _, _, inner = filters.shape
    down, right = -(-shape[1] // 2), -(-shape[2] // 2)
    if inner % LANES or not _pays(out, inner, down * right, shape[1] * shape[2]) or not _fits(filters, limits):
        return None
    by_chunks = out <= down * right
    most = min(MOST_TILES, MOST_INPUTS // inner) if by_chunks else MOST_TILES
    choices = [
        (rows, n) for rows in range(1, down + 1) if rows * right <= most or rows == 1 for n in range(2, positions + 1)
    ]
    rows, tile = min(choices, key=lambda choice: _cost(choice, down, right))
    return {"rows": rows, "positions": tile, "order": "chunks" if by_chunks else "channels"}


def _cost(choice: tuple[int, int], down: int, right: int) -> tuple[float, int]:
    """Tiles of all chunks, filled up; a register tile reads its filters once. Of equals the greater chunk."""
    rows, positions = choice
    chunks, groups = -(-down // rows), -(-rows * right // positions)
    return chunks * groups * (positions + _READ), -rows


def _pays(out: int, inner: int, tiles: int, outputs: int) -> bool:
    """Vector operations: 2 per 16 products; the transforms' share per tile and channel, and per filter."""
    filtered = tiles * (2 * inner * out + 4 * inner + 8 * out) + 5 * inner * out
    return filtered < 9 / 8 * outputs * inner * out


def _fits(filters: Array, limits: tuple[int, int]) -> bool:
    low, high = min(limits[0], 0), max(limits[1], 0)  # the border is 0
    greatest = max(-low, high)
    if 4 * greatest > np.iinfo(np.int16).max:
        return False
    out, _, _, inner = filters.shape
    codes = as_int8(filters).astype(np.float32).reshape(out, 9, inner)
    transformed = np.kron(_FILTER, _FILTER).astype(np.float32) @ codes  # [O, 16, I], exact: below 2^11
    sums = np.abs(transformed).sum(axis=2, dtype=np.float64).astype(np.int64).reshape(out, 4, 4)
    bounds = np.full((4, 4), 2 * (high - low))  # a difference of two inputs at least along one axis
    bounds[1, 1] = 4 * greatest
    total = np.einsum("af,bg,ofg->oab", _OUTPUT, _OUTPUT, sums * bounds)
    return int(total.max(initial=0)) <= np.iinfo(np.int32).max
