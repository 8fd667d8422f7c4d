"""Tensors of one term, each kind in its way: integers, tables, floats, vectors, bit stacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qdeploy.backends.native import interleave, numbers
from qdeploy.backends.native.columns import Columns, choose_columns
from qdeploy.backends.native.layout import MAX_RANK, NumberKind, TermKind, aligned
from qdeploy.backends.native.parts import (
    Array,
    LoweredMatrix,
    LoweredTerm,
    ParamPlan,
    Piece,
    RowReader,
    grouped_term,
    param,
    row_range,
    row_slabs,
    two_level,
)
from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes, decode_param
from qdeploy.ir.tensor import Codes, Param, QTensor
from qdeploy.ir.views import Coded, Floats, Grouped, Minifloat, SignLowRank, Vector
from qdeploy.ir.views.integers import power_of_two_unit
from qdeploy.ir.views.levels import WHOLE, levels, small_table
from qdeploy.ir.views.params import Grid, Grouping, two_levels

_WHOLE = {4: TermKind.NIBBLES, 2: TermKind.PAIRS, 8: TermKind.BYTES}


def integer_matrix(name: str, seen: Coded, layout: str) -> LoweredMatrix | None:
    """Codes of at most 8 bits: bit planes, or packed; ternary codes in pairs; signs in one plane."""
    view = seen.grouped
    if view is None:
        return None
    if view.code_top == 2 and seen.is_signs:
        return _sign_matrix(name, seen, view)
    (rows, count), bits = view.shape, max(1, view.code_top.bit_length())
    columns = choose_columns(count, view.group, view.groups, view.index)
    kind = TermKind.PAIRS if seen.is_ternary else _WHOLE.get(bits, TermKind.PLANES)
    if layout == "elastic" and not seen.is_ternary:
        kind = TermKind.PLANES
    cut = levels(seen) if kind == TermKind.PLANES else WHOLE
    bits = {TermKind.NIBBLES: 4, TermKind.PAIRS: 2, TermKind.BYTES: 8}.get(kind, bits)
    params, zero = _params(seen, view, columns)
    size = columns.padded * 16 // 8
    parts = {"codes": size * (1 if kind == TermKind.PLANES else bits)}
    if kind == TermKind.PLANES:
        parts |= {f"plane{p}": size for p in range(1, bits)}

    def produce(first: int, last: int) -> Iterator[Piece]:
        codes = columns.place(view.codes(*row_range(first, last, rows)))
        if kind == TermKind.PLANES:
            for p, plane in enumerate(interleave.planes(codes, bits)):
                yield f"plane{p}" if p else "codes", first * size, plane
        else:
            pack = {TermKind.NIBBLES: interleave.nibbles, TermKind.PAIRS: interleave.pairs}
            yield "codes", first * parts["codes"], pack.get(kind, interleave.whole_bytes)(codes)

    planes = bits if kind == TermKind.PLANES else 1
    term = grouped_term(kind, rows, columns, parts, produce, params, planes, {"zero_for_all": zero})
    exact = view.exact or (view.stored_zero is not None and not seen.divides)
    shape = f"int{bits} group {view.group}" + (" sorted" if columns.order is not None else "")
    label = f"{shape} in planes" if kind == TermKind.PLANES else shape
    reason = "integer codes as they are" if exact else "integer codes as they are; the source divides by its scale"
    return LoweredMatrix(name, view.shape, columns, (term,), label, reason, exact, levels=cut)


def _sign_matrix(name: str, seen: Coded, view: Grouped) -> LoweredMatrix:
    """Signs as one plane: sign * scale is (bit - 1/2) * (2 scale), exactly."""
    rows, count = view.shape
    columns = choose_columns(count, view.group, view.groups, view.index)
    size = columns.padded * 16 // 8

    def produce(first: int, last: int) -> Iterator[Piece]:
        codes = columns.place(view.codes(*row_range(first, last, rows)) >> np.uint8(1))  # 0 and 2: the sign is bit 1
        yield "codes", first * size, interleave.planes(codes, 1)[0]

    def twice(start: int, stop: int) -> Array:
        return view.scale(start, stop) * np.float32(2)

    scale = param("scale", twice, rows, columns, numbers.SCALES)
    term = grouped_term(TermKind.PLANES, rows, columns, {"codes": size}, produce, [scale], 1, {"zero_for_all": 0.5})
    return LoweredMatrix(
        name, view.shape, columns, (term,), f"signs group {view.group}", "signs as they are", view.exact
    )


def _params(seen: Coded, view: Grouped, columns: Columns) -> tuple[list[ParamPlan], float]:
    rows, zero = view.shape[0], 0.0
    plans = [_scale("scale", seen.codes.scale, view.scale, view, columns)]
    if view.stored_zero is not None:
        plans.append(param("zero", view.stored_zero, rows, columns, (NumberKind.F16, NumberKind.F32)))
    elif isinstance(view.zero, int):
        zero = float(view.zero)
    else:
        plans.append(param("zero", view.zero, rows, columns, (NumberKind.U8,)))
    offset = view.stored_offset if view.stored_zero is not None else view.offset
    if offset is not None:
        plans.append(_scale("offset", seen.codes.offset, offset, view, columns))
    return plans, zero


def _scale(name: str, source: Param | None, read: RowReader, view: Grouped, columns: Columns) -> ParamPlan:
    """A scale or an offset: of two levels where the source's is, otherwise in the smallest format."""
    rows = view.shape[0]
    if source is not None and columns.order is None:
        split = two_levels(source, Grouping(Grid(view.shape, view.shape[1]), view.group, view.groups))
        plan = two_level(name, *split, rows, columns) if split else None
        if split is not None and plan is not None and _agrees(split, read, rows, columns):
            return plan
    return param(name, read, rows, columns, numbers.SCALES)


