"""Params laid over their owner: one number per tile, without repeating it where a broadcast says the same.

An owner of extent n and a tile of t gives ceil(n / t) tiles; the last one is cropped. Where tiles divide the rows at
hand, every axis of the owner is split into (tiles, elements of a tile), and the param broadcasts along the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Array, Codes, LowRank, Param, Shape

Values = Callable[[Codes | LowRank, int, int], Array]
"""Reads rows [start, stop) of a param's own grid."""


def tiles(param: Param, start: int, stop: int, owner: Shape, values: Values) -> Array:
    """Returns the numbers of the tiles that rows [start, stop) of the owner touch.

    Returns:
        [rows of tiles, *tiles of the other axes]; with an index, one column per column of the owner.

    Raises:
        BadFileError: The grid does not cover the owner, or the index leaves it.
    """
    grid, tile = param.values.decoded_shape, param.tile
    fits = len(tile) == len(grid) == len(owner) and all(t > 0 for t in tile)
    free = len(grid) - 1 if param.index is not None else len(grid)  # an index maps the last axis
    if not fits or grid[:free] != tuple(-(-n // t) for n, t in zip(owner, tile, strict=True))[:free]:
        raise BadFileError(
            "a parameter's grid does not cover its owner",
            found=f"{grid} tiles of {tile}",
            allowed=f"one per tile of {owner}",
        )
    small = values(param.values, start // tile[0], -(-stop // tile[0]))
    return small if param.index is None else _gather(small, param, owner)


def apply(operation: Any, values: Array, small: Array, tile: Shape, start: int) -> None:
    """Sets `values = operation(values, param)` in place.

    Args:
        operation: A ufunc of two arguments.
        values: Rows of the owner, C-contiguous, writeable.
        small: Their tiles, from `tiles`.
        tile: The param's tile.
        start: The owner's row at which `values` begins.
    """
    split, small = _blocked(small, tile, start, values.shape)
    view = values.reshape(split)
    operation(view, small, out=view)


def spread(small: Array, tile: Shape, start: int, shape: Shape) -> Array:
    """Returns one number per element of an owner's rows from `start` on: [*shape], a view where it can be."""
    split, small = _blocked(small, tile, start, shape)
    if split[1::2] == [1] * len(shape):  # nothing was split: the pairs of axes collapse without a copy
        return np.broadcast_to(small.reshape(small.shape[::2]), shape)
    return np.broadcast_to(small, split).reshape(shape)


def _gather(small: Array, param: Param, owner: Shape) -> Array:
    index = param.index.read() if param.index is not None else np.empty(0, np.int32)
    if index.shape != owner[-1:] or param.tile[-1] != 1 or len(owner) < 2:
        raise BadFileError("a column index is not one per column", found=index.shape, allowed=str(owner[-1:]))
    columns = small.shape[-1]
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < columns:
        raise BadFileError(
            "a column index is out of range", found=f"{index.min()} to {index.max()}", allowed=f"0 to {columns - 1}"
        )
    return np.take(small, index, axis=-1)


def _blocked(small: Array, tile: Shape, start: int, shape: Shape) -> tuple[list[int], Array]:
    """Splits every axis into (tiles, elements of a tile).

    Where a tile is torn by the rows at hand, or cropped at the edge, the param is repeated along that axis instead.

    Returns:
        The split shape, two sizes per axis whose product is the axis; and the param, shaped to broadcast against it.
    """
    split: list[int] = []
    for axis, (extent, size) in enumerate(zip(shape, tile, strict=True)):
        torn = start % size if axis == 0 else 0
        if small.shape[axis] == 1 or size == 1:
            split += [extent, 1]
        elif torn or extent % size:
            small = np.repeat(small, size, axis)
            small = small[(slice(None),) * axis + (slice(torn, torn + extent),)]
            split += [extent, 1]
        else:
            split += [extent // size, size]
    return split, small.reshape([n for extent in small.shape for n in (extent, 1)])
