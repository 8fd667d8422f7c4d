"""The named patterns that backends ask for, so that none of them walks trees. Each is plain numbers, codes and params.

    plain_float      an unquantized tensor
    affine_grouped   ((code - zero) * scale) + offset, one of each per group of the last axis
    table_grouped    table[select][code] * scale
    ternary          codes for -1, 0, 1, and a scale
    minifloat_block  floats of at most 8 bits, and a scale per block of any extent
    sign_lowrank     a sum of sign codes times u @ vt
    vector           a sum of codebooks whose entries are blocks of the tensor

A pattern is recognised by structure alone; no data is read, but for the values of small tables. What a pattern does not
name is not there: `affine_grouped` never answers for a tensor that has more than it says.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.ir.datatype import DATATYPES, datatype
from qdeploy.ir.tensor import Buffer, Codes, Float32, LowRank, Param, QTensor, Shape, Table

_FLOATS = ("f16", "bf16", "f32", "f64")
_MINIFLOATS = ("e4m3", "e5m2", "e2m1", "e2m3", "e3m2")
_TABLE_LIMIT = 1 << 24  # entries of a codebook that is read as a whole


@dataclass(frozen=True)
class PlainFloat:
    """An unquantized tensor: one float of `dtype` (a storage type) per element, in the tensor's own shape."""

    dtype: str
    codes: Codes


@dataclass(frozen=True)
class AffineGrouped:
    """`((code - zero) * scale) + offset`.

    Attributes:
        bits: Of a code, 1 to 8.
        signed: Codes are two's complement.
        codes: The grid. Equal to the tensor's shape, or a reshape of it.
        group: Elements of the last axis per scale; the whole axis where there is one per row or per tensor. With an
            index, the columns that share a scale lie apart, and this is how many there are on average.
        scale: None means 1.
        zero: A number for all, or a param; None means 0.
        offset: In the value domain; None means 0.
        index: I32 [columns]: the group of each column; None: columns are in order.
    """

    bits: int
    signed: bool
    codes: Codes
    group: int
    scale: Param | None
    zero: Param | int | None
    offset: Param | None
    index: Buffer | None


@dataclass(frozen=True)
class TableGrouped:
    """`table[select][code] * scale`.

    Attributes:
        bits: Of a code, 1 to 8.
        codes: The grid.
        table: float32 [tables, levels].
        select: Which table, per tile of the grid; None: table 0.
        group: Elements of the last axis per scale.
        scale: None means 1.
    """

    bits: int
    codes: Codes
    table: Float32
    select: Param | None
    group: int
    scale: Param | None


@dataclass(frozen=True)
class Ternary:
    """`(code - 1) * scale`: codes 0, 1, 2 stand for -1, 0, 1.

    Attributes:
        codes: The grid.
        group: Elements of the last axis per scale.
        scale: Its `divide` says whether the source divides; None means 1.
    """

    codes: Codes
    group: int
    scale: Param | None


@dataclass(frozen=True)
class MinifloatBlock:
    """`float(code) * scale`.

    Attributes:
        kind: A row of ir/datatype.py: e4m3, e5m2, e2m1, e2m3, e3m2.
        codes: The grid.
        tile: Extents of a block, per axis, cut to the grid.
        scale: Possibly with a scale of its own (NVFP4), possibly e8m0 (MX); None means 1.
    """

    kind: str
    codes: Codes
    tile: Shape
    scale: Param | None


@dataclass(frozen=True)
class SignLowRank:
    """The sum over its terms of `sign * (u @ vt)` (BitStack, arXiv 2410.23918): (signs, u, vt) each."""

    terms: tuple[tuple[Codes, Codes, Codes], ...]


@dataclass(frozen=True)
class Vector:
    """The sum over its codebooks of `codebook[code]`, then `* scale` (AQLM, arXiv 2401.06118).

    Attributes:
        codes: One grid per codebook, all of one shape.
        codebooks: float32 [levels, *block] each.
        block: Extent of a code in the tensor, per axis.
        scale: After the sum; None means 1.
    """

    codes: tuple[Codes, ...]
    codebooks: tuple[Float32, ...]
    block: Shape
    scale: Param | None


def plain_float(tensor: QTensor) -> PlainFloat | None:
    """An unquantized tensor: f16, bf16, f32 or f64 without params, in its own shape."""
    codes = _only_codes(tensor)
    if codes is None or codes.table not in _FLOATS or codes.layout.kind != "plain" or _params(codes):
        return None
    if codes.shape != (tensor.shape or (1,)):
        return None
    return PlainFloat(datatype(codes.table).storage, codes)


def affine_grouped(tensor: QTensor) -> AffineGrouped | None:
    """Integers of 1 to 8 bits whose scale, zero and offset agree on one group along the last axis."""
    codes = _only_codes(tensor)
    if codes is None or not isinstance(codes.table, str) or not codes.table.startswith(("uint", "int")):
        return None
    bits = datatype(codes.table).bits
    params = _params(codes)
    group = _group(codes, params)
    indices = {p.index for p in params if p.values.decoded_shape[-1] > 1}
    if bits > 8 or group is None or len(indices) > 1:
        return None
    return AffineGrouped(
        bits,
        codes.table.startswith("int"),
        codes,
        group,
        codes.scale,
        _number(codes.zero),
        codes.offset,
        next(iter(indices), None),
    )


