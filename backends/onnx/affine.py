"""A matrix as integers: what MatMulNBits, GatherBlockQuantized and their combinations can hold without loss.

    W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] + offset[n, g],    g = group of column k

with unsigned codes of at most 8 bits. Seen this way are

    affine codes        uint and int tables of 1 to 8 bits, zero points integer or not (a fraction of a zero point, times
                        the scale, is an offset)
    integer codebooks   tables whose values are integer multiples of a power of two (e2m1, IQ4_NL, the grids of the
                        i-quants, ternary): v = unit * i, code = i + zero, and the scale takes the unit, exactly
    sign planes         a scale of +-1 per element, multiplied into the integer
    small zero points   per element of a grid (the +-1/8 of IQ1), subtracted from the integer

Nothing is rounded on the way, but for a fractional zero point's product with its scale, and a scale that divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.backends.onnx.external import Array, RowReader
from qdeploy.ir.codes import read_codes
from qdeploy.ir.datatype import DATATYPES, datatype
from qdeploy.ir.decode import decode_codes, decode_lowrank
from qdeploy.ir.tensor import Codes, LowRank, Param, QTensor, Table

_CHUNK = 1 << 20
"""Numbers of a parameter that are looked at together."""


@dataclass(frozen=True)
class Affine:
    """The view. Readers take rows [start, stop) of the matrix.

    Attributes:
        shape: [N, K].
        bits: Codes and zero points are below 2 ** bits.
        group: Columns per group; the last group may be short.
        codes: uint8 [rows, K].
        scale: float32 [rows, groups].
        zero: One for all, or uint8 [rows, groups].
        offset: float32 [rows, groups], or None where it is zero everywhere.
        stream: The codes as they lie, where they are already a bit stream along rows.
        index: Group of each column, int [K], where groups are not runs of columns.
        groups: How many groups there are.
        exact: Whether every stored number is carried without rounding.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    groups: int
    codes: RowReader
    scale: RowReader
    zero: int | RowReader
    offset: RowReader | None = None
    stream: Codes | None = None
    index: Array | None = None
    exact: bool = True


@dataclass(frozen=True)
class _Grid:
    """A grid of codes under a matrix: row n of the matrix is rows [n * fold, (n + 1) * fold) of the grid."""

    shape: tuple[int, int]
    columns: int
    fold: int


@dataclass(frozen=True)
class _Integers:
    """Codes as unsigned integers: value = unit * (code - zero)."""

    bits: int
    zero: int
    unit: float
    read: RowReader
    stream: Codes | None = None


def affine(tensor: QTensor) -> Affine | None:
    """Returns the view of a matrix, or None where it has none."""
    codes = _sole_codes(tensor)
    grid = _grid(tensor, codes) if codes else None
    if codes is None or grid is None:
        return None
    signs, scale = _split_signs(codes.scale)
    params = [p for p in (codes.zero, scale, codes.offset) if p is not None]
    if not all(_blockwise(p, grid) for p in params) or not _same_index(params):
        return None
    absorbed = _absorbed_zero(codes) if codes.zero is not None else None
    integers = _integers(codes, signs, absorbed, grid)
    if integers is None:
        return None
    zero = codes.zero if absorbed is None else None
    return _assemble(grid, integers, replace(codes, zero=zero, scale=scale))


def _sole_codes(tensor: QTensor) -> Codes | None:
    if len(tensor.shape) != 2 or len(tensor.terms) != 1 or tensor.scale or tensor.offset:
        return None
    term = tensor.terms[0]
    return term.values if isinstance(term.values, Codes) and term.where is None else None