def _agrees(split: tuple[RowReader, RowReader, int], read: RowReader, rows: int, columns: Columns) -> bool:
    """Whether the product of the levels is what the view says (a unit or a sign may have gone into it)."""
    sub, above, span = split
    for first, last in row_slabs(rows, columns.groups):
        at = row_range(first, last, rows)
        low = sub(*at)
        with np.errstate(all="ignore"):
            product = low * np.repeat(above(*at), span, axis=1)[:, : low.shape[1]]
        if not np.array_equal(product, read(*at), equal_nan=True):
            return False
    return True


def table_matrix(name: str, seen: Coded) -> LoweredMatrix | None:
    """Codebooks of 5 to 16 scalars."""
    tabled = small_table(seen)
    if tabled is None:
        return None
    (rows, count), groups = tabled.shape, tabled.grouping
    columns = choose_columns(count, groups.group, groups.groups, groups.index)
    params = []
    if tabled.scale is not None:
        params.append(param("scale", tabled.scale, rows, columns, numbers.SCALES))
    if tabled.select is not None and len(tabled.values) > 1:
        params.append(param("select", tabled.select, rows, columns, (NumberKind.U8,)))
    kind, width = (TermKind.TABLE3, 8) if tabled.levels <= 8 else (TermKind.TABLE4, 16)
    size = columns.padded * (6 if width == 8 else 8)

    def produce(first: int, last: int) -> Iterator[Piece]:
        codes = columns.place(tabled.codes(*row_range(first, last, rows)))
        yield "codes", first * size, interleave.triples(codes) if width == 8 else interleave.nibbles(codes)

    record, tensors = _tables(tabled.values, width)
    term = grouped_term(kind, rows, columns, {"codes": size}, produce, params, 1, record, tensors)
    term = replace(term, params={k: v for k, v in term.params.items() if k != "select"})
    form = f"table of {tabled.levels} group {groups.group}" + (" sorted" if columns.order is not None else "")
    return LoweredMatrix(name, (rows, count), columns, (term,), form, "codes of a table as they are")


def _tables(values: Array, width: int) -> tuple[dict[str, float], dict[str, Array]]:
    table = np.zeros((len(values), width), np.float32)
    table[:, : values.shape[1]] = values
    unit, greatest = power_of_two_unit(table.ravel()), float(np.abs(table).max())
    if greatest / unit > 127:
        unit = float(np.float32(greatest / 127))
    whole = np.clip(np.rint(table / np.float32(unit)), -127, 127).astype(np.int8)
    return {"tables": len(table), "table_unit": unit}, {"table_tensor": table, "itable_tensor": whole}


