"""Grids between the least and the greatest weight of a group: a float16 scale, and a whole zero point of its own.

    scale = (high - low) / (2 ** bits - 1)      zero = rint(-low / scale)      with low <= 0 <= high

With clip search both ends are multiplied by the factor of `CLIP_FACTORS` that leaves the least squared error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.quantize.nearest import CLIP_FACTORS, nearest

Float32 = npt.NDArray[np.float32]


def group_ranges(
    rows: Float32, group: int, bits: int, clip: str, name: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """The grid of every group.

    Args:
        rows: float32 [rows, K].
        group: Columns that share a scale.
        bits: Of a code.
        clip: "search" or "none".
        name: Of the tensor, for errors.

    Returns:
        Scales float16 and zero points uint8, [rows, groups].

    Raises:
        BadFileError: A weight is infinite or not a number.
    """
    if not np.isfinite(rows).all():
        raise BadFileError("a weight is infinite or not a number", where=name, todo="Leave it out with skip=REGEX.")
    count, width = rows.shape
    padded = np.zeros((count, -(-width // group) * group), np.float32)
    padded[:, :width] = rows
    grouped = padded.reshape(count, -1, group)
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    best: tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]] | None = None
    least = np.full(low.shape, np.inf, np.float32)
    for factor in CLIP_FACTORS if clip == "search" else CLIP_FACTORS[:1]:
        scale, zero = _grid(low * np.float32(factor), high * np.float32(factor), bits)
        error = _error(grouped, scale, zero, bits)
        better = error < least
        first = best if best is not None else (scale, zero)
        best = np.where(better, scale, first[0]), np.where(better, zero, first[1])
        least = np.where(better, error, least)
    assert best is not None  # there is a first factor
    return best


def _grid(low: Float32, high: Float32, bits: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    top = (1 << bits) - 1
    limit = np.float32(np.finfo(np.float16).max)
    scale = np.clip((high - low) / np.float32(top), 0, limit).astype(np.float16)
    wide = np.where(scale == 0, np.float32(1), scale.astype(np.float32))
    return scale, nearest(-low / wide, 0, top).astype(np.uint8)


def _error(grouped: Float32, scale: npt.NDArray[np.float16], zero: npt.NDArray[np.uint8], bits: int) -> Float32:
    wide, offset = scale.astype(np.float32)[..., None], zero.astype(np.float32)[..., None]
    codes = nearest(grouped / np.where(wide == 0, np.float32(1), wide) + offset, 0, (1 << bits) - 1)
    off = (codes - offset) * wide - grouped
    error: Float32 = np.einsum("rgk,rgk->rg", off, off)
    return error
