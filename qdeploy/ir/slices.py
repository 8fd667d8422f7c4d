"""Parts of a tensor as tensors: one entry of the first axis, every n-th row, the transpose of a matrix.

Nothing is read before its first use, and no number changes: codes, tables and params of the part are those of the
whole. What lies across the parts (codes that straddle rows, a mask, a low-rank term) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.tensor import Array, ArrayRows, Buffer, Codes, Param, QTensor, Shape, Table, Term
from qdeploy.ir.transposed import transposed_codes
from qdeploy.ir.views import Floats, view


@dataclass(frozen=True)
class _Entry:
    """Rows of one entry of a buffer's first axis."""

    whole: Buffer
    index: int

    def read(self, start: int, stop: int) -> Array:
        part: Array = self.whole.read(self.index, self.index + 1)[0]
        return part[start:stop]


@dataclass(frozen=True)
class _Every:
    """Every `step`-th row of a buffer, from `first` on."""

    whole: Buffer
    first: int
    step: int

    def read(self, start: int, stop: int) -> Array:
        if stop <= start:
            return self.whole.read(0, 0)
        return self.whole.read(self.first + start * self.step, self.first + (stop - 1) * self.step + 1)[:: self.step]


@dataclass(frozen=True)
class _Columns:
    """The columns of a buffer with two axes, as rows."""

    whole: Buffer

    def read(self, start: int, stop: int) -> Array:
        return np.ascontiguousarray(self.whole.read()[:, start:stop].T)


@dataclass(frozen=True)
class _Range:
    """Which rows, for params that are coarser than rows."""

    start: int
    stop: int
    step: int


def entry(tensor: QTensor, index: int) -> QTensor:
    """Entry `index` of the first axis, without that axis; UnsupportedError where it is no part of its own."""
    return _mapped(tensor, tensor.shape[1:], lambda codes: _codes_entry(codes, index), lambda p: _param_entry(p, index))


def rows(tensor: QTensor, start: int, stop: int, step: int = 1) -> QTensor:
    """Rows start, start + step, ... below `stop`; UnsupportedError where params stand across them."""
    part = _Range(start, stop, step)
    count = len(range(start, stop, step))
    return _mapped(
        tensor, (count, *tensor.shape[1:]), lambda codes: _codes_rows(codes, part), lambda p: _param_rows(p, part)
    )


def transposed(tensor: QTensor) -> QTensor:
    """The transpose of a matrix of floats, or of codes with params; UnsupportedError for any other."""
    seen, shape = view(tensor), tensor.shape[::-1]
    if isinstance(seen, Floats) and len(shape) == 2:
        data = seen.codes.data[0]
        columns = Buffer(data.key, data.dtype, data.shape[::-1], _Columns(data))
        return QTensor(shape, tensor.dtype, (Term(replace(seen.codes, shape=shape, data=(columns,))),))
    one = tensor.terms[0] if len(tensor.terms) == 1 and tensor.scale is None and tensor.offset is None else None
    codes = one.values if one is not None and one.where is None else None
    other = transposed_codes(codes) if isinstance(codes, Codes) and codes.shape == tensor.shape else None
    if other is None:
        raise UnsupportedError("only matrices of floats or of codes with params can be transposed", found=list(shape))
    return QTensor(shape, tensor.dtype, (Term(other),))


def _mapped(tensor: QTensor, shape: Shape, codes: Callable[[Codes], Codes], param: Callable[[Param], Param]) -> QTensor:
    terms = []
    for term in tensor.terms:
        values = term.values
        if term.where is not None or not isinstance(values, Codes) or len(values.shape) != len(tensor.shape):
            raise UnsupportedError("a tensor whose codes lie across its parts", found=list(tensor.shape))
        terms.append(replace(term, values=codes(values)))
    scale, offset = (None if p is None else param(p) for p in (tensor.scale, tensor.offset))
    return QTensor(shape, tensor.dtype, tuple(terms), scale=scale, offset=offset)


def _codes_entry(codes: Codes, index: int) -> Codes:
    def part(param: Param | None) -> Param | None:
        return None if param is None else _param_entry(param, index)

    data = tuple(Buffer(b.key, b.dtype, b.shape[1:], _Entry(b, index)) for b in codes.data)
    zero, scale, offset = part(codes.zero), part(codes.scale), part(codes.offset)
    table = codes.table
    if not isinstance(table, str):
        table = Table(_without_first_extent(table.values), part(table.select))
    return replace(codes, shape=codes.shape[1:], data=data, table=table, zero=zero, scale=scale, offset=offset)


def _without_first_extent(values: Buffer) -> Buffer:
    """A codebook whose entries do not reach over the first axis of the grid, for a grid without that axis."""
    block = values.shape[2:]
    if not block:
        return values
    if block[0] != 1:
        raise UnsupportedError("a codebook whose entries reach over several parts", found=list(block))
    array = values.read().reshape(values.shape[:2] + block[1:])
    return Buffer(values.key, values.dtype, array.shape, ArrayRows(array))


def _param_entry(param: Param, index: int) -> Param:
    if not isinstance(param.values, Codes):
        raise UnsupportedError("a low-rank scale across parts")
    return replace(param, values=_codes_entry(param.values, index // param.tile[0]), tile=param.tile[1:])


def _codes_rows(codes: Codes, part: _Range) -> Codes:
    if codes.block[0] != 1:
        raise UnsupportedError("codes that stand for several rows", found=list(codes.block))
    count = len(range(part.start, part.stop, part.step))

    def some(param: Param | None) -> Param | None:
        return None if param is None else _param_rows(param, part)

    data = tuple(Buffer(b.key, b.dtype, (count, *b.shape[1:]), _Every(b, part.start, part.step)) for b in codes.data)
    zero, scale, offset = some(codes.zero), some(codes.scale), some(codes.offset)
    table = codes.table if isinstance(codes.table, str) else replace(codes.table, select=some(codes.table.select))
    shape = (count, *codes.shape[1:])
    return replace(codes, shape=shape, data=data, table=table, zero=zero, scale=scale, offset=offset)


def _param_rows(param: Param, part: _Range) -> Param:
    values, tall = param.values, param.tile[0]
    if not isinstance(values, Codes):
        raise UnsupportedError("a low-rank scale across parts")
    count = len(range(part.start, part.stop, part.step))
    if values.decoded_shape[0] == 1:
        return replace(param, tile=(max(1, count), *param.tile[1:]))
    if tall == 1:
        return replace(param, values=_codes_rows(values, part))
    if part.step != 1 or part.start % tall:
        raise UnsupportedError("a scale that reaches over rows of several parts", found=f"{tall} rows")
    coarse = _Range(part.start // tall, math.ceil(part.stop / tall), 1)
    return replace(param, values=_codes_rows(values, coarse))
