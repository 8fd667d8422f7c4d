"""What a tensor means: the one reference decode, in float32, by rows. Every other implementation is tested against it.

    Codes     v = table[code];  v = v - zero;  v = v * scale (or v / scale);  v = v + offset
    LowRank   ((u[:, 0] * vt[0]) + u[:, 1] * vt[1]) + ...   columns of u in order
    QTensor   the terms in order, each added or set;  then * scale, + offset

Every step is one float32 operation with one rounding; nothing is fused and nothing is summed in another order, so a
range of rows is bit for bit the slice of the whole. The first term is taken as it is (not added to zero: -0 stays -0).

A term's grid may be any reshape of the tensor: `W = decode(grid).ravel()[:numel].reshape(shape)`. Under a mask the
codes are one run, row-major, of the selected elements of the grid; their params still address the whole grid. The tile
of `Table.select` counts codes; every other tile counts elements of the owner's decoded grid. A rung that has terms of
its own is decoded by them, and their buffers are the resident ones; without, planes that are missing read as zero.

No index that a file gives is followed before it is known to be in range: a hostile file ends in a BadFileError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.codes import Reader, read_codes, read_grid
from qdeploy.ir.dtype import dtype
from qdeploy.ir.masks import mask_rows, under_mask
from qdeploy.ir.rules import check
from qdeploy.ir.tensor import Array, Codes, Float32, LowRank, Param, QTensor, Shape, Table, Term
from qdeploy.ir.tiles import apply, spread, tiles

__all__ = ["decode_codes", "decode_lowrank", "decode_param", "decode_tensor", "read_codes", "slabs"]

SLAB = 8 << 20
"""Bytes of decoded float32 that are worked on at a time."""

_LOOKUP = 1 << 16  # codes at a time: numpy looks up through 64-bit indices, which stay in the cache


def decode_tensor(tensor: QTensor, rows: slice | None = None, rung: int | None = None) -> Float32:
    """Returns rows of a tensor's first axis.

    Args:
        tensor: Any tensor; its description is judged first (`rules.check`).
        rows: A range of the first axis; None for all.
        rung: Which of the tensor's rungs; None for the complete form.

    Returns:
        float32 [rows, *shape[1:]]; shape () for a scalar tensor.

    Raises:
        BadFileError: The tensor contradicts itself, or an index in it is out of range.
        BadArgumentError: There is no such rung, or `rows` has a step.
    """
    check(tensor, "tensor")
    shape = tensor.shape or (1,)
    start, stop = _span(rows, shape[0])
    out = np.empty((stop - start, *shape[1:]), np.float32)
    terms = _terms_at(tensor, rung)
    if not out.size:
        return out
    with np.errstate(all="ignore"):  # overflow to infinity and NaN are what the numbers mean
        for part in _slabs(tensor, start, stop, SLAB):
            out[part.start - start : part.stop - start] = _tensor_rows(tensor, terms, part.start, part.stop)
    return out if tensor.shape else out.reshape(())


def slabs(tensor: QTensor, budget_bytes: int = SLAB) -> Iterator[slice]:
    """Yields row ranges that cover the tensor, each of at most `budget_bytes` of float32 but at least one row.

    Cuts lie, where the budget allows, between rows of the terms' grids and between tiles of their params, so that
    nothing is decoded twice.
    """
    check(tensor, "tensor")
    rows = (*tensor.shape, 1)[0]
    if not math.prod(tensor.shape):
        return iter([slice(0, rows)])
    return _slabs(tensor, 0, rows, budget_bytes)


def decode_codes(codes: Codes, rows: slice | None = None) -> Float32:
    """Returns rows of the decoded grid of codes of a legal tensor: float32 [rows, *decoded_shape[1:]]."""
    start, stop = _span(rows, codes.decoded_shape[0])
    with np.errstate(all="ignore"):
        return _codes_rows(codes, start, stop)


def decode_lowrank(values: LowRank, rows: slice | None = None) -> Float32:
    """Returns rows of `u @ vt`: float32 [rows, K]; the products are summed in the order of the columns of u."""
    start, stop = _span(rows, values.decoded_shape[0])
    with np.errstate(all="ignore"):
        return _lowrank_rows(values, start, stop)


def decode_param(param: Param, rows: slice | None, owner_shape: Shape) -> Float32:
    """Returns a param spread over rows of its owner's decoded grid.

    Args:
        param: One number per tile.
        rows: A range of the owner's first axis; None for all.
        owner_shape: The owner's decoded grid.

    Returns:
        float32 [rows, *owner_shape[1:]]; a read-only broadcast view where that is enough.
    """
    start, stop = _span(rows, owner_shape[0])
    with np.errstate(all="ignore"):
        small = tiles(param, start, stop, owner_shape, _values_rows)
    return spread(small, param.tile, start, (stop - start, *owner_shape[1:]))


def _span(rows: slice | None, extent: int) -> tuple[int, int]:
    start, stop, step = (slice(None) if rows is None else rows).indices(extent)
    if step != 1:
        raise BadArgumentError("rows are read in a contiguous range", found=rows, allowed="a slice without a step")
    return start, max(start, stop)


# The tensor: terms, masks, reshapes.


def _terms_at(tensor: QTensor, rung: int | None) -> list[tuple[Term, int | None]]:
    """Each term that is present, and how many of its planes are (None: all)."""
    if rung is None:
        return [(term, None) for term in tensor.terms]
    if not 0 <= rung < len(tensor.rungs):
        raise BadArgumentError("no such rung", found=rung, allowed=f"0 to {len(tensor.rungs) - 1}")
    step = tensor.rungs[rung]
    terms = tensor.terms if step.terms is None else step.terms
    whole = step.terms is not None
    return [(term, None if whole else count) for term, count in zip(terms, step.planes, strict=True) if count > 0]


def _slabs(tensor: QTensor, start: int, stop: int, budget: int) -> Iterator[slice]:
    row = max(1, math.prod(tensor.shape[1:]))
    unit = 1
    for term in tensor.terms:
        inner = max(1, math.prod(term.values.decoded_shape[1:]))
        for tile in _row_tiles(term.values):
            whole = math.lcm(unit, math.lcm(row, inner * tile) // row)
            unit = whole if whole * row * 4 <= budget else unit
    step = max(unit, budget // (4 * row * unit) * unit)
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield slice(start, end)
        start = end


def _row_tiles(values: Codes | LowRank) -> list[int]:
    """Rows of the decoded grid that belong together: a block, and the tiles of the params over it."""
    if isinstance(values, LowRank):
        return [1]
    block, extent = values.block[0], values.decoded_shape[0]
    params = (values.zero, values.scale, values.offset)
    return [block, *(p.tile[0] for p in params if p is not None and block < p.tile[0] < extent)]


def _tensor_rows(tensor: QTensor, terms: list[tuple[Term, int | None]], start: int, stop: int) -> Float32:
    owner = tensor.shape or (1,)
    shape = (stop - start, *owner[1:])
    total: Float32 | None = None
    for term, resident in terms:
        values, mask = _term_rows(term, resident, owner, start, stop)
        if mask is None:
            total = values if total is None or term.mode == "set" else np.add(total, values)
        else:
            total = np.zeros(values.shape, np.float32) if total is None else total
            total = np.where(mask, values if term.mode == "set" else total + values, total)
    if total is None:  # a rung without any term
        total = np.zeros(math.prod(shape), np.float32)
    return _affine(total.reshape(shape), owner, start, None, tensor.scale, tensor.offset)


def _term_rows(term: Term, resident: int | None, owner: Shape, start: int, stop: int) -> tuple[Float32, Array | None]:
    """A term's share of rows of the tensor, flat, and where it counts (None: everywhere)."""
    grid = term.values.decoded_shape
    row, inner = math.prod(owner[1:]), math.prod(grid[1:])
    low, high = start * row, stop * row
    first, last = low // inner, -(-high // inner)
    cut = slice(low - first * inner, high - first * inner)
    if term.where is None:
        return _values_rows(term.values, first, last, _leading(resident)).reshape(-1)[cut], None
    mask = mask_rows(term.where, grid, first, last)
    values = _values_rows(term.values, first, last, under_mask(term.where, mask, first, resident))
    return values.reshape(-1)[cut], mask.reshape(-1)[cut]


