"""A tensor whose rungs are planes of one code, each with scales, zero points and a bias of its own.

    W_l[n, k] = (code[n, k] with its last P - l bits at their middle, - zero_l[n, g]) * scale_l[n, g]

in steps of the whole code, whatever a rung's own term counts in: a term of l bits has zero points and scales in steps
of 2 ** (P - l). Both conversions are by powers of two. The complete form is the last rung.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from qdeploy.ir.decode import decode_codes
from qdeploy.ir.tensor import Codes, Float32, Param, QTensor, Rung, buffers
from qdeploy.ir.views.levels import Levels
from qdeploy.ir.views.params import Grid, Grouping, RowReader, two_levels


@dataclass(frozen=True, eq=False)
class Level:
    """One level. Readers take rows [start, stop).

    Attributes:
        small: float32 [rows, groups]: scales, or their small numbers where there is a factor.
        factor: float32 [rows, 1] that these are multiplied by; None: 1.
        zero: float32 [rows, groups], or one number.
        bias: float32 [rows], or None.
    """

    small: RowReader
    factor: RowReader | None
    zero: RowReader | float
    bias: Float32 | None


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
    """

    shape: tuple[int, int]
    group: int
    groups: int
    codes: RowReader
    levels: tuple[Level, ...]
    errors: tuple[float, ...]
    sizes: tuple[int, ...]

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
    tiles = {term.scale.tile for term in terms if term.scale is not None}
    if len(tiles) != 1 or any(term.scale is None for term in terms):
        return None
    group = min(next(iter(tiles))[1], tensor.shape[1])
    grouping = Grouping(grid, group, -(-tensor.shape[1] // group))
    levels = [_level(term, rung, grouping, planes) for term, rung in zip(terms, tensor.rungs, strict=True)]
    errors = tuple(1.0 if rung.error is None else rung.error for rung in tensor.rungs)
    sizes = [
        term.data[-1].nbytes + sum({b.key: b.nbytes for b in buffers((term.scale, term.zero, rung.bias))}.values())
        for term, rung in zip(terms, tensor.rungs, strict=True)
    ]
    read = grid.codes(codes)
    return Ladder(grid.shape, group, grouping.groups, read, tuple(levels), errors, tuple(sizes))


def _codes_of(rung: Rung, bits: int) -> Codes | None:
    """The codes of a rung that is one term of so many planes of integers, with params per group of columns."""
    if rung.terms is None or len(rung.terms) != 1 or rung.terms[0].where is not None:
        return None
    codes = rung.terms[0].values
    if not isinstance(codes, Codes) or codes.layout.kind != "planes" or codes.layout.width != bits:
        return None
    params = [p for p in (codes.scale, codes.zero) if p is not None]
    plain = all(len(p.tile) == 2 and p.index is None and not p.divide for p in params)
    return codes if plain and codes.offset is None and codes.table == f"uint{bits}" else None


def _level(term: Codes, rung: Rung, groups: Grouping, planes: int) -> Level:
    step = np.float32(1 << (planes - term.layout.width))
    scale = term.scale
    assert scale is not None  # `_ladder` has looked
    bias = None if rung.bias is None else decode_codes(rung.bias)
    zero = _zero(term.zero, groups, step)
    split = two_levels(scale, groups)
    if split is not None and split[2] == groups.groups:
        small, above, _ = split
        return Level(small, lambda start, stop: above(start, stop) / step, zero, bias)
    whole = groups.spread(scale)
    return Level(lambda start, stop: whole(start, stop) / step, None, zero, bias)


def _zero(zero: Param | None, groups: Grouping, step: np.float32) -> RowReader | float:
    """Zero points in steps of the whole code, whose missing bits stand at their middle."""
    middle = (step - np.float32(1)) / np.float32(2)
    if zero is None:
        return float(middle)
    if all(extent == 1 for extent in zero.values.decoded_shape) and isinstance(zero.values, Codes):
        return float(decode_codes(zero.values).reshape(-1)[0] * step + middle)
    read = groups.spread(zero)
    return lambda start, stop: read(start, stop) * step + middle
