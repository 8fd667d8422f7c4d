"""A matrix as codes of a table, or as floats of at most 8 bits, with a scale per group of columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qdeploy.ir.dtype import DType, dtype, of_storage
from qdeploy.ir.tensor import Array, Codes, Float32, Shape, Table
from qdeploy.ir.views.params import Grid, Grouping, RowReader, grouping

_TABLE_LIMIT = 1 << 24
"""Entries of a codebook that is read as a whole."""
_LEVELS = 256


@dataclass(frozen=True)
class GroupedTable:
    """`values[select][code] * scale`. Readers take rows [start, stop) of the matrix.

    Attributes:
        shape: [N, K].
        values: float32 [tables, levels], at most 256 levels.
        codes: uint8 [rows, K].
        grouping: Columns over which neither scale nor table changes.
        scale: float32 [rows, groups], already a factor; None means 1.
        select: float32 [rows, groups]: which table; None: table 0.
        divides: Whether the source divides by its scale, so that the factor is rounded.
    """

    shape: tuple[int, int]
    values: Float32
    codes: RowReader
    grouping: Grouping
    scale: RowReader | None = None
    select: RowReader | None = None
    divides: bool = False

    @property
    def levels(self) -> int:
        """Entries of a table."""
        return int(self.values.shape[1])

    @property
    def bits(self) -> int:
        """Of a code."""
        return (self.levels - 1).bit_length() or 1


@dataclass(frozen=True)
class GroupedFloats:
    """`float(code) * scale`. Readers take rows [start, stop) of the matrix.

    Attributes:
        shape: [N, K].
        dtype: The number type of a code, of at most 8 bits.
        codes: uint8 [rows, K].
        grouping: Columns over which the scale does not change.
        scale: float32 [rows, groups], already a factor; None means 1.
        divides: Whether the source divides by its scale, so that the factor is rounded.
    """

    shape: tuple[int, int]
    dtype: DType
    codes: RowReader
    grouping: Grouping
    scale: RowReader | None = None
    divides: bool = False


def grouped_table(shape: Shape, codes: Codes) -> GroupedTable | None:
    """Codes of scalar tables, or of a small number type as the table that it is; None for anything else."""
    grid, values = Grid.under(shape, codes.decoded_shape), _scalar_values(codes)
    if grid is None or values is None or codes.zero is not None or codes.offset is not None:
        return None
    select = codes.table.select if isinstance(codes.table, Table) else None
    groups = grouping([p for p in (codes.scale, select) if p is not None], grid)
    if groups is None:
        return None
    return GroupedTable(
        grid.shape,
        values,
        _bytes(grid.codes(codes)),
        groups,
        groups.factor(codes.scale) if codes.scale is not None else None,
        groups.spread(select) if select is not None else None,
        codes.scale is not None and codes.scale.divide,
    )


def grouped_floats(shape: Shape, codes: Codes) -> GroupedFloats | None:
    """Floats of at most 8 bits with at most a scale; None for anything else."""
    grid = Grid.under(shape, codes.decoded_shape)
    if grid is None or not isinstance(codes.table, str) or codes.zero is not None or codes.offset is not None:
        return None
    groups = grouping([codes.scale] if codes.scale is not None else [], grid)
    if groups is None:
        return None
    return GroupedFloats(
        grid.shape,
        dtype(codes.table),
        _bytes(grid.codes(codes)),
        groups,
        groups.factor(codes.scale) if codes.scale is not None else None,
        codes.scale is not None and codes.scale.divide,
    )


def book_values(table: Table) -> Float32 | None:
    """The entries of a codebook, float32 [tables, levels, *block]; None where they are too many to be read at once."""
    kind = of_storage(table.values.dtype)
    if kind is None or math.prod(table.values.shape) > _TABLE_LIMIT:
        return None
    return kind.decode(table.values.read())


def _scalar_values(codes: Codes) -> Float32 | None:
    """[tables, levels] of a scalar table of at most 8 bits."""
    if isinstance(codes.table, str):
        row = dtype(codes.table)
        return row.values()[None] if row.bits <= 8 else None
    if len(codes.table.values.shape) != 2 or codes.table.values.shape[1] > _LEVELS:
        return None
    return book_values(codes.table)


def _bytes(read: RowReader) -> RowReader:
    def as_bytes(start: int, stop: int) -> Array:
        return read(start, stop).astype(np.uint8, copy=False)

    return as_bytes