def _grid(tensor: QTensor, codes: Codes) -> _Grid | None:
    if len(codes.decoded_shape) != 2:
        return None
    (n, k), (rows, columns) = tensor.shape, codes.decoded_shape
    if n * k != rows * columns or k % columns or not n * k:
        return None
    return _Grid((n, k), columns, k // columns)


def _blockwise(param: Param, grid: _Grid) -> bool:
    """Whether a param has one number per run of columns (or per class of columns) and per row or rows."""
    rows_fit = len(param.tile) == 2 and (param.tile[0] == 1 or grid.fold == 1 or param.tile[0] >= grid.shape[0] * grid.fold)
    whole = grid.fold == 1 or (param.index is None and grid.columns % min(param.tile[1], grid.columns) == 0)
    return rows_fit and whole and (param.tile[1] > 1 or param.index is not None or grid.columns == 1)


def _same_index(params: list[Param]) -> bool:
    keys = {p.index.key if p.index else "" for p in params if p.values.decoded_shape[-1] > 1}
    return len(keys) <= 1


# ---- codes ---------------------------------------------------------------------------------------------------------------


def _split_signs(scale: Param | None) -> tuple[Codes | None, Param | None]:
    """Takes a plane of signs off a scale: what is left is the scale of the signs, which has the same owner grid."""
    if scale is None or isinstance(scale.values, LowRank) or scale.divide or scale.index is not None:
        return None, scale
    values = scale.values
    if any(t != 1 for t in scale.tile) or values.zero is not None or values.offset is not None:
        return None, scale
    levels = _levels(values)
    if levels is None or not np.array_equal(np.abs(levels), np.ones_like(levels)):
        return None, scale
    return replace(values, scale=None), values.scale


def _levels(codes: Codes) -> Array | None:
    """Every value that the table can give, float32, or None where they are too many to be looked at."""
    if isinstance(codes.table, str):
        return datatype(codes.table).values() if DATATYPES[codes.table].bits <= 8 else None
    if math.prod(codes.table.values.shape) > _CHUNK:
        return None
    kind = {"F16": "f16", "BF16": "bf16", "F32": "f32", "I8": "int8", "U8": "uint8"}.get(codes.table.values.dtype)
    return datatype(kind).decode(codes.table.values.read()).ravel() if kind else None


def _absorbed_zero(codes: Codes) -> Array | None:
    """The distinct zero points of a codebook whose zero points belong into the integers; None for affine codes."""
    if _plain_integers(codes) or codes.zero is None:
        return None
    seen = np.zeros(0, np.float32)
    for tile in _read_all(codes.zero):
        seen = np.union1d(seen, tile)
        if len(seen) > 256:
            break
    return seen


def _plain_integers(codes: Codes) -> bool:
    """Whether level c of the table is c, or c as two's complement."""
    return isinstance(codes.table, str) and codes.table.startswith(("uint", "int")) and DATATYPES[codes.table].bits <= 8


def _integers(codes: Codes, signs: Codes | None, absorbed: Array | None, grid: _Grid) -> _Integers | None:
    if _plain_integers(codes) and signs is None:
        return _affine_integers(codes, grid)
    levels = _levels(codes)
    if levels is None or not np.isfinite(levels).all():
        return None
    if absorbed is not None:
        levels = np.subtract.outer(levels, absorbed).ravel()
    if signs is not None:
        levels = np.concatenate((levels, -levels))
    unit = power_of_two_unit(levels)
    whole = levels.astype(np.float64) / unit
    low, high = int(whole.min()), int(whole.max())
    for bits in (2, 4, 8):
        if -(1 << bits - 1) <= low and high < 1 << bits - 1:
            return _Integers(bits, 1 << bits - 1, unit, _table_reader(codes, signs, absorbed, unit, 1 << bits - 1, grid))
        if high - low < 1 << bits and low <= 0:
            return _Integers(bits, -low, unit, _table_reader(codes, signs, absorbed, unit, -low, grid))
    return None


def power_of_two_unit(values: Array) -> float:
    """The greatest power of two of which all values are integer multiples (1 if all are zero)."""
    found = values[values != 0].astype(np.float64)
    if not found.size:
        return 1.0
    fraction, exponent = np.frexp(found)
    mantissa = np.abs(fraction * 2.0**53).astype(np.int64)
    lowest = (mantissa & -mantissa).astype(np.float64)  # the lowest set bit
    return float(np.exp2(np.min(np.log2(lowest) + exponent - 53)))


def _affine_integers(codes: Codes, grid: _Grid) -> _Integers:
    kind = DATATYPES[str(codes.table)]
    signed = kind.name.startswith("int")
    flip = np.uint8(1 << kind.bits - 1) if signed else np.uint8(0)
    mask = np.uint8((1 << kind.bits) - 1)

    def read(start: int, stop: int) -> Array:
        found = read_codes(codes, start * grid.fold, stop * grid.fold).reshape(stop - start, grid.shape[1])
        found = found.astype(np.uint8, copy=False)
        return (found & mask) ^ flip if signed else found

    streamed = codes.layout.kind == "bits" and codes.layout.width == kind.bits and grid.fold == 1 and not signed
    return _Integers(kind.bits, int(flip), 1.0, read, codes if streamed else None)


def _table_reader(
    codes: Codes, signs: Codes | None, absorbed: Array | None, unit: float, zero: int, grid: _Grid
) -> RowReader:
    bare = replace(codes, scale=None, offset=None, zero=codes.zero if absorbed is not None else None)
    scalar = signs is None and absorbed is None and (isinstance(codes.table, str) or codes.table.values.shape[2:] == ())
    levels = _levels(codes) if scalar and not _selects(codes) else None
    if levels is not None:
        lut = (levels / np.float32(unit) + zero).astype(np.uint8)
        return lambda a, b: np.take(lut, read_codes(codes, a * grid.fold, b * grid.fold)).reshape(b - a, grid.shape[1])

    def read(start: int, stop: int) -> Array:
        rows = slice(start * grid.fold, stop * grid.fold)
        values = decode_codes(bare, rows)
        if signs is not None:
            values = values * decode_codes(signs, rows)
        values = values.reshape(stop - start, grid.shape[1])
        return (values / np.float32(unit) + np.float32(zero)).astype(np.uint8)

    return read


def _selects(codes: Codes) -> bool:
    return isinstance(codes.table, Table) and (codes.table.select is not None or codes.table.values.shape[0] > 1)


# ---- params --------------------------------------------------------------------------------------------------------------


def _assemble(grid: _Grid, integers: _Integers, codes: Codes) -> Affine:
    params = [p for p in (codes.zero, codes.scale, codes.offset) if p is not None]
    index = next((p.index.read() for p in params if p.index is not None), None)
    if index is None:
        group = math.gcd(*(min(p.tile[1], grid.columns) for p in params)) if params else grid.columns
        groups = -(-grid.shape[1] // group)
    else:
        groups = max(p.values.decoded_shape[1] for p in params)
        group = -(-grid.shape[1] // groups)
        in_order = np.array_equal(index, np.arange(grid.shape[1]) // group)
        index = None if in_order else index

    def spread(param: Param) -> RowReader:
        return lambda start, stop: _param_rows(param, grid, group, groups, start, stop)

    scale = _scale_reader(codes.scale, spread, integers.unit, groups)
    zero, offset, exact = _zero_reader(codes.zero, spread, scale, integers)
    if codes.offset is not None:
        offset = _sum(spread(codes.offset), offset)
    return Affine(
        grid.shape, max(integers.bits, _width(zero, codes.zero)), group, groups, integers.read, scale, zero, offset,
        integers.stream, index, exact and not (codes.scale and codes.scale.divide),
    )  # fmt: skip


def _sum(a: RowReader, b: RowReader | None) -> RowReader:
    return a if b is None else lambda start, stop: a(start, stop) + b(start, stop)


def _scale_reader(scale: Param | None, spread: Callable[[Param], RowReader], unit: float, groups: int) -> RowReader:
    factor = np.float32(unit)
    if scale is None:
        return lambda start, stop: np.full((stop - start, groups), factor, np.float32)
    read, divide = spread(scale), scale.divide
    if divide:
        return lambda start, stop: (factor / read(start, stop)).astype(np.float32)
    return read if unit == 1.0 else lambda start, stop: read(start, stop) * factor


def _zero_reader(
    zero: Param | None, spread: Callable[[Param], RowReader], scale: RowReader, integers: _Integers
) -> tuple[int | RowReader, RowReader | None, bool]:
    """The integer zero point, the offset that is left of it, and whether that is without rounding."""
    if zero is None:
        return integers.zero, None, True
    low, high, whole = _survey(zero)
    read, base = spread(zero), np.float32(integers.zero)
    if whole and low == high and 0 <= low + base < 256:
        return int(low + base), None, True
    if whole and 0 <= low + base and high + base < 256:
        return lambda start, stop: (read(start, stop) + base).astype(np.uint8), None, True
    top = np.float32((1 << integers.bits) - 1)

    def nearest(start: int, stop: int) -> Array:
        return np.clip(np.rint(read(start, stop) + base), 0, top)

    def rest(start: int, stop: int) -> Array:
        return (nearest(start, stop) - base - read(start, stop)) * scale(start, stop)

    return lambda start, stop: nearest(start, stop).astype(np.uint8), rest, False


def _width(zero: int | RowReader, param: Param | None) -> int:
    """Bits that the zero points need."""
    if isinstance(zero, int):
        return max(1, zero.bit_length())
    if param is None:
        return 1
    low, high, whole = _survey(param)
    return max(1, int(high).bit_length()) if whole and low >= 0 else 1


def _survey(param: Param) -> tuple[float, float, bool]:
    """Least and greatest value of a parameter, and whether all are integers."""
    low, high, whole = math.inf, -math.inf, True
    for tile in _read_all(param):
        low, high = min(low, float(tile.min())), max(high, float(tile.max()))
        whole = whole and bool(np.array_equal(tile, np.rint(tile)))
    return low, high, whole


def _read_all(param: Param) -> list[Array]:
    rows, columns = param.values.decoded_shape
    step = max(1, _CHUNK // max(1, columns))
    return [_values(param, start, min(start + step, rows)) for start in range(0, rows, step)]


def _values(param: Param, start: int, stop: int) -> Array:
    if isinstance(param.values, LowRank):
        return decode_lowrank(param.values, slice(start, stop))
    return decode_codes(param.values, slice(start, stop))


def _param_rows(param: Param, grid: _Grid, group: int, groups: int, start: int, stop: int) -> Array:
    """A parameter for rows of the matrix, at the common group: float32 [rows, groups]."""
    first, last = start * grid.fold, stop * grid.fold
    tile = param.tile[0]
    small = _values(param, first // tile, -(-last // tile))
    if tile > 1:
        small = np.repeat(small, tile, axis=0)[first % tile : first % tile + last - first]
    if param.index is None:
        wide = -(-grid.columns // group)  # groups in a row of the grid
        which = np.arange(wide) * group // min(param.tile[1], grid.columns)
        small = small if small.shape[1] == wide else small[:, which]
    elif small.shape[1] != groups:
        small = np.broadcast_to(small, (len(small), groups))
    return np.ascontiguousarray(small.reshape(stop - start, groups))