def float_matrix(name: str, seen: Floats) -> LoweredMatrix | None:
    """Floats of 16 or 32 bits as they are stored."""
    if not seen.dtype.native or len(seen.shape) != 2:
        return None
    columns, stored = _row_columns(seen.shape[1]), seen.dtype.storage.lower()
    kind, rows = NumberKind(seen.dtype.native), seen.rows
    read = lambda start, stop: rows(start, stop).view(f"<u{seen.dtype.bits // 8}")  # noqa: E731
    shape = (seen.shape[0], seen.shape[1])
    return _floats(name, shape, kind, read, columns, [], f"{stored} floats", "floats as they are")


def minifloat_matrix(name: str, seen: Minifloat) -> LoweredMatrix | None:
    """Floats of at most 8 bits with a scale per block, in the first format of the file that holds all their values."""
    floats = seen.floats
    if floats is None or floats.divides or seen.dtype.kind != "float":
        return None
    values = seen.dtype.values()
    own = NumberKind(seen.dtype.native)
    kinds = (NumberKind.E4M3, NumberKind.E5M2, NumberKind.F16, NumberKind.F32)
    kind = own or numbers.smallest(kinds, lambda: [values]) or NumberKind.F32
    stored = numbers.stored(kind, values)
    stored = stored.view(f"<u{stored.itemsize}")

    def read(start: int, stop: int) -> Array:
        codes = floats.codes(start, stop)
        return codes if own else stored[codes]

    (rows, count), groups = floats.shape, floats.grouping
    columns = choose_columns(count, groups.group, groups.groups, groups.index)
    params = [param("scale", floats.scale, rows, columns, numbers.SCALES)] if floats.scale is not None else []
    block = "x".join(map(str, _block(seen)))
    label = f"{seen.dtype.name} floats" + (f" block {block}" if params else "")
    return _floats(name, floats.shape, kind, read, columns, params, label, "floats as they are")


def _block(seen: Coded) -> tuple[int, ...]:
    """Extents of the elements that share a scale."""
    tile = seen.codes.shape if seen.codes.scale is None else seen.codes.scale.tile
    return tuple(map(min, tile, seen.codes.shape))


def decoded_matrix(name: str, tensor: QTensor, why: str) -> LoweredMatrix:
    """Anything, as what it decodes to: 16-bit floats where these hold it, otherwise float32."""
    rows, count = tensor.shape[0], tensor.shape[1]

    def parts() -> Iterator[Array]:
        for first, last in row_slabs(rows, count):
            yield tensor.decode(slice(*row_range(first, last, rows)))

    kind = numbers.smallest((NumberKind.F16, NumberKind.BF16, NumberKind.F32), parts) or NumberKind.F32

    def read(start: int, stop: int) -> Array:
        numbers_of_rows = numbers.stored(kind, tensor.decode(slice(start, stop)))
        return numbers_of_rows.view(f"<u{numbers_of_rows.itemsize}")

    label = f"decoded to {kind.name.lower()}"
    return _floats(name, (rows, count), kind, read, _row_columns(count), [], label, f"slow: {why}")


def _row_columns(count: int) -> Columns:
    """Columns in order, in one group."""
    return choose_columns(count, count, 1, None)


def _floats(
    name: str,
    shape: tuple[int, int],
    kind: NumberKind,
    read: RowReader,
    columns: Columns,
    params: list[ParamPlan],
    label: str,
    reason: str,
) -> LoweredMatrix:
    rows = shape[0]
    size = columns.padded * 16 * numbers.DTYPES[kind].itemsize

    def produce(first: int, last: int) -> Iterator[Piece]:
        yield "codes", first * size, interleave.by_columns(columns.place(read(*row_range(first, last, rows))))

    term = grouped_term(TermKind.FLOATS, rows, columns, {"codes": size}, produce, params, 1, {"element": kind})
    return LoweredMatrix(name, shape, columns, (term,), label, reason)


