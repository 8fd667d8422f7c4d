"""What makes a tensor's data legal, given that its description is. Streams, and reads no more than a rule needs.

Codes are read only where their container could hold more than their table has levels; params are decoded, because a
scale that is not finite is a damaged file. Plain float weights are not judged: they may hold infinities and NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.codes import container, packed_shape, read_grid
from qdeploy.ir.decode import SLAB, decode_codes
from qdeploy.ir.dtype import dtype
from qdeploy.ir.masks import selected_before
from qdeploy.ir.tensor import Array, Buffer, Codes, LowRank, QTensor, Shape, Table, Term
from qdeploy.ir.walk import Place, walk


def check_data(tensor: QTensor, where: str) -> None:
    """`rules.check_values`: judges the data of a tensor whose description is legal."""
    for term in (*tensor.terms, *(t for rung in tensor.rungs for t in rung.terms or ())):
        _mask_counts_its_codes(term, where)
    for place in walk(tensor, where):
        if isinstance(place.values, Codes):
            _codes_are_below_their_levels(place, place.values)
        if place.param is not None and place.param.index is not None:
            _index_is_in_range(place, place.param.index)
        if place.param is not None and place.role != "select" and (place.depth == 1 or place.param.divide):
            _param_is_finite(place)


def first_nonfinite(tensor: QTensor, infinities: bool) -> tuple[int, str] | None:
    """The first row of plain floats that holds NaN, or with `infinities` one of those; and which. None: there is none.

    Reads all of a tensor of floats, and nothing of one of codes, whose params `check_data` judges.
    """
    for term in tensor.terms:
        codes = term.values
        if not isinstance(codes, Codes) or codes.layout.kind != "plain" or not isinstance(codes.table, str):
            continue
        if dtype(codes.table).kind != "float" or dtype(codes.table).bits < 16 or codes.scale is not None:
            continue
        for start, stop in _steps(codes.shape):
            row = _nonfinite_row(codes.data[0].read(start, stop), dtype(codes.table).name, infinities)
            if row is not None:
                return start + row[0], row[1]
    return None


def _nonfinite_row(slab: Array, name: str, infinities: bool) -> tuple[int, str] | None:
    bits = slab.view(f"<u{slab.itemsize}").reshape(len(slab), -1)
    mantissa, sign = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}[name], 1 << (8 * slab.itemsize - 1)
    infinity = bits.dtype.type(((1 << (8 * slab.itemsize - 1 - mantissa)) - 1) << mantissa)
    # the greatest positive number is the greatest as a signed integer, the least negative one as an unsigned one
    greatest = max(int(bits.view(f"<i{slab.itemsize}").max(initial=0)), int(bits.max(initial=0)) - sign)
    if greatest < int(infinity) + (0 if infinities else 1):
        return None
    magnitude = bits & bits.dtype.type(sign - 1)
    row = int(np.argmax((magnitude >= infinity if infinities else magnitude > infinity).any(axis=1)))
    return row, "NaN" if (magnitude[row] > infinity).any() else "infinity"


def _mask_counts_its_codes(term: Term, where: str) -> None:
    if term.where is None or not isinstance(term.values, Codes):
        return
    count = selected_before(term.where, term.values.shape, term.values.shape[0])
    for buffer in term.values.data:
        if buffer.shape != packed_shape(term.values, (count,)):
            raise BadFileError(
                "a mask selects another number of codes than there are",
                where=f"{where}: {buffer.key}",
                found=buffer.shape,
                allowed=str(packed_shape(term.values, (count,))),
            )


def _codes_are_below_their_levels(place: Place, codes: Codes) -> None:
    levels = place.tables or _levels(codes)
    if codes.layout.kind == "radix":
        _bytes_are_numbers_of_the_radix(place, codes)
    if container(codes) <= levels:
        return
    shape = codes.shape
    if place.where is not None:
        shape = (selected_before(place.where, shape, shape[0]),)
    for start, stop in _steps(shape):
        rows = read_grid(codes, shape, start, stop)
        if rows.size and int(rows.max()) >= levels:
            at = _first(rows >= levels, start)
            raise BadFileError(
                "a code is out of range", where=f"{place.path}{at}", found=int(rows.max()), allowed=f"below {levels}"
            )


def _levels(codes: Codes) -> int:
    return codes.table.values.shape[1] if isinstance(codes.table, Table) else 1 << dtype(codes.table).bits


def _bytes_are_numbers_of_the_radix(place: Place, codes: Codes) -> None:
    limit = codes.layout.base**codes.layout.digits
    buffer = codes.data[0]
    for start, stop in _steps(buffer.shape):
        packed = buffer.read(start, stop)
        if limit < 256 and packed.size and int(packed.max()) >= limit:
            at = _first(packed >= limit, start)
            raise BadFileError(
                f"a byte is not {codes.layout.digits} digits of base {codes.layout.base}",
                where=f"{place.path}{at}",
                found=int(packed.max()),
                allowed=f"below {limit}",
            )


def _index_is_in_range(place: Place, index: Buffer) -> None:
    columns = place.values.decoded_shape[-1]
    indices = index.read()
    wrong = (indices < 0) | (indices >= columns)
    if wrong.any():
        raise BadFileError(
            "a column index is out of range",
            where=f"{place.path}{_first(wrong, 0)}",
            found=int(indices[wrong][0]),
            allowed=f"0 to {columns - 1}",
        )


def _param_is_finite(place: Place) -> None:
    """A param is judged with all that hangs on it, for what is not finite stays so, unless something is divided by it.

    A low-rank param is judged by its factors; one that divides is not zero, either.
    """
    values = place.values
    for codes in (values.u, values.vt) if isinstance(values, LowRank) else (values,):
        if _is_integer(codes):
            continue
        for start, stop in _steps(codes.decoded_shape):
            decoded = decode_codes(codes, slice(start, stop))
            wrong = ~np.isfinite(decoded) | (place.param is not None and place.param.divide and decoded == 0)
            if wrong.any():
                raise BadFileError(
                    f"{place.role} is not finite" if decoded[wrong][0] else f"{place.role} divides by zero",
                    where=f"{place.path}{_first(wrong, start)}",
                    found=float(decoded[wrong][0]),
                    todo="The file is damaged; fetch it again.",
                )


def _is_integer(codes: Codes) -> bool:
    """Whether the numbers are finite whatever the codes are."""
    params = (codes.zero, codes.scale, codes.offset)
    named = isinstance(codes.table, str) and codes.table.startswith(("int", "uint", "sign", "ternary", "bool"))
    return named and all(p is None for p in params)


def _steps(shape: Shape) -> Iterator[tuple[int, int]]:
    step = max(1, SLAB // (4 * max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _first(wrong: Array, start: int) -> list[int]:
    """The position of the first wrong number, counted from the beginning of the grid."""
    at = [int(axis[0]) for axis in np.nonzero(wrong)]
    return [at[0] + start, *at[1:]]
