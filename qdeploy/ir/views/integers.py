"""Codes of any table as unsigned integers: value = unit * (code - zero), exactly.

The unit is the greatest power of two of which every value is a multiple. A table has such integers if they span at most
256: that holds for e2m1, IQ4_NL, the grids of the i-quants with their signs, ternary tables, and of course integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes
from qdeploy.ir.dtype import dtype, of_storage
from qdeploy.ir.tensor import Array, Codes, LowRank, Param
from qdeploy.ir.views.params import Grid, RowReader, distinct

_TABLE_LIMIT = 1 << 20


@dataclass(frozen=True)
class UnsignedCodes:
    """Codes as unsigned integers.

    Attributes:
        top: The greatest code.
        zero: The code that means zero.
        unit: What a code is worth.
        read: uint8 [rows of the matrix, K].
        stream: The codes as they lie, where they are these integers already, in a bit stream along the rows.
    """

    top: int
    zero: int
    unit: float
    read: RowReader
    stream: Codes | None = None


def unsigned_codes(codes: Codes, signs: Codes | None, grid: Grid) -> tuple[UnsignedCodes | None, bool]:
    """Finds the integers of codes, times signs of the same grid where there are any.

    Returns:
        The integers, or None where there are none, and whether the zero points are in them already (those of a codebook
        are: they shift its values, and may stand between integers of the table's own unit).
    """
    if is_integer_table(codes) and signs is None:
        return _of_integer_table(codes, grid), False
    levels = _levels(codes)
    zeros = distinct(codes.zero, 256) if codes.zero is not None else np.zeros(1, np.float32)
    if levels is None or zeros is None or not np.isfinite(levels).all() or not np.isfinite(zeros).all():
        return None, True
    values = np.subtract.outer(levels, zeros).ravel()
    if signs is not None:
        values = np.concatenate((values, -values))
    unit = power_of_two_unit(values)
    low, high = (float(v) / unit for v in (values.min(), values.max()))
    zero = int(-low) if low < 0 else 0
    if high + zero > 255 or zero > 255:
        return None, True
    return UnsignedCodes(max(1, int(high) + zero), zero, unit, _reader(codes, signs, levels, unit, zero, grid)), True


def is_integer_table(codes: Codes) -> bool:
    """Whether level c of the table is c, or c as two's complement, in at most 8 bits."""
    return isinstance(codes.table, str) and dtype(codes.table).is_integer and dtype(codes.table).bits <= 8


def split_signs(scale: Param | None) -> tuple[Codes | None, Param | None]:
    """Takes a plane of signs off a scale: what is left is the scale of the signs, whose owner is the same grid."""
    if scale is None or isinstance(scale.values, LowRank) or scale.divide or scale.index is not None:
        return None, scale
    values = scale.values
    if any(t != 1 for t in scale.tile) or values.zero is not None or values.offset is not None:
        return None, scale
    levels = _levels(values)
    if levels is None or not np.array_equal(np.abs(levels), np.ones_like(levels)):
        return None, scale
    return replace(values, scale=None), values.scale


def power_of_two_unit(values: Array) -> float:
    """The greatest power of two of which all values are integer multiples (1 if all are zero)."""
    nonzero = values[values != 0].astype(np.float64)
    if not nonzero.size:
        return 1.0
    fraction, exponent = np.frexp(nonzero)
    mantissa = np.abs(fraction * 2.0**53).astype(np.int64)
    lowest = (mantissa & -mantissa).astype(np.float64)  # the lowest set bit
    return float(np.exp2(np.min(np.log2(lowest) + exponent - 53)))


def _levels(codes: Codes) -> Array | None:
    """Every value that the table can give, float32, flat; None where they are too many to be looked at."""
    if isinstance(codes.table, str):
        return dtype(codes.table).values() if dtype(codes.table).bits <= 8 else None
    kind = of_storage(codes.table.values.dtype)
    if kind is None or math.prod(codes.table.values.shape) > _TABLE_LIMIT:
        return None
    return kind.decode(codes.table.values.read()).ravel()


def _of_integer_table(codes: Codes, grid: Grid) -> UnsignedCodes:
    kind = dtype(str(codes.table))
    signed = kind.kind == "signed"
    flip, mask = np.uint8(1 << kind.bits - 1), np.uint8((1 << kind.bits) - 1)

    def read(start: int, stop: int) -> Array:
        raw = read_codes(codes, start * grid.fold, stop * grid.fold).reshape(stop - start, grid.shape[1])
        raw = raw.astype(np.uint8, copy=False)
        return (raw & mask) ^ flip if signed else raw

    streamed = codes.layout.kind == "bits" and codes.layout.width == kind.bits and grid.fold == 1 and not signed
    return UnsignedCodes(int(mask), int(flip) if signed else 0, 1.0, read, codes if streamed else None)


def _reader(codes: Codes, signs: Codes | None, levels: Array, unit: float, zero: int, grid: Grid) -> RowReader:
    small, base = np.float32(unit), np.float32(zero)
    one_table = isinstance(codes.table, str) or (codes.table.select is None and codes.table.values.shape[0] == 1)
    if one_table and signs is None and codes.zero is None and math.prod(codes.block) == 1:
        table = (levels / small + base).astype(np.uint8)

        def look_up(start: int, stop: int) -> Array:
            entries = np.take(table, read_codes(codes, start * grid.fold, stop * grid.fold))
            return entries.reshape(stop - start, grid.shape[1])

        return look_up
    bare = replace(codes, scale=None, offset=None)

    def read(start: int, stop: int) -> Array:
        rows = slice(start * grid.fold, stop * grid.fold)
        values = decode_codes(bare, rows)
        if signs is not None:
            values = values * decode_codes(signs, rows)
        return (values / small + base).astype(np.uint8).reshape(stop - start, grid.shape[1])

    return read
