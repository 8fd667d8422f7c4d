"""Which real numbers a stored float is the rounding of.

A stored magnitude v is round(level * scale), so the product lay within half a step of v on either side. Dividing by the
level gives the scales that v allows; a group's scale lies in what all of its floats allow.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qdeploy.store.storage import storage_dtype

Float64 = npt.NDArray[np.float64]


class Stored(NamedTuple):
    """Floats with the bounds of what they are the roundings of, all float64 of one shape.

    Attributes:
        values: The floats.
        low: The least magnitude that rounds to each; 0 for a zero.
        high: The greatest.
    """

    values: Float64
    low: Float64
    high: Float64

    def of(self, at: Any) -> Stored:
        """The same of a part, by any index of numpy."""
        return Stored(self.values[at], self.low[at], self.high[at])


def bounds(raw: npt.NDArray[Any]) -> Stored:
    """The bounds of floats as they are stored (float16, bfloat16, float32 or float64), in any shape."""
    if raw.dtype.itemsize > 2:
        return _bounds(raw)
    bits = np.ascontiguousarray(raw).view(np.uint16)
    return Stored(*(np.take(column, bits) for column in _every(raw.dtype)))


@cache
def _every(dtype: np.dtype[Any]) -> Stored:
    """The bounds of every float of 16 bits, by its bits: looking up is a third of the work."""
    with np.errstate(invalid="ignore"):
        return _bounds(np.arange(1 << 16, dtype=np.uint16).view(dtype))


def _bounds(raw: npt.NDArray[Any]) -> Stored:
    magnitude = np.abs(raw)
    bits = magnitude.view(f"<u{raw.dtype.itemsize}")
    one = bits.dtype.type(1)
    exact = magnitude.astype(np.float64)
    below = np.where(bits > 0, bits - one, bits).view(raw.dtype).astype(np.float64)
    above = (bits + one).view(raw.dtype).astype(np.float64)
    above = np.where(np.isfinite(above), above, 2 * exact - below)
    low, high = (exact + below) / 2, (exact + above) / 2
    inward = np.where((bits & one).astype(np.bool_), 1.0, -1.0)  # halfway is rounded to even, so away from odd ones
    low, high = _of_products(low, inward, raw.dtype), _of_products(high, -inward, raw.dtype)
    zero = exact == 0
    return Stored(raw.astype(np.float64), np.where(zero, 0.0, low), np.where(zero, 0.0, high))


def _of_products(edge: Float64, up: Float64, dtype: np.dtype[Any]) -> Float64:
    """The exact products next to an edge, above it (1) or below (-1): they are rounded to float32 before 16 bits."""
    step = np.spacing(edge.astype(np.float32)).astype(np.float64) / 2 if dtype.itemsize < 4 else np.spacing(edge)
    return edge + up * step


def narrowest(raw: npt.NDArray[Any]) -> str:
    """The narrower storage type that holds the same floats ("BF16", "F16"); "": there is none.

    Float32 often carries what bfloat16 or float16 rounded.
    """
    if raw.dtype != np.float32:
        return ""
    for storage in ("BF16", "F16"):
        with np.errstate(over="ignore"):
            narrow = raw.astype(storage_dtype(storage))
        if np.array_equal(narrow.astype(np.float32), raw):
            return storage
    return ""


def grouped(raw: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    """[rows, K] as [rows * groups, group]; a last group that is shorter is filled with zeros."""
    rows, width = raw.shape
    if width % group:
        padded = np.zeros((rows, -(-width // group) * group), raw.dtype)
        padded[:, :width] = raw
        raw = padded
    return raw.reshape(-1, group)
