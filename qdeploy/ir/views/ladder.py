"""A tensor whose rungs are planes of one code, each with scales, zero points and a bias of its own.

    read_l[n, k] = code[n, k] with its last P - l bits at their middle
    W_l[n, k]    = (read_l[n, k] - zero_l[n, g]) * scale_l[n, g] + offset_l[n, g]

in steps of the whole code, whatever a rung's own term counts in: a term of l bits has zero points and scales in steps
of 2 ** (P - l). Both conversions are by powers of two. The complete form is the last rung.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.ir.decode import decode_codes
from qdeploy.ir.tensor import Array, Codes, Float32, Param, QTensor, Rung, buffers
from qdeploy.ir.views.levels import Levels
from qdeploy.ir.views.params import Grid, Grouping, RowReader, grouping, two_levels


@dataclass(frozen=True, eq=False)
class Factors:
    """Numbers per group. Readers take rows [start, stop).

    Attributes:
        small: float32 [rows, groups]: the numbers, or small ones where there are others above.
        above: float32 [rows, ceil(groups / span)] that these are multiplied by; None: 1.
        span: Groups that share one of those.
    """

    small: RowReader
    above: RowReader | None = None
    span: int = 1

    def product(self, start: int, stop: int) -> Float32:
        """What they mean: float32 [rows, groups]."""
        small: Float32 = self.small(start, stop)
        if self.above is None:
            return small
        product: Float32 = small * np.repeat(self.above(start, stop), self.span, axis=1)[:, : small.shape[1]]
        return product


@dataclass(frozen=True, eq=False)
class Level:
    """One level. Readers take rows [start, stop).

    Attributes:
        scale: Scales.
        zero: float32 [rows, groups], or one number.
        bias: float32 [rows], or None.
        offset: Offsets, or None.
    """

    scale: Factors
    zero: RowReader | float
    bias: Float32 | None
    offset: Factors | None = None


@dataclass(frozen=True, eq=False)
class Ladder:
    """See the module.

    Attributes:
        shape: [N, K].
        group: Columns per group; the last may be short.
        groups: How many.
        codes: uint8 [rows, K].
        levels: One per plane.
        errors: Of each level.
        sizes: Bytes that each level adds: its plane and its params.
        index: Group of each column, int [K], where groups are not runs of columns.
    """

    shape: tuple[int, int]
    group: int
    groups: int
    codes: RowReader
    levels: tuple[Level, ...]
    errors: tuple[float, ...]
    sizes: tuple[int, ...]
    index: Array | None = None

    @property
    def planes(self) -> int:
        """Bits of a code."""
        return len(self.levels)

    @property
    def cut(self) -> Levels:
        """How it is cut."""
        return Levels("planes", self.planes)

    def level_bytes(self, level: int) -> int:
        """What a level (from 0) adds."""
        return self.sizes[level]


_SEEN: dict[int, tuple[weakref.ref[QTensor], Ladder | None]] = {}


def ladder_of(tensor: QTensor) -> Ladder | None:
    """The ladder that a tensor is; None where it is none."""
    if not tensor.rungs or len(tensor.terms) != 1:
        return None
    key = id(tensor)
    known = _SEEN.get(key)
    if known is not None and known[0]() is tensor:
        return known[1]
    seen = _ladder(tensor)
    _SEEN[key] = (weakref.ref(tensor, lambda _: _SEEN.pop(key, None)), seen)
    return seen


def _ladder(tensor: QTensor) -> Ladder | None:
    codes, grid = tensor.terms[0].values, Grid.under(tensor.shape, tensor.shape)
    if not isinstance(codes, Codes) or grid is None or codes.shape != tensor.shape or tensor.scale or tensor.offset:
        return None
    planes = len(tensor.rungs)
    terms = [term for bits, rung in enumerate(tensor.rungs, 1) if (term := _codes_of(rung, bits)) is not None]
    if not 2 <= planes == len(terms) <= 8 or codes.data != terms[-1].data or codes.table != terms[-1].table:
        return None
    groups = _grouping(terms, grid)
    if groups is None:
        return None
    levels = [_level(term, rung, groups, planes) for term, rung in zip(terms, tensor.rungs, strict=True)]
    errors = tuple(1.0 if rung.error is None else rung.error for rung in tensor.rungs)
    sizes = [
        term.data[-1].nbytes
        + sum({b.key: b.nbytes for b in buffers((term.scale, term.zero, term.offset, rung.bias))}.values())
        for term, rung in zip(terms, tensor.rungs, strict=True)
    ]
    read = grid.codes(codes)
    return Ladder(grid.shape, groups.group, groups.groups, read, tuple(levels), errors, tuple(sizes), groups.index)


def _grouping(terms: Sequence[Codes], grid: Grid) -> Grouping | None:
    """The groups of all levels; None where they differ."""
    tiles = {term.scale.tile for term in terms if term.scale is not None}
    if len(tiles) != 1 or any(term.scale is None for term in terms):
        return None
    params = [p for term in terms for p in (term.scale, term.zero, term.offset) if p is not None]
    if any(p.index is not None for p in params):
        return grouping(params, grid)
    group = min(next(iter(tiles))[1], grid.shape[1])
    apart = any(p.tile != next(iter(tiles)) and p.tile[1] < grid.shape[1] for p in params)
    return None if apart else Grouping(grid, group, -(-grid.shape[1] // group))


def _codes_of(rung: Rung, bits: int) -> Codes | None:
    """The codes of a rung that is one term of so many planes of integers, with params per group of columns."""
    if rung.terms is None or len(rung.terms) != 1 or rung.terms[0].where is not None:
        return None
    codes = rung.terms[0].values
    if not isinstance(codes, Codes) or codes.layout.kind != "planes" or codes.layout.width != bits:
        return None
    params = [p for p in (codes.scale, codes.zero, codes.offset) if p is not None]
    plain = all(len(p.tile) == 2 and not p.divide for p in params)
    return codes if plain and codes.table == f"uint{bits}" else None


def _level(term: Codes, rung: Rung, groups: Grouping, planes: int) -> Level:
    step = np.float32(1 << (planes - term.layout.width))
    scale = term.scale
    assert scale is not None  # `_ladder` has looked
    bias = None if rung.bias is None else decode_codes(rung.bias)
    offset = None if term.offset is None else _factors(term.offset, groups, np.float32(1))
    return Level(_factors(scale, groups, step), _zero(term.zero, groups, step), bias, offset)


def _factors(param: Param, groups: Grouping, step: np.float32) -> Factors:
    """Numbers of a level over a power of two."""
    split = two_levels(param, groups)
    if split is not None:
        small, above, span = split
        return Factors(small, lambda start, stop: above(start, stop) / step, span)
    whole = groups.spread(param)
    return Factors(lambda start, stop: whole(start, stop) / step)


def _zero(zero: Param | None, groups: Grouping, step: np.float32) -> RowReader | float:
    """Zero points in steps of the whole code, whose missing bits stand at their middle."""
    middle = (step - np.float32(1)) / np.float32(2)
    if zero is None:
        return float(middle)
    if all(extent == 1 for extent in zero.values.decoded_shape) and isinstance(zero.values, Codes):
        return float(decode_codes(zero.values).reshape(-1)[0] * step + middle)
    read = groups.spread(zero)
    return lambda start, stop: read(start, stop) * step + middle
