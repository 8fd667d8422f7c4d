"""Which form a matrix takes: one term where it is one, a sum where it is a sum, and otherwise what it decodes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qdeploy.backends.native.columns import Columns
from qdeploy.backends.native.layout import TermKind
from qdeploy.backends.native.parts import Array, LoweredMatrix, LoweredTerm, Piece, row_range, row_slabs
from qdeploy.backends.native.terms import (
    bitstack_matrix,
    decoded_matrix,
    float_matrix,
    integer_matrix,
    table_matrix,
    vector_matrix,
)
from qdeploy.backends.onnx.integers import is_integer_table
from qdeploy.ir.tensor import Codes, QTensor

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
    found = bitstack_matrix(name, tensor) or vector_matrix(name, tensor) or _one_term(name, tensor, layout)
    if found is None and len(tensor.terms) > 1 and tensor.scale is None and tensor.offset is None:
        masked = any(term.where is not None for term in tensor.terms)
        found = _with_outliers(name, tensor, layout) if masked else _sum(name, tensor, layout)
    return found or decoded_matrix(name, tensor, "no kind of term holds this encoding as it is")


def _one_term(name: str, tensor: QTensor, layout: str) -> LoweredMatrix | None:
    if len(tensor.terms) != 1:
        return None
    codes = tensor.terms[0].values
    whole = isinstance(codes, Codes) and is_integer_table(codes)
    tabled = None if whole else float_matrix(name, tensor) or table_matrix(name, tensor)
    return tabled or integer_matrix(name, tensor, layout)


def _sum(name: str, tensor: QTensor, layout: str) -> LoweredMatrix | None:
    if any(term.mode != "add" for term in tensor.terms[1:]):
        return None
    parts = [_one_term(name, _alone(tensor, i), layout) for i in range(len(tensor.terms))]
    if any(p is None or p.columns.order is not None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    terms = tuple(term for part in known for term in part.terms)
    return replace(known[0], terms=terms, form=" + ".join(p.form for p in known), reason="a sum of terms as they are",
                   lossless=all(p.lossless for p in known))  # fmt: skip


def _alone(tensor: QTensor, place: int) -> QTensor:
    return replace(tensor, terms=(replace(tensor.terms[place], mode="add"),), rungs=(), source=None)


def _with_outliers(name: str, tensor: QTensor, layout: str) -> LoweredMatrix | None:
    """Terms that speak of some elements only, as what they change: sparse entries over the rest."""
    rest = tuple(term for term in tensor.terms if term.where is None)
    if not rest or tensor.terms[0].where is not None:
        return None
    base = replace(tensor, terms=rest, rungs=(), source=None)
    under = _one_term(name, base, layout) if len(rest) == 1 else _sum(name, base, layout)
    if under is None or under.columns.order is not None:
        return None
    sparse = _sparse_term(tensor, base, under.columns)
    if sparse is None:
        return None
    entries = int(sparse.record["entries"])
    reason = "outliers are stored as what they add to the rest"
    return replace(under, terms=(*under.terms, sparse), form=f"{under.form} + {entries} outliers", reason=reason)


def _changes(tensor: QTensor, base: QTensor, start: int, stop: int) -> tuple[Array, Array, Array]:
    """Rows, columns and differences of the elements that the outliers change."""
    whole, plain = tensor.decode(slice(start, stop)), base.decode(slice(start, stop))
    with np.errstate(all="ignore"):
        difference = whole - plain
    rows, columns = np.nonzero(difference)
    return rows, columns, difference[rows, columns]


def _sparse_term(tensor: QTensor, base: QTensor, columns: Columns) -> LoweredTerm | None:
    rows, count = tensor.shape
    starts = np.zeros(-(-rows // 16) + 1, np.int64)
    for first, last in row_slabs(rows, count):
        found = _changes(tensor, base, *row_range(first, last, rows))[0]
        starts[first + 1 : last + 1] = np.bincount(found // 16, minlength=last - first)
    starts = np.cumsum(starts)
    if starts[-1] > rows * count // _DENSE or starts[-1] >= 1 << 32:
        return None
    head = 4 * len(starts)

    def produce(first: int, last: int) -> Iterator[Piece]:
        if first == 0:
            yield "codes", 0, starts.astype("<u4")
        row, column, value = _changes(tensor, base, *row_range(first, last, rows))
        order = np.lexsort((row, column, row // 16))
        made = np.empty(len(row), _ENTRY)
        made["column"], made["row"], made["value"] = column[order], row[order] % 16, value[order]
        yield "codes", head + int(starts[first]) * _ENTRY.itemsize, made

    sizes = {"codes": head + int(starts[-1]) * _ENTRY.itemsize}
    fields = {"group": columns.padded, "groups": 1, "entries": int(starts[-1])}
    return LoweredTerm(TermKind.SPARSE, sizes, produce, 1, fields)
