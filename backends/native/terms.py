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
from qdeploy.ir import match
from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes, decode_param
from qdeploy.ir.tensor import Codes, Param, QTensor
from qdeploy.ir.views.affine import Affine, affine
from qdeploy.ir.views.integers import power_of_two_unit
from qdeploy.ir.views.params import Grid, common_group, is_blockwise, spread

_WHOLE = {4: TermKind.NIBBLES, 2: TermKind.PAIRS, 8: TermKind.BYTES}
_FLOATS = {"F16": NumberKind.F16, "BF16": NumberKind.BF16, "F32": NumberKind.F32}


def _shape(tensor: QTensor) -> tuple[int, int]:
    return tensor.shape[0], tensor.shape[1]


def integer_matrix(name: str, tensor: QTensor, layout: str) -> LoweredMatrix | None:
    """Codes of at most 8 bits: bit planes, or packed; ternary codes in pairs; signs in one plane."""
    view = affine(tensor)
    if view is None:
        return None
    if view.code_top == 2 and _is_signs(tensor):
        return _sign_matrix(name, tensor, view)
    (rows, count), bits = view.shape, max(1, view.code_top.bit_length())
    columns = choose_columns(count, view.group, view.groups, view.index)
    kind = TermKind.PAIRS if match.ternary(tensor) else _WHOLE.get(bits, TermKind.PLANES)
    if layout == "elastic" and not match.ternary(tensor):
        kind = TermKind.PLANES
    bits = {TermKind.NIBBLES: 4, TermKind.PAIRS: 2, TermKind.BYTES: 8}.get(kind, bits)
    params, zero = _params(tensor, view, columns)
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
    exact = view.exact or (view.stored_zero is not None and not _divides(tensor))
    shape = f"int{bits} group {view.group}" + (" sorted" if columns.order is not None else "")
    label = f"{shape} in planes" if kind == TermKind.PLANES else shape
    reason = "integer codes as they are" if exact else "integer codes as they are; the source divides by its scale"
    return LoweredMatrix(name, view.shape, columns, (term,), label, reason, exact)


def _is_signs(tensor: QTensor) -> bool:
    codes = tensor.terms[0].values
    return isinstance(codes, Codes) and codes.table == "sign" and codes.zero is None and codes.offset is None


def _sign_matrix(name: str, tensor: QTensor, view: Affine) -> LoweredMatrix | None:
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
        name, view.shape, columns, (term,), f"signs group {view.group}", "signs as they are", not _divides(tensor)
    )


def _divides(tensor: QTensor) -> bool:
    codes = tensor.terms[0].values
    return isinstance(codes, Codes) and codes.scale is not None and codes.scale.divide


def _params(tensor: QTensor, view: Affine, columns: Columns) -> tuple[list[ParamPlan], float]:
    rows, found, zero = view.shape[0], [], 0.0
    codes = tensor.terms[0].values
    found.append(_scale("scale", codes.scale if isinstance(codes, Codes) else None, view.scale, view, columns))
    if view.stored_zero is not None:
        found.append(param("zero", view.stored_zero, rows, columns, (NumberKind.F16, NumberKind.F32)))
    elif isinstance(view.zero, int):
        zero = float(view.zero)
    else:
        found.append(param("zero", view.zero, rows, columns, (NumberKind.U8,)))
    offset = view.stored_offset if view.stored_zero is not None else view.offset
    if offset is not None:
        found.append(_scale("offset", codes.offset if isinstance(codes, Codes) else None, offset, view, columns))
    return found, zero


def _scale(name: str, source: Param | None, read: RowReader, view: Affine, columns: Columns) -> ParamPlan:
    """A scale or an offset: of two levels where the source's is, otherwise in the smallest format."""
    rows = view.shape[0]
    if source is not None and columns.order is None:
        split = _levels(source, view)
        plan = two_level(name, *split, rows, columns) if split else None
        if plan is not None and _agrees(split, read, rows, columns):  # type: ignore[arg-type]
            return plan
    return param(name, read, rows, columns, numbers.SCALES)


def _levels(source: Param, view: Affine) -> tuple[RowReader, RowReader, int] | None:
    values = source.values
    if not isinstance(values, Codes) or source.index is not None or source.divide or values.scale is None:
        return None
    above, grid = values.scale, Grid(view.shape, view.shape[1])
    plain = values.zero is None and values.offset is None
    fits = source.tile == (1, view.group) and values.decoded_shape == (view.shape[0], view.groups)
    if not plain or not fits or above.divide or above.index is not None or len(above.tile) != 2:
        return None
    span = min(above.tile[1], view.groups)
    sub = spread(replace(source, values=replace(values, scale=None)), grid, view.group, view.groups)

    def read(start: int, stop: int) -> Array:
        return np.ascontiguousarray(decode_param(above, slice(start, stop), values.decoded_shape)[:, ::span])

    return sub, read, span


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


