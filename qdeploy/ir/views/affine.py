"""A matrix as integers with parameters per group: what kernels for packed integers can hold without loss.

    W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] + offset[n, g],    g = group of column k

with unsigned codes of at most 8 bits. Seen this way are

    affine codes        uint and int tables of 1 to 8 bits, zero points integer or not (a fraction of a zero point,
                        times the scale, is an offset)
    integer codebooks   tables whose values are integer multiples of a power of two (`integers.py`); the scale takes the
                        unit, exactly
    sign planes         a scale of +-1 per element, multiplied into the integer

Nothing is rounded on the way, but for a fractional zero point's product with its scale, and a scale that divides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.ir.tensor import Array, Codes, Param, QTensor
from qdeploy.ir.views.integers import Integers, integers, split_signs
from qdeploy.ir.views.params import Grid, RowReader, common_group, is_blockwise, spread, survey


@dataclass(frozen=True)
class Affine:
    """The view. Readers take rows [start, stop) of the matrix.

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
        stored_zero: float32 [rows, groups]: zero points that are no 8-bit integers, as they are stored; with them goes
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


def affine(tensor: QTensor) -> Affine | None:
    """Returns the view of a matrix, or None where it has none."""
    codes = _sole_codes(tensor)
    grid = _grid(tensor, codes) if codes else None
    if codes is None or grid is None:
        return None
    signs, scale = split_signs(codes.scale)
    params = [p for p in (codes.zero, scale, codes.offset) if p is not None]
    indices = {p.index.key if p.index else "" for p in params if p.values.decoded_shape[-1] > 1}
    if not all(is_blockwise(p, grid) for p in params) or len(indices) > 1:
        return None
    found, absorbed = integers(codes, signs, grid)
    if found is None:
        return None
    return _assemble(grid, found, None if absorbed else codes.zero, scale, codes.offset)


def _sole_codes(tensor: QTensor) -> Codes | None:
    if len(tensor.shape) != 2 or len(tensor.terms) != 1 or tensor.scale or tensor.offset:
        return None
    term = tensor.terms[0]
    return term.values if isinstance(term.values, Codes) and term.where is None else None


def _grid(tensor: QTensor, codes: Codes) -> Grid | None:
    if len(codes.decoded_shape) != 2:
        return None
    (n, k), (rows, columns) = tensor.shape, codes.decoded_shape
    if n * k != rows * columns or k % columns or not n * k:
        return None
    return Grid((n, k), columns, k // columns)


def _assemble(grid: Grid, found: Integers, zero: Param | None, scale: Param | None, offset: Param | None) -> Affine:
    params = [p for p in (zero, scale, offset) if p is not None]
    index = next((p.index.read() for p in params if p.index is not None), None)
    if index is None:
        group = common_group(params, grid)
        groups = -(-grid.shape[1] // group)
    else:
        groups = max(p.values.decoded_shape[1] for p in params)
        group = -(-grid.shape[1] // groups)
        in_order = np.array_equal(index, np.arange(grid.shape[1]) // group)
        index = None if in_order else index
    scales = _scale_reader(scale, grid, group, groups, found.unit)
    zeros = _zeros(zero, grid, group, groups, scales, found)
    own = spread(offset, grid, group, groups) if offset is not None else None
    offsets = _sum(own, zeros.rest) if own is not None else zeros.rest
    return Affine(
        grid.shape,
        max(1, found.top, zeros.top),
        group,
        groups,
        found.read,
        scales,
        zeros.value,
        offsets,
        found.stream,
        index,
        zeros.exact and not (scale is not None and scale.divide),
        found.top,
        zeros.stored,
        own,
    )


def _sum(a: RowReader, b: RowReader | None) -> RowReader:
    return a if b is None else lambda start, stop: a(start, stop) + b(start, stop)


def _scale_reader(scale: Param | None, grid: Grid, group: int, groups: int, unit: float) -> RowReader:
    factor = np.float32(unit)
    if scale is None:
        return lambda start, stop: np.full((stop - start, groups), factor, np.float32)
    read = spread(scale, grid, group, groups)
    if scale.divide:
        return lambda start, stop: (factor / read(start, stop)).astype(np.float32)
    return read if unit == 1.0 else lambda start, stop: read(start, stop) * factor


def _zeros(zero: Param | None, grid: Grid, group: int, groups: int, scale: RowReader, found: Integers) -> _Zero:
    if zero is None:
        return _Zero(found.zero, None, found.zero)
    seen, read, base = survey(zero), spread(zero, grid, group, groups), np.float32(found.zero)
    fits = seen.whole and seen.low + base >= 0 and seen.high + base < 256
    if fits and seen.low == seen.high:
        return _Zero(int(seen.low + base), None, int(seen.low + base))
    if fits:
        return _Zero(lambda start, stop: (read(start, stop) + base).astype(np.uint8), None, int(seen.high + base))
    top = np.float32(found.top)

    def nearest(start: int, stop: int) -> Array:
        return np.clip(np.rint(read(start, stop) + base), 0, top)

    def rest(start: int, stop: int) -> Array:
        return (nearest(start, stop) - base - read(start, stop)) * scale(start, stop)

    return _Zero(
        lambda start, stop: nearest(start, stop).astype(np.uint8),
        rest,
        found.top,
        False,
        lambda start, stop: read(start, stop) + base,
    )
