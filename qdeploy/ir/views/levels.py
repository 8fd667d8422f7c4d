"""What a tensor can be cut into, so that the first few levels of it are a coarser weight.

    planes   integer codes as bit planes, the highest first. A plane holds -1 and +1, so that a code whose low planes
             are missing reads as the middle of the interval that is left. Sums of such codes are cut together.
    terms    the terms of a sum that each correct what the terms before left: BitStack's blocks, residual sign planes
    whole    one level

Writers take the levels of a matrix from here, and whoever measures what a level is worth takes them from the writer:
there is no second opinion on how many there are or what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qdeploy.ir.decode import decode_param
from qdeploy.ir.tensor import Array, Float32, Param, Shape, buffers
from qdeploy.ir.views.grouped import Grouped
from qdeploy.ir.views.integers import split_signs, unsigned_codes
from qdeploy.ir.views.kinds import Coded, Lookup, Masked, Minifloat, SignLowRank, Sum, View
from qdeploy.ir.views.params import Grid, RowReader
from qdeploy.ir.views.tables import GroupedTable

_TABLES, _LEAST_LEVELS, _MOST_LEVELS = 256, 5, 16


@dataclass(frozen=True)
class Levels:
    """How a tensor is cut.

    Attributes:
        kind: See above.
        count: Into how many levels.
        parts: Planes of each part of a sum, 1 for a part that is not cut; empty for a tensor that is not a sum.
    """

    kind: Literal["whole", "planes", "terms"]
    count: int = 1
    parts: tuple[int, ...] = ()


WHOLE = Levels("whole")


def levels(seen: View | Coded) -> Levels:
    """The most levels that a tensor has."""
    if isinstance(seen, Masked):
        return levels(seen.under)
    if isinstance(seen, SignLowRank):
        return term_levels(len(seen.terms))
    if isinstance(seen, Sum):
        return term_levels(len(seen.parts)) if seen.is_residual else combined_levels(map(levels, seen.parts))
    if not isinstance(seen, Coded) or seen.is_ternary or seen.is_signs or small_table(seen) is not None:
        return WHOLE
    return plane_levels(seen.grouped) if seen.grouped is not None else WHOLE


def plane_levels(whole: Grouped) -> Levels:
    """Integer codes in bit planes."""
    count = max(1, whole.code_top.bit_length())
    return Levels("planes", count) if count > 1 else WHOLE


def term_levels(count: int) -> Levels:
    """A sum term by term."""
    return Levels("terms", count) if count > 1 else WHOLE


def combined_levels(parts: Iterable[Levels]) -> Levels:
    """A sum whose parts are cut into planes, or not at all: a level holds one plane of each part that has so many."""
    counts = tuple(part.count if part.kind == "planes" else 1 for part in parts)
    return Levels("planes", max(counts), counts) if max(counts, default=1) > 1 else WHOLE


def small_table(seen: View | Coded) -> GroupedTable | None:
    """Codes of tables of 5 to 16 levels, which processors look up as they are, and which are therefore not cut."""
    if not isinstance(seen, Lookup | Minifloat):
        return None
    tabled = seen.tabled
    if tabled is None or tabled.divides or not _LEAST_LEVELS <= tabled.levels <= _MOST_LEVELS:
        return None
    return tabled if len(tabled.values) <= _TABLES and np.isfinite(tabled.values).all() else None


@dataclass(frozen=True)
class Planes:
    """A grid of integer codes that is cut into planes. Readers take rows [start, stop) of the grid.

    Attributes:
        shape: Of the decoded grid, [rows, columns].
        bits: How many planes there are.
        codes: uint8 [rows, columns].
        factor: float32, what a code is worth; of a shape that spreads over [rows, columns].
        stored_bytes: What the source takes for the codes, and for signs that are in them.
    """

    shape: Shape
    bits: int
    codes: RowReader
    factor: RowReader
    stored_bytes: int

    @property
    def plane_bytes(self) -> int:
        """Size of a plane."""
        return math.prod(self.shape[:-1]) * -(-self.shape[-1] // 8)

    def rows(self, start: int, stop: int) -> PlaneRows:
        """Reads rows of the grid."""
        return PlaneRows(self.bits, self.codes(start, stop).astype(np.float32), self.factor(start, stop))


@dataclass(frozen=True)
class PlaneRows:
    """Some rows of a grid that is cut into planes: codes float32 [rows, columns], and what each is worth."""

    bits: int
    codes: Float32
    factor: Float32

    def missing(self, resident: int) -> Float32:
        """What the rows lack when only the first planes are there, at least one: float32 [rows, columns]."""
        step = np.float32(1 << max(0, self.bits - resident))
        middle = np.floor(self.codes / step) * step + (step - 1) / 2
        lacking: Float32 = (middle - self.codes) * self.factor
        return lacking


def cut_planes(seen: View, cut: Levels) -> list[Planes] | None:
    """The planes of every part that is cut; None where the tensor cannot be cut so.

    A tensor that is one grid of codes is read by the rows of its grid, any other by the rows of the matrix.
    """
    under = seen.under if isinstance(seen, Masked) else seen
    if isinstance(under, Sum) and len(under.parts) == len(cut.parts):
        chosen = [(part, count) for part, count in zip(under.parts, cut.parts, strict=True) if count > 1]
        counted = [(_on_matrix(part), count) for part, count in chosen]
    elif isinstance(under, Coded) and not cut.parts:
        counted = [(planes(under) if under is seen else _on_matrix(under), cut.count)]
    else:
        return None
    fitting = [part for part, count in counted if part is not None and part.bits == count]
    return fitting if fitting and len(fitting) == len(counted) else None


def _on_matrix(part: View) -> Planes | None:
    grid = Grid.under(part.shape, part.codes.decoded_shape) if isinstance(part, Coded) else None
    return planes(part, grid) if isinstance(part, Coded) and grid is not None else None


def planes(seen: Coded, grid: Grid | None = None) -> Planes | None:
    """The planes of codes; None where they are not integers.

    Args:
        seen: One grid of codes.
        grid: Over the codes, with the matrix whose rows are read; None: the rows of the grid itself.
    """
    grid = grid or Grid.itself(seen.codes.decoded_shape)
    signs, scale = split_signs(seen.codes.scale)
    whole = unsigned_codes(seen.codes, signs, grid)[0] if grid is not None else None
    if grid is None or whole is None:
        return None
    stored = (seen.codes.data, signs.data if signs is not None else ())
    return Planes(
        grid.shape,
        max(1, whole.top.bit_length()),
        whole.read,
        _factor(scale, whole.unit, seen.codes.decoded_shape, grid),
        sum({b.key: b.nbytes for b in buffers(stored)}.values()),
    )


def _factor(scale: Param | None, unit: float, decoded: Shape, grid: Grid) -> RowReader:
    if scale is None:
        return lambda start, stop: np.full((1, 1), unit, np.float32)

    def read(start: int, stop: int) -> Array:
        spread = decode_param(scale, slice(start * grid.fold, stop * grid.fold), decoded)
        spread = spread.reshape(stop - start, grid.shape[1])
        with np.errstate(all="ignore"):
            factor: Array = np.float32(unit) / spread if scale.divide else spread
        return factor if unit == 1 or scale.divide else factor * np.float32(unit)

    return read