def table_grouped(tensor: QTensor) -> TableGrouped | None:
    """Scalar codebooks as data, or a minifloat of at most 4 bits as the table that it is."""
    codes = _only_codes(tensor)
    if codes is None or codes.zero is not None or codes.offset is not None:
        return None
    group = _group(codes, _params(codes))
    values = _table_values(codes)
    if values is None or group is None or any(p.index is not None for p in _params(codes)):
        return None
    select = codes.table.select if isinstance(codes.table, Table) else None
    return TableGrouped((values.shape[1] - 1).bit_length() or 1, codes, values, select, group, codes.scale)


def ternary(tensor: QTensor) -> Ternary | None:
    """Codes of the table "ternary", or 2-bit or radix-3 codes with a zero of 1."""
    codes = _only_codes(tensor)
    if codes is None or codes.offset is not None:
        return None
    group = _group(codes, _params(codes))
    named = codes.table == "ternary" and codes.zero is None
    digits = codes.table == "uint2" and codes.layout.base == 3 and _number(codes.zero) == 1
    if group is None or not (named or digits):
        return None
    return Ternary(codes, group, codes.scale)


def minifloat_block(tensor: QTensor) -> MinifloatBlock | None:
    """Floats of at most 8 bits with one scale per block of any extent."""
    codes = _only_codes(tensor)
    if codes is None or codes.table not in _MINIFLOATS or codes.zero is not None or codes.offset is not None:
        return None
    if codes.scale is not None and codes.scale.index is not None:
        return None
    tile = codes.shape if codes.scale is None else codes.scale.tile
    return MinifloatBlock(codes.table, codes, tuple(map(min, tile, codes.shape)), codes.scale)


def sign_lowrank(tensor: QTensor) -> SignLowRank | None:
    """A sum of sign grids, each scaled element by element by a low-rank product."""
    found: list[tuple[Codes, Codes, Codes]] = []
    for term in tensor.terms:
        codes = term.values
        if not isinstance(codes, Codes) or term.where is not None or term.mode != "add" or codes.table != "sign":
            return None
        scale = codes.scale
        if scale is None or not isinstance(scale.values, LowRank) or scale.divide or _params(codes) != [scale]:
            return None
        if codes.shape != tensor.shape or any(t != 1 for t in scale.tile):
            return None
        found.append((codes, scale.values.u, scale.values.vt))
    return SignLowRank(tuple(found)) if found and tensor.scale is None and tensor.offset is None else None


def vector(tensor: QTensor) -> Vector | None:
    """A sum of one or more vector codebooks over grids of one shape, with at most a scale after the sum."""
    grids: list[Codes] = []
    books: list[Float32] = []
    for term in tensor.terms:
        codes = term.values
        if not isinstance(codes, Codes) or term.where is not None or term.mode != "add" or _params(codes):
            return None
        values = _codebook(codes.table, blocks=True)
        if values is None or len(values) != 1 or codes.decoded_shape != tensor.shape:
            return None
        grids.append(codes)
        books.append(values[0])
    if not grids or tensor.offset is not None or len({(g.shape, g.block) for g in grids}) != 1:
        return None
    return Vector(tuple(grids), tuple(books), grids[0].block, tensor.scale)


def _only_codes(tensor: QTensor) -> Codes | None:
    """The codes of a tensor that is nothing but codes."""
    if len(tensor.terms) != 1 or tensor.scale is not None or tensor.offset is not None:
        return None
    term = tensor.terms[0]
    return term.values if isinstance(term.values, Codes) and term.where is None else None


def _params(codes: Codes) -> list[Param]:
    return [p for p in (codes.zero, codes.scale, codes.offset) if p is not None]


def _one_per_row(param: Param, shape: Shape) -> bool:
    """One number for each index of the leading axes, or one for all of them."""
    return all(t == 1 for t in param.tile[:-1]) or all(t >= n for t, n in zip(param.tile[:-1], shape, strict=False))


def _group(codes: Codes, params: list[Param]) -> int | None:
    """Elements of the last axis per number, if all params that vary along it agree and keep to their rows."""
    columns = codes.decoded_shape[-1]
    found: set[int] = set()
    for param in params:
        if not _one_per_row(param, codes.decoded_shape):
            return None
        groups = param.values.decoded_shape[-1]
        if param.index is not None:
            found.add(-(-columns // max(1, groups)))
        elif param.tile[-1] < columns:
            found.add(param.tile[-1])
    return None if len(found) > 1 else found.pop() if found else max(1, columns)


def _number(param: Param | None) -> Param | int | None:
    """A param that is one unsigned integer for the whole grid, as that number."""
    if param is None or not isinstance(param.values, Codes):
        return param
    codes = param.values
    one = all(n == 1 for n in codes.shape) and codes.layout.kind == "plain" and not _params(codes)
    if not one or not isinstance(codes.table, str) or not codes.table.startswith(("uint", "int")):
        return param
    return int(datatype(codes.table).decode(codes.data[0].read().reshape(-1))[0])


def _table_values(codes: Codes) -> Float32 | None:
    """[tables, levels] of a scalar table of at most 8 bits."""
    if isinstance(codes.table, Table):
        values = _codebook(codes.table, blocks=False)
        return values if values is not None and values.shape[1] <= 256 else None
    small = DATATYPES[codes.table].bits <= 4 and codes.table in (*_MINIFLOATS, "sign")
    return datatype(codes.table).values()[None] if small else None


def _codebook(table: str | Table, *, blocks: bool) -> Float32 | None:
    """The values of a codebook of vectors or of scalars, [tables, levels, *block], float32."""
    if isinstance(table, str) or (len(table.values.shape) > 2) != blocks:
        return None
    size = 1
    for extent in table.values.shape:
        size *= extent
    return table.values.read().astype("float32") if size <= _TABLE_LIMIT else None