def table_matrix(name: str, tensor: QTensor) -> LoweredMatrix | None:
    """Codebooks of 5 to 16 scalars."""
    found = match.table_grouped(tensor)
    if found is None or found.codes.shape != tensor.shape or found.table.shape[1] > 16 or found.bits < 3:
        return None
    if found.scale is not None and found.scale.divide:
        return None
    (rows, count), grid = _shape(tensor), Grid(_shape(tensor), tensor.shape[1])
    present = [p for p in (found.scale, found.select) if p is not None]
    if len(found.table) > 256 or not np.isfinite(found.table).all() or not all(is_blockwise(p, grid) for p in present):
        return None
    group = common_group(present, grid)
    columns = choose_columns(count, group, -(-count // group), None)
    groups, params = -(-count // group), []
    if found.scale is not None:
        params.append(param("scale", spread(found.scale, grid, group, groups), rows, columns, numbers.SCALES))
    if found.select is not None and len(found.table) > 1:
        params.append(param("select", spread(found.select, grid, group, groups), rows, columns, (NumberKind.U8,)))
    kind, width = (TermKind.TABLE3, 8) if found.table.shape[1] <= 8 else (TermKind.TABLE4, 16)
    size = columns.padded * (6 if width == 8 else 8)

    def produce(first: int, last: int) -> Iterator[Piece]:
        codes = columns.place(read_codes(found.codes, *row_range(first, last, rows)).astype(np.uint8))
        yield "codes", first * size, interleave.triples(codes) if width == 8 else interleave.nibbles(codes)

    record, tensors = _tables(found.table, width)
    term = grouped_term(kind, rows, columns, {"codes": size}, produce, params, 1, record, tensors)
    term = replace(term, params={k: v for k, v in term.params.items() if k != "select"})
    return LoweredMatrix(
        name,
        (rows, count),
        columns,
        (term,),
        f"table of {found.table.shape[1]} group {group}",
        "codes of a table as they are",
    )


def _tables(values: Array, width: int) -> tuple[dict[str, float], dict[str, Array]]:
    table = np.zeros((len(values), width), np.float32)
    table[:, : values.shape[1]] = values
    unit, greatest = power_of_two_unit(table.ravel()), float(np.abs(table).max())
    if greatest / unit > 127:
        unit = float(np.float32(greatest / 127))
    whole = np.clip(np.rint(table / np.float32(unit)), -127, 127).astype(np.int8)
    return {"tables": len(table), "table_unit": unit}, {"table_tensor": table, "itable_tensor": whole}


def float_matrix(name: str, tensor: QTensor) -> LoweredMatrix | None:
    """Floats as they are stored: 16 or 32 bits without a scale, or 8 (6) bits with one per block."""
    plain = match.plain_float(tensor)
    if plain is not None and plain.dtype in _FLOATS:
        kind = _FLOATS[plain.dtype]
        read = lambda start, stop: read_codes(plain.codes, start, stop)  # noqa: E731
        return _floats(name, _shape(tensor), kind, read, None, f"{plain.dtype.lower()} floats", "floats as they are")
    small = match.minifloat_block(tensor)
    if small is None or small.codes.shape != tensor.shape or small.kind not in ("e4m3", "e5m2", "e3m2"):
        return None
    grid, scale = Grid(_shape(tensor), tensor.shape[1]), small.scale
    if scale is not None and (scale.divide or not is_blockwise(scale, grid)):
        return None
    bare = replace(small.codes, scale=None)

    kind = NumberKind.E5M2 if small.kind == "e5m2" else NumberKind.E4M3  # which holds every e3m2, too

    def bytes_of(start: int, stop: int) -> Array:
        if small.kind != "e3m2":
            return read_codes(small.codes, start, stop).astype(np.uint8)
        return numbers.stored(kind, decode_codes(bare, slice(start, stop))).view(np.uint8)

    label = f"{small.kind} floats" + (f" block {'x'.join(map(str, small.tile))}" if scale is not None else "")
    return _floats(name, _shape(tensor), kind, bytes_of, scale, label, "floats as they are")


def decoded_matrix(name: str, tensor: QTensor, why: str) -> LoweredMatrix:
    """Anything, as what it decodes to: 16-bit floats where these hold it, otherwise float32."""
    rows, count = _shape(tensor)

    def parts() -> Iterator[Array]:
        for first, last in row_slabs(rows, count):
            yield tensor.decode(slice(*row_range(first, last, rows)))

    kind = numbers.smallest((NumberKind.F16, NumberKind.BF16, NumberKind.F32), parts) or NumberKind.F32

    def read(start: int, stop: int) -> Array:
        found = numbers.stored(kind, tensor.decode(slice(start, stop)))
        return found.view(f"<u{found.itemsize}")

    return _floats(name, (rows, count), kind, read, None, f"decoded to {kind.name.lower()}", f"slow: {why}")


def _floats(
    name: str, shape: tuple[int, int], kind: NumberKind, read: RowReader, scale: Param | None, label: str, reason: str
) -> LoweredMatrix:
    (rows, count), grid = shape, Grid(shape, shape[1])
    group = common_group([scale], grid) if scale is not None else count
    groups = -(-count // group)
    columns = choose_columns(count, group, groups, None)
    reader = spread(scale, grid, group, groups) if scale is not None else None
    params = [param("scale", reader, rows, columns, numbers.SCALES)] if reader else []
    size = columns.padded * 16 * numbers.DTYPES[kind].itemsize

    def produce(first: int, last: int) -> Iterator[Piece]:
        yield "codes", first * size, interleave.by_columns(columns.place(read(*row_range(first, last, rows))))

    term = grouped_term(TermKind.FLOATS, rows, columns, {"codes": size}, produce, params, 1, {"element": kind})
    return LoweredMatrix(name, shape, columns, (term,), label, reason)


def vector_matrix(name: str, tensor: QTensor) -> LoweredMatrix | None:
    """Sums of vector codebooks whose entries lie along a row."""
    found = match.vector(tensor)
    if found is None or len(tensor.shape) != 2 or found.block[0] != 1 or len({len(b) for b in found.codebooks}) != 1:
        return None
    (rows, count), width, levels = _shape(tensor), found.block[1], len(found.codebooks[0])
    padded, scale = aligned(count, 32), None
    if padded % width or levels > 1 << 16:
        return None
    if found.scale is not None:
        if found.scale.divide or found.scale.index is not None or found.scale.tile[1] < count:
            return None
        scale = np.ascontiguousarray(decode_param(found.scale, None, tensor.shape)[:, 0], np.float32)
    columns = Columns(count, padded, padded, np.zeros(1, np.int64))
    kind = np.dtype("u1" if levels <= 256 else "<u2")
    books = np.stack([b.reshape(levels, width) for b in found.codebooks]).astype(np.float32)
    size = padded // width * len(books) * 16 * kind.itemsize

    def produce(first: int, last: int) -> Iterator[Piece]:
        start, stop = row_range(first, last, rows)
        codes = np.zeros((len(books), 16 * (last - first), padded // width), kind)
        for place, grid in enumerate(found.codes):
            codes[place, : stop - start, : count // width] = read_codes(grid, start, stop)
        yield "codes", first * size, interleave.entries(codes)

    record = {"width": width, "books": len(books), "levels": levels}
    term = grouped_term(
        TermKind.VECTOR, rows, columns, {"codes": size}, produce, [], 1, record, {"table_tensor": books}
    )
    return LoweredMatrix(
        name,
        (rows, count),
        columns,
        (term,),
        f"{len(books)} codebooks of {levels} x {width}",
        "vector codes as they are",
        True,
        scale,
    )


def bitstack_matrix(name: str, tensor: QTensor) -> LoweredMatrix | None:
    """Sums of signs times low-rank products, one term after the other."""
    found = match.sign_lowrank(tensor)
    if found is None or len(tensor.shape) != 2:
        return None
    columns = Columns(
        tensor.shape[1], aligned(tensor.shape[1], 32), aligned(tensor.shape[1], 32), np.zeros(1, np.int64)
    )
    terms = []
    for level, (signs, u, vt) in enumerate(found.terms):
        rank = vt.decoded_shape[0]
        half = (numbers.holds(NumberKind.F16, decode_codes(u)), numbers.holds(NumberKind.F16, decode_codes(vt)))
        if rank > MAX_RANK or not all(half):
            return None
        terms.append(_bitstack_term(signs, u, vt, columns, level))
    label = f"{len(terms)} sign planes of rank {found.terms[0][2].decoded_shape[0]}"
    return LoweredMatrix(name, _shape(tensor), columns, tuple(terms), label, "signs and factors as they are")


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
