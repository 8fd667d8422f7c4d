"""Groups of floats on a line: code * scale + offset, with an offset of its own for every group (GGUF's Q4_1, MLX).

The least float of a group is code 0 and the greatest one of the last codes; with a first scale from them the others
follow. Then a pair of codes a < b, whose floats lie in [low_a, high_a] and [low_b, high_b], bounds the scale from below
by (low_b - high_a) / (b - a) and from above by (high_b - low_a) / (b - a). No scale is missed: a scale within the
bounds of all pairs leaves offsets, for a scale and its offset are two unknowns of inequalities with two codes at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qdeploy.ir.dtype import dtype as row_of
from qdeploy.recover.intervals import Stored

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_TRIED, _ROUNDS, _NEIGHBOURS = 8, 2, 8


class Lines(NamedTuple):
    """What groups of floats may be made from.

    Attributes:
        fits: Whether a group lies on a line [n].
        codes: From 0 on [n, group].
        scales: In the type that was asked for [n].
        offsets: Likewise.
    """

    fits: Bools
    codes: Float64
    scales: Float64
    offsets: Float64


def lines(x: Stored, bits: int, kind: str) -> Lines:
    """Solves groups one by one.

    Args:
        x: Floats [n, group].
        bits: Of a code.
        kind: Type of scales and offsets ("f16", "bf16", "f32"); "": any numbers.
    """
    low, high = signed(x, kind)
    count, top = len(low), (1 << bits) - 1
    least, most = x.values.min(axis=1), x.values.max(axis=1)
    result = Lines(np.zeros(count, np.bool_), np.zeros(low.shape), np.ones(count), least.copy())
    for last in range(top, max(top // 2, top - _TRIED), -1):
        left = np.flatnonzero(~result.fits)
        if not len(left):
            break
        step = (most - least)[left] / last
        scale, offset = np.where(step > 0, step, 1.0), least[left]
        for _ in range(_ROUNDS):
            codes = np.clip(np.rint((x.values[left] - offset[:, None]) / scale[:, None]), 0, top)
            own = _by_code(codes, low[left], high[left], top + 1)
            fits, scale, offset = _chosen(*own, kind)
            won = left[fits]
            result.fits[won], result.codes[won] = True, codes[fits]
            result.scales[won], result.offsets[won] = scale[fits], offset[fits]
            left, scale, offset = left[~fits], scale[~fits], offset[~fits]
            if not len(left):
                break
    return result


def signed(x: Stored, kind: str) -> tuple[Float64, Float64]:
    """The bounds of the floats themselves; a product with a float32 scale is rounded once more."""
    low = np.where(x.values < 0, -x.high, x.low)
    high = np.where(x.values < 0, -x.low, x.high)
    if kind == "f32":
        slack = np.spacing(np.abs(x.values).max(axis=1).astype(np.float32)).astype(np.float64)[:, None]
        low, high = low + 2 * slack, high - 2 * slack
    return low, high


def _by_code(codes: Float64, low: Float64, high: Float64, count: int) -> tuple[Float64, Float64]:
    """What the floats of each code allow [n, count]: all numbers where a code has none."""
    below, above = np.full((len(codes), count), -np.inf), np.full((len(codes), count), np.inf)
    at = np.arange(len(codes))[:, None], codes.astype(np.int64)
    np.maximum.at(below, at, low)
    np.minimum.at(above, at, high)
    return below, above


def _chosen(low: Float64, high: Float64, kind: str) -> tuple[Bools, Float64, Float64]:
    """Whether there are a scale and an offset of a type, and which; where there are none, what comes next to them."""
    count = low.shape[1]
    least, most = np.full(len(low), 0.0), np.full(len(low), np.inf)
    for gap in range(1, count):
        least = np.maximum(least, (low[:, gap:] - high[:, :-gap]).max(axis=1) / gap)
        most = np.minimum(most, (high[:, gap:] - low[:, :-gap]).min(axis=1) / gap)
    scale = np.where(np.isfinite(most), (least + most) / 2, 1.0)
    below, above = _offsets(low, high, scale)
    possible, offset = (least <= most) & (scale > 0), (below + above) / 2
    if not kind:
        return possible, scale, offset
    fits, left = np.zeros(len(low), np.bool_), np.flatnonzero(possible)
    for value in around(scale.copy(), kind):
        if not len(left):
            break
        tried = value[left]
        below, above = _offsets(low[left], high[left], tried)
        edge = rounded_up(below, kind)
        better = edge <= above
        won = left[better]
        scale[won], offset[won], fits[won] = tried[better], edge[better], True
        left = left[~better]
    return fits, scale, offset


def _offsets(low: Float64, high: Float64, scale: Float64) -> tuple[Float64, Float64]:
    """The bounds of the offsets that a scale leaves."""
    product = scale[:, None] * np.arange(low.shape[1])
    return (low - product).max(axis=1), (high - product).min(axis=1)


def around(middle: Float64, kind: str) -> Iterator[Float64]:
    """The numbers of a type next to each, and their neighbours, the nearest first; of the same sign, and none is 0."""
    nearest = middle.astype(row_of(kind).numpy)
    word = np.dtype(f"<u{nearest.dtype.itemsize}")
    bits = nearest.view(word).astype(np.int64)
    sign = 1 << (8 * word.itemsize - 1)
    for place in sorted(range(-_NEIGHBOURS, _NEIGHBOURS + 1), key=abs):
        moved = np.maximum(bits % sign + place, 1) | (bits & sign)
        value = moved.astype(word).view(nearest.dtype).astype(np.float64)
        yield np.where(np.isfinite(value), value, 1.0)


def rounded_up(edge: Float64, kind: str) -> Float64:
    """The least number of a type that is not less than each."""
    dtype = row_of(kind).numpy
    with np.errstate(over="ignore"):
        number = edge.astype(dtype)
    word = np.dtype(f"<i{dtype.itemsize}")
    bits = number.view(word)
    nearer_zero = np.where(bits < 0, bits - word.type(1), bits + word.type(1)).astype(word)
    nearer_zero = np.where(number.astype(np.float64) == 0, word.type(1), nearer_zero).astype(word)
    above = nearer_zero.view(dtype).astype(np.float64)
    return np.where(number.astype(np.float64) < edge, above, number.astype(np.float64))
