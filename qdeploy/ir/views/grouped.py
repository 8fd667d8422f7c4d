"""A matrix as integers with parameters per group: what kernels for packed integers can hold without loss.

    W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] + offset[n, g],    g = group of column k

with unsigned codes of at most 8 bits. Seen this way are

    affine codes        uint and int tables of 1 to 8 bits, zero points integer or not (a fraction of a zero point,
                        times the scale, is an offset)
    integer codebooks   scalar tables, vector tables and small floats whose values are integer multiples of a power of
                        two (`integers.py`); the scale takes the unit, exactly
    sign planes         a scale of +-1 per element, multiplied into the integer

Nothing is rounded on the way, but for a fractional zero point's product with its scale, and a scale that divides other
codes than -1, 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import Array, Codes, Param, Shape
from qdeploy.ir.views.integers import UnsignedCodes, split_signs, unsigned_codes
from qdeploy.ir.views.params import Grid, Grouping, RowReader, grouping, survey


@dataclass(frozen=True)
class Grouped:
    """Integers with parameters per group. Readers take rows [start, stop) of the matrix.

    Attributes:
        shape: [N, K].
        top: The greatest code or zero point.
        group: Columns per group; the last group may be short.
        groups: How many groups there are.
        codes: uint8 [rows, K].
        scale: float32 [rows, groups].
        zero: One for all, or uint8 [rows, groups].
        offset: float32 [rows, groups], or None where it is zero everywhere.
        stream: The codes as they lie, where they are already a bit stream along rows.
        index: Group of each column, int [K], where groups are not runs of columns.
        exact: Whether every stored number is carried without rounding.
        code_top: The greatest code.
        stored_zero: float32 [rows, groups]: zero points that are not 8-bit integers, as they are stored; with them goes
            `stored_offset`. None where `zero` has them all.
        stored_offset: The offsets without what is left of such zero points.
    """

    shape: tuple[int, int]
    top: int
    group: int
    groups: int
    codes: RowReader
    scale: RowReader
    zero: int | RowReader
    offset: RowReader | None = None
    stream: Codes | None = None
    index: Array | None = None
    exact: bool = True
    code_top: int = 255
    stored_zero: RowReader | None = None
    stored_offset: RowReader | None = None

    @property
    def bits(self) -> int:
        """Bits that codes and zero points need."""
        return self.top.bit_length()


@dataclass(frozen=True)
class _Zero:
    """Integer zero points, what is left of them as an offset, the greatest, and whether that is without rounding."""

    value: int | RowReader
    rest: RowReader | None
    top: int
    exact: bool = True
    stored: RowReader | None = None


def grouped(shape: Shape, codes: Codes) -> Grouped | None:
    """Returns a grid of codes as a matrix; None where it is not a matrix, or not of such integers.

    Args:
        shape: Of the tensor.
        codes: All that it is made of.
    """
    grid = Grid.under(shape, codes.decoded_shape)
    if grid is None:
        return None
    signs, scale = split_signs(codes.scale)
    groups = grouping([p for p in (codes.zero, scale, codes.offset) if p is not None], grid)
    if groups is None:
        return None
    whole, absorbed = unsigned_codes(codes, signs, grid)
    if whole is None:
        return None
    zero = None if absorbed else codes.zero
    if zero is not codes.zero:  # a zero point that is in the table has no say in how columns are grouped
        groups = grouping([p for p in (scale, codes.offset) if p is not None], grid) or groups
    assembled = _assemble(groups, whole, zero, scale, codes.offset)
    rounds = scale is not None and scale.divide and not _are_units(codes)
    return replace(assembled, exact=assembled.exact and not rounds)


def _are_units(codes: Codes) -> bool:
    """Whether codes stand for -1, 0 and 1 alone, so that their quotients are products with the rounded reciprocal."""
    return isinstance(codes.table, str) and dtype(codes.table).kind in ("sign", "ternary")


def _assemble(
    groups: Grouping, whole: UnsignedCodes, zero: Param | None, scale: Param | None, offset: Param | None
) -> Grouped:
    scales = _scale_reader(scale, groups, whole.unit)
    zeros = _zeros(zero, groups, scales, whole)
    own = groups.spread(offset) if offset is not None else None
    return Grouped(
        groups.grid.shape,
        max(1, whole.top, zeros.top),
        groups.group,
        groups.groups,
        whole.read,
        scales,
        zeros.value,
        _sum(own, zeros.rest) if own is not None else zeros.rest,
        whole.stream,
        groups.index,
        zeros.exact,
        whole.top,
        zeros.stored,
        own,
    )


def _sum(a: RowReader, b: RowReader | None) -> RowReader:
    return a if b is None else lambda start, stop: a(start, stop) + b(start, stop)


def _scale_reader(scale: Param | None, groups: Grouping, unit: float) -> RowReader:
    factor = np.float32(unit)
    if scale is None:
        return lambda start, stop: np.full((stop - start, groups.groups), factor, np.float32)
    read = groups.spread(scale)
    if scale.divide:
        return lambda start, stop: (factor / read(start, stop)).astype(np.float32)
    return read if unit == 1.0 else lambda start, stop: read(start, stop) * factor


def _zeros(zero: Param | None, groups: Grouping, scale: RowReader, whole: UnsignedCodes) -> _Zero:
    if zero is None:
        return _Zero(whole.zero, None, whole.zero)
    seen, read, base = survey(zero), groups.spread(zero), np.float32(whole.zero)
    fits = seen.whole and seen.low + base >= 0 and seen.high + base < 256
    if fits and seen.low == seen.high:
        return _Zero(int(seen.low + base), None, int(seen.low + base))
    if fits:
        return _Zero(lambda start, stop: (read(start, stop) + base).astype(np.uint8), None, int(seen.high + base))
    top = np.float32(whole.top)

    def nearest(start: int, stop: int) -> Array:
        return np.clip(np.rint(read(start, stop) + base), 0, top)

    def rest(start: int, stop: int) -> Array:
        return (nearest(start, stop) - base - read(start, stop)) * scale(start, stop)

    return _Zero(
        lambda start, stop: nearest(start, stop).astype(np.uint8),
        rest,
        whole.top,
        False,
        lambda start, stop: read(start, stop) + base,
    )
