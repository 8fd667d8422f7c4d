"""Which form a matrix takes: one term where it is one, a sum where it is a sum, and otherwise what it decodes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qdeploy.backends.native.columns import Columns
from qdeploy.backends.native.ladders import ladder_matrix
from qdeploy.backends.native.layout import TermKind
from qdeploy.backends.native.parts import Array, LoweredMatrix, LoweredTerm, Piece, row_range, row_slabs
from qdeploy.backends.native.terms import (
    bitstack_matrix,
    decoded_matrix,
    float_matrix,
    integer_matrix,
    minifloat_matrix,
    table_matrix,
    vector_matrix,
)
from qdeploy.ir.tensor import QTensor
from qdeploy.ir.views import Coded, Floats, Masked, Minifloat, SignLowRank, Sum, Vector, View, view
from qdeploy.ir.views.ladder import ladder_of
from qdeploy.ir.views.levels import combined_levels, term_levels

_DENSE = 16
"""More than one outlier in so many elements is not sparse."""
_ENTRY = np.dtype([("column", "<u4"), ("row", "<u4"), ("value", "<f4")])


def lower_matrix(name: str, tensor: QTensor, layout: str = "elastic") -> LoweredMatrix:
    """The form of a matrix.

    Args:
        name: Of the tensor.
        tensor: [rows, columns].
        layout: "elastic": integer codes in bit planes, so that a prefix of the file runs. "whole": packed codes.
    """
    ladder = ladder_of(tensor) if layout == "elastic" else None
    if ladder is not None:
        return ladder_matrix(name, ladder)
    seen = view(tensor)
    lowered = _with_outliers(name, tensor, seen, layout) if isinstance(seen, Masked) else _lowered(name, seen, layout)
    return lowered or decoded_matrix(name, tensor, "no kind of term holds this encoding as it is")


def _lowered(name: str, seen: View, layout: str) -> LoweredMatrix | None:
    """The form of a view; None where no kind of term holds it as it is."""
    if isinstance(seen, SignLowRank):
        return bitstack_matrix(name, seen)
    if isinstance(seen, Vector):
        return vector_matrix(name, seen)
    if isinstance(seen, Sum):
        return _sum(name, seen, layout)
    if isinstance(seen, Floats):
        return float_matrix(name, seen)
    if not isinstance(seen, Coded):
        return None
    integers = table_matrix(name, seen) or integer_matrix(name, seen, layout)
    return integers or (minifloat_matrix(name, seen) if isinstance(seen, Minifloat) else None)


def _sum(name: str, seen: Sum, layout: str) -> LoweredMatrix | None:
    lowered = [_lowered(name, part, layout) if isinstance(part, Coded) else None for part in seen.parts]
    parts = [part for part in lowered if part is not None and part.columns.order is None]
    if len(parts) != len(seen.parts):
        return None
    stepwise = layout == "elastic" and seen.is_residual
    terms = tuple(replace(term, level=stepwise * i) for i, part in enumerate(parts) for term in part.terms)
    return replace(
        parts[0],
        terms=terms,
        form=_in_one_line([p.form for p in parts]),
        reason="a sum of terms as they are",
        lossless=all(p.lossless for p in parts),
        levels=term_levels(len(parts)) if stepwise else combined_levels(part.levels for part in parts),
    )


def _in_one_line(forms: list[str]) -> str:
    return f"{len(forms)} x {forms[0]}" if len(set(forms)) == 1 else " + ".join(forms)


def _with_outliers(name: str, tensor: QTensor, seen: Masked, layout: str) -> LoweredMatrix | None:
    """Terms that speak of some elements only, as what they change: sparse entries over the rest."""
    base = seen.base
    under = _lowered(name, seen.under, layout) if isinstance(seen.under, Coded | Sum) else None
    if under is None or under.columns.order is not None:
        return None
    outliers = _sparse_term(tensor, base, under.columns)
    if outliers is None:
        return None
    sparse, rounded = outliers
    entries = int(sparse.record["entries"])
    reason = "outliers are stored as what they add to the rest"
    if rounded:
        reason += f"; {rounded} of them in float32 that rounds"
    return replace(
        under,
        terms=(*under.terms, sparse),
        form=f"{under.form} + {entries} outliers",
        reason=reason,
        lossless=under.lossless and not rounded,
    )


def _changes(tensor: QTensor, base: QTensor, start: int, stop: int) -> tuple[Array, Array, Array, int]:
    """Rows, columns and addends of the elements that the outliers change, and how many addends do not give them back.

    The float32 nearest to the difference gives the element back when it is added, but where the element is far smaller
    than what lies under it, so that its last bits are below those of any sum; or the neighbour does, at a tie.
    """
    whole, plain = tensor.decode(slice(start, stop)), base.decode(slice(start, stop))
    rows, columns = np.nonzero(whole != plain)
    want, under = whole[rows, columns], plain[rows, columns]
    with np.errstate(all="ignore"):
        addends = want - under
        for way in (np.float32(-np.inf), np.float32(np.inf)):
            near = np.nextafter(addends, way)
            addends = np.where((under + addends != want) & (under + near == want), near, addends)
        rounded = int(np.count_nonzero((under + addends != want) & ~np.isnan(want)))
    return rows, columns, addends, rounded


def _sparse_term(tensor: QTensor, base: QTensor, columns: Columns) -> tuple[LoweredTerm, int] | None:
    """The term, and how many of its entries do not give their elements back exactly."""
    (rows, count), rounded = tensor.shape, 0
    starts = np.zeros(-(-rows // 16) + 1, np.int64)
    for first, last in row_slabs(rows, count):
        changed_rows, _, _, wrong = _changes(tensor, base, *row_range(first, last, rows))
        starts[first + 1 : last + 1] = np.bincount(changed_rows // 16, minlength=last - first)
        rounded += wrong
    starts = np.cumsum(starts)
    if starts[-1] > rows * count // _DENSE or starts[-1] >= 1 << 32:
        return None
    head = 4 * len(starts)

    def produce(first: int, last: int) -> Iterator[Piece]:
        if first == 0:
            yield "codes", 0, starts.astype("<u4")
        row, column, value, _ = _changes(tensor, base, *row_range(first, last, rows))
        order = np.lexsort((row, column, row // 16))
        entries = np.empty(len(row), _ENTRY)
        entries["column"], entries["row"], entries["value"] = column[order], row[order] % 16, value[order]
        yield "codes", head + int(starts[first]) * _ENTRY.itemsize, entries

    sizes = {"codes": head + int(starts[-1]) * _ENTRY.itemsize}
    fields = {"group": columns.padded, "groups": 1, "entries": int(starts[-1])}
    return LoweredTerm(TermKind.SPARSE, sizes, produce, 1, fields), rounded