def _leading(resident: int | None) -> Reader:
    """Reads the leading planes of a term's codes."""
    return lambda codes, start, stop: read_grid(codes, codes.shape, start, stop, resident)


# Codes: table, zero, scale, offset.


def _values_rows(values: Codes | LowRank, start: int, stop: int, read: Reader = read_codes) -> Float32:
    return _lowrank_rows(values, start, stop) if isinstance(values, LowRank) else _codes_rows(values, start, stop, read)


def _codes_rows(codes: Codes, start: int, stop: int, read: Reader = read_codes) -> Float32:
    block = codes.block[0]
    first, last = start // block, -(-stop // block)
    values = _look_up(codes, read(codes, first, last), first)[start - first * block : stop - first * block]
    return _affine(values, codes.decoded_shape, start, codes.zero, codes.scale, codes.offset)


def _lowrank_rows(values: LowRank, start: int, stop: int) -> Float32:
    u = _codes_rows(values.u, start, stop)  # [rows, k]
    rank, columns = values.vt.decoded_shape
    vt = _codes_rows(values.vt, 0, rank)  # [k, K]
    out = np.zeros((len(u), columns), np.float32)
    step = max(1, _LOOKUP // max(1, columns))
    for row in range(0, len(u), step):
        part = out[row : row + step]
        for j in range(rank):
            product = u[row : row + step, j : j + 1] * vt[j]
            np.copyto(part, product if j == 0 else part + product)
    return out


def _look_up(codes: Codes, indices: Array, first: int) -> Float32:
    """The value of every code: [rows, *shape[1:]] -> [rows * block[0], ...]."""
    if isinstance(codes.table, Table):
        return _from_codebook(codes, codes.table, indices, first)
    kind = dtype(codes.table)
    if kind.bits > 8:
        return kind.decode(indices)
    if not kind.is_integer:
        return _take(kind.values(), indices)
    _check_below(indices, 1 << kind.bits, "a code lies outside of its number format")
    if kind.kind == "unsigned":
        return indices.astype(np.float32)
    half = 1 << (kind.bits - 1)  # two's complement with its sign bit flipped is the number plus half the range
    values = (indices ^ half).astype(np.float32)
    values -= half
    return values


def _from_codebook(codes: Codes, table: Table, indices: Array, first: int) -> Float32:
    tables, levels, *block = table.values.shape
    low, high = 0, 1
    if table.select is not None:
        _check_below(indices, levels, "a code lies outside of its table")
        chosen = _selection(table.select, first, (len(indices), *codes.shape[1:]), codes.shape, tables)
        low, high = (int(chosen.min()), int(chosen.max()) + 1) if chosen.size else (0, 0)
        indices = (chosen - low) * levels + indices  # int64 [rows, *shape[1:]]
    entries = table.values.read(low, high).astype(np.float32)  # only the tables that these rows use
    values = _take(entries.reshape(-1, *block), indices)  # [rows, *shape[1:], *block]
    if not block:
        return values
    order = [axis for i in range(indices.ndim) for axis in (i, indices.ndim + i)]
    return values.transpose(order).reshape([n * b for n, b in zip(indices.shape, block, strict=True)])


def _selection(select: Param, first: int, shape: Shape, owner: Shape, tables: int) -> Array:
    """Which table each code of the rows uses: int64 [*shape], a broadcast view where that is enough."""
    small = tiles(select, first, first + shape[0], owner, _integers)
    _check_below(small, tables, "a selected table does not exist")
    return spread(small.astype(np.int64), select.tile, first, shape)


def _integers(values: Codes | LowRank, start: int, stop: int) -> Array:
    if isinstance(values, LowRank):
        raise BadFileError("a selection is not made of integers", allowed="codes of a named number format")
    return read_codes(values, start, stop)


def _take(table: Float32, index: Array) -> Float32:
    """`table[index]` along axis 0, in pieces that stay in the cache."""
    _check_below(index, len(table), "a code lies outside of its table")
    block = table.shape[1:]
    out = np.empty((index.size, *block), np.float32)
    flat = index.reshape(-1)
    step = max(1, _LOOKUP // max(1, math.prod(block)))
    for start in range(0, flat.size, step):  # in range, as checked: "clip" only spares numpy a second check
        np.take(table, flat[start : start + step], axis=0, out=out[start : start + step], mode="clip")
    return out.reshape(*index.shape, *block)


def _check_below(index: Array, limit: int, what: str) -> None:
    if index.size and (index.itemsize > 1 or limit < 256) and int(index.max()) >= limit:
        raise BadFileError(what, found=int(index.max()), allowed=f"below {limit}")


def _affine(
    values: Float32, owner: Shape, start: int, zero: Param | None, scale: Param | None, offset: Param | None
) -> Float32:
    """`((values - zero) * scale) + offset`; `values` are rows of the owner from `start` on, and are overwritten."""
    for param, operation in ((zero, np.subtract), (scale, np.multiply), (offset, np.add)):
        if param is not None:
            values = np.require(values, requirements=["C", "W"])
            small = tiles(param, start, start + len(values), owner, _values_rows)
            apply(np.divide if param.divide else operation, values, small, param.tile, start)
    return values