def vector_matrix(name: str, seen: Vector) -> LoweredMatrix | None:
    """Sums of vector codebooks whose entries lie along a row."""
    (rows, count), width, sizes = seen.shape, seen.block[1], seen.levels
    padded, scale, entries = aligned(count, 32), None, sizes[0]
    if not seen.is_along_rows or len(set(sizes)) != 1 or padded % width or entries > 1 << 16:
        return None
    if seen.scale is not None:
        if seen.scale.divide or seen.scale.index is not None or seen.scale.tile[1] < count:
            return None
        scale = np.ascontiguousarray(decode_param(seen.scale, None, seen.shape)[:, 0], np.float32)
    read_books = [seen.book(place) for place in range(len(sizes))]
    books = np.stack([book.reshape(entries, width) for book in read_books if book is not None])
    if len(books) != len(sizes):
        return None
    columns = Columns(count, padded, padded, np.zeros(1, np.int64))
    kind = np.dtype("u1" if entries <= 256 else "<u2")
    size = padded // width * len(books) * 16 * kind.itemsize

    def produce(first: int, last: int) -> Iterator[Piece]:
        start, stop = row_range(first, last, rows)
        codes = np.zeros((len(books), 16 * (last - first), padded // width), kind)
        for place in range(len(books)):
            codes[place, : stop - start, : count // width] = seen.codes(place)(start, stop)
        yield "codes", first * size, interleave.entries(codes)

    record, tensors = {"width": width, "books": len(books), "levels": entries}, {"table_tensor": books}
    term = grouped_term(TermKind.VECTOR, rows, columns, {"codes": size}, produce, [], 1, record, tensors)
    form, reason = f"{len(books)} codebooks of {entries} x {width}", "vector codes as they are"
    return LoweredMatrix(name, (rows, count), columns, (term,), form, reason, row_scale=scale)


def bitstack_matrix(name: str, seen: SignLowRank) -> LoweredMatrix | None:
    """Sums of signs times low-rank products, one term after the other."""
    if len(seen.shape) != 2:
        return None
    rows, count = seen.shape
    columns = Columns(count, aligned(count, 32), aligned(count, 32), np.zeros(1, np.int64))
    terms = []
    for level, (signs, u, vt) in enumerate(seen.terms):
        rank = vt.decoded_shape[0]
        half = (numbers.holds(NumberKind.F16, decode_codes(u)), numbers.holds(NumberKind.F16, decode_codes(vt)))
        if rank > MAX_RANK or not all(half):
            return None
        terms.append(_bitstack_term(signs, u, vt, columns, level))
    label = f"{len(terms)} sign planes of rank {seen.terms[0][2].decoded_shape[0]}"
    reason, cut = "signs and factors as they are", levels(seen)
    return LoweredMatrix(name, (rows, count), columns, tuple(terms), label, reason, levels=cut)


def _bitstack_term(signs: Codes, u: Codes, vt: Codes, columns: Columns, level: int) -> LoweredTerm:
    rows, rank = signs.shape[0], aligned(vt.decoded_shape[0], 4)
    blocks, u_size = -(-rows // 16), rank * 32
    v_at = blocks * u_size
    signs_at = v_at + rank * columns.padded * 2
    tile_bytes = [blocks * (t.stop - t.start) * 2 for t in interleave.sign_tiles(columns.padded)]

    def produce(first: int, last: int) -> Iterator[Piece]:
        start, stop = row_range(first, last, rows)
        factors = np.zeros((16 * (last - first), rank), np.float16)
        factors[: stop - start, : u.decoded_shape[1]] = decode_codes(u, slice(start, stop))
        yield "codes", first * u_size, interleave.by_columns(factors)
        if first == 0:
            right = np.zeros((rank, columns.padded), np.float16)
            right[: vt.decoded_shape[0], : columns.count] = decode_codes(vt)
            yield "codes", v_at, right
        bits, at = columns.place(read_codes(signs, start, stop).astype(np.uint8)), signs_at
        for tile, size in zip(interleave.sign_tiles(columns.padded), tile_bytes, strict=True):
            plane = interleave.planes(np.ascontiguousarray(bits[:, tile]), 1)[0]
            yield "codes", at + first * (tile.stop - tile.start) * 2, plane
            at += size

    sizes = {"codes": signs_at + sum(tile_bytes)}
    fields = {"group": columns.group, "groups": 1, "rank": rank}
    return LoweredTerm(TermKind.BITSTACK, sizes, produce, 1, fields, level=level)
