"""Which view a tensor has: by structure alone, once per tensor.

What a view does not name is not there: a tensor with a scale after its sum, a mask or a second term is never taken for
something that has none.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import Codes, LowRank, QTensor, Shape, Table
from qdeploy.ir.views.kinds import (
    Affine,
    Coded,
    Decoded,
    Floats,
    Integers,
    Lookup,
    Masked,
    Minifloat,
    SignLowRank,
    Sum,
    Vector,
    View,
)
from qdeploy.ir.views.params import Grid

_SEEN: dict[int, tuple[weakref.ref[QTensor], View]] = {}
"""Views by the identity of their tensor, for as long as it lives. Views hold parts of a tensor, never the tensor."""


def view(tensor: QTensor) -> View:
    """Returns what a tensor is to an engine; reads none of its data. The same tensor gives the same view."""
    key = id(tensor)
    known = _SEEN.get(key)
    if known is not None and known[0]() is tensor:
        return known[1]
    seen = _view(tensor)

    def forget(reference: weakref.ref[QTensor]) -> None:
        if _SEEN.get(key, (None,))[0] is reference:
            del _SEEN[key]

    _SEEN[key] = (weakref.ref(tensor, forget), seen)
    return seen


def _view(tensor: QTensor) -> View:
    special = _sign_lowrank(tensor) or _vector(tensor)
    if special is not None:
        return special
    if tensor.scale is not None or tensor.offset is not None or not tensor.terms:
        return Decoded(tensor.shape)
    if any(term.where is not None for term in tensor.terms):
        return _masked(tensor)
    if len(tensor.terms) > 1:
        return _sum(tensor)
    codes = tensor.terms[0].values
    return _coded(tensor, codes) if isinstance(codes, Codes) else Decoded(tensor.shape)


def _coded(tensor: QTensor, codes: Codes) -> View:
    if isinstance(codes.table, Table):
        return Lookup(tensor.shape, codes)
    row, plain = dtype(codes.table), _is_plain(tensor, codes)
    if row.kind in ("float", "exponent"):
        if row.bits <= 8:
            return Minifloat(tensor.shape, codes)
        return Floats(tensor.shape, codes) if plain and codes.layout.kind == "plain" else Decoded(tensor.shape)
    if row.is_integer or row.kind == "bool":
        return (Integers if plain and row.element else Affine)(tensor.shape, codes)
    return Lookup(tensor.shape, codes)


def _is_plain(tensor: QTensor, codes: Codes) -> bool:
    """Whether codes are numbers of the tensor's own shape, without parameters."""
    return not (codes.zero or codes.scale or codes.offset) and codes.shape == (tensor.shape or (1,))


def _masked(tensor: QTensor) -> View:
    rest = tuple(term for term in tensor.terms if term.where is None)
    if tensor.terms[0].where is not None:
        return Decoded(tensor.shape)
    base = replace(tensor, terms=rest, rungs=(), source=None)
    return Masked(tensor.shape, base, view(base))


def _sum(tensor: QTensor) -> View:
    if any(term.mode != "add" for term in tensor.terms[1:]):
        return Decoded(tensor.shape)
    parts = tuple(_view(replace(tensor, terms=(replace(t, mode="add"),), rungs=(), source=None)) for t in tensor.terms)
    return Sum(tensor.shape, parts, all(isinstance(part, Coded) and _is_sign_plane(part) for part in parts))


def _is_sign_plane(part: Coded) -> bool:
    return part.is_signs and part.codes.scale is not None


def _sign_lowrank(tensor: QTensor) -> SignLowRank | None:
    """A sum of sign grids, each scaled element by element by a low-rank product."""
    terms: list[tuple[Codes, Codes, Codes]] = []
    for term in tensor.terms:
        codes = term.values
        if not isinstance(codes, Codes) or term.where is not None or term.mode != "add" or codes.table != "sign":
            return None
        scale = codes.scale
        if scale is None or not isinstance(scale.values, LowRank) or scale.divide or codes.zero or codes.offset:
            return None
        if codes.shape != tensor.shape or any(t != 1 for t in scale.tile):
            return None
        terms.append((codes, scale.values.u, scale.values.vt))
    return SignLowRank(tensor.shape, tuple(terms)) if terms and not (tensor.scale or tensor.offset) else None


def _vector(tensor: QTensor) -> Vector | None:
    """A sum of vector codebooks over grids of one shape, with at most a scale and an offset after the sum."""
    grids: list[Codes] = []
    for term in tensor.terms:
        codes: Any = term.values
        if not isinstance(codes, Codes) or term.where is not None or term.mode != "add":
            return None
        if not isinstance(codes.table, Table) or codes.zero or codes.scale or codes.offset:
            return None
        if len(codes.table.values.shape) < 3:
            return None
        grids.append(codes)
    if not grids or len({(g.shape, g.block) for g in grids}) != 1:
        return None
    grid, seen = Grid.under(tensor.shape, grids[0].decoded_shape), _spanned(tensor.shape, grids[0])
    shape = grid.shape if grid is not None and grids[0].block[0] == 1 else seen
    return Vector(shape, tuple(grids), grids[0].block, tensor.scale, tensor.offset) if shape is not None else None


def _spanned(shape: Shape, codes: Codes) -> tuple[int, int] | None:
    """[N, K] of a matrix whose columns are those of the grid; its last entries may reach past its last row."""
    decoded = codes.decoded_shape
    fits = len(shape) == len(decoded) == 2 and shape[1] == decoded[1] and 0 <= decoded[0] - shape[0] < codes.block[0]
    return (shape[0], shape[1]) if fits else None
