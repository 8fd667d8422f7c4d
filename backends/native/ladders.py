"""Ladders: planes of which every level has params and a bias of its own, in the block of its plane.

All blocks are laid out alike, so that one record describes them: codes, scales, zero points, offsets, biases. The
params of the last plane that is there count (runtime/src/format.h, `ladder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qdeploy.backends.native import interleave, numbers
from qdeploy.backends.native.columns import Columns, choose_columns
from qdeploy.backends.native.layout import NumberKind, TermKind
from qdeploy.backends.native.parts import (
    Array,
    LoweredMatrix,
    LoweredTerm,
    ParamForm,
    Piece,
    Producer,
    RowReader,
    row_range,
    row_slabs,
)
from qdeploy.ir.tensor import Float32
from qdeploy.ir.views.ladder import Factors, Ladder
from qdeploy.ir.views.params import RowReader as Reader

_SUPERS = (NumberKind.BF16, NumberKind.F16, NumberKind.F32)
_SMALL = (NumberKind.U8, NumberKind.I8, NumberKind.F16, NumberKind.F32)
_ZEROS = (NumberKind.U8, NumberKind.F16, NumberKind.F32)


def ladder_matrix(name: str, ladder: Ladder) -> LoweredMatrix:
    """The form of a ladder."""
    rows, count = ladder.shape
    columns = choose_columns(count, ladder.group, ladder.groups, ladder.index)
    term = _Term(ladder, columns).lowered()
    shape = f"ladder of {ladder.planes} planes, group {ladder.group}{' sorted' if columns.order is not None else ''}"
    return LoweredMatrix(
        name,
        (rows, count),
        columns,
        (term,),
        shape,
        "codes and the params of every level as they are",
        levels=ladder.cut,
    )


class _Term:
    """The one term of a ladder."""

    def __init__(self, ladder: Ladder, columns: Columns) -> None:
        self.ladder, self.columns = ladder, columns
        self.blocks = -(-ladder.shape[0] // 16)
        self.sizes: dict[str, int] = {}
        self.makers: list[Producer] = []

    def lowered(self) -> LoweredTerm:
        """The term, with the parts of all blocks."""
        levels = self.ladder.levels
        codes = self.columns.padded * 16 // 8
        scale = self._form([level.scale for level in levels])
        offsets = [level.offset for level in levels if level.offset is not None]
        offset = self._form(offsets) if offsets else None
        zeros = [level.zero for level in levels]
        common = zeros[0] if all(isinstance(zero, float) and zero == zeros[0] for zero in zeros) else None
        zero = None if common is not None else self._kind([self._as_reader(z) for z in zeros], _ZEROS)
        bias = NumberKind.F16 if any(level.bias is not None for level in levels) else NumberKind.NO
        for plane, level in enumerate(levels):
            prefix = f"plane{plane}/" if plane else ""
            self.sizes[f"plane{plane}" if plane else "codes"] = self.blocks * codes
            self._factors(f"{prefix}scale", level.scale, scale)
            if zero is not None:
                self._numbers(f"{prefix}zero", self._as_reader(level.zero), zero, self.columns.which)
            if offset is not None:
                self._factors(f"{prefix}offset", level.offset or Factors(self._as_reader(0.0)), offset)
            if bias != NumberKind.NO:
                self._numbers(f"{prefix}bias", _column(level.bias, self.ladder.shape[0]), bias, np.zeros(1, np.int64))
        record: dict[str, float] = {"group": self.columns.group, "groups": self.columns.groups}
        record |= {"zero_for_all": common} if isinstance(common, float) else {}
        params = {"scale": scale, **({"zero": ParamForm(zero)} if zero is not None else {})}
        params |= {"offset": offset} if offset is not None else {}
        return LoweredTerm(TermKind.PLANES, self.sizes, self._produce, self.ladder.planes, record, params, bias=bias)

    def _produce(self, first: int, last: int) -> Iterator[Piece]:
        size = self.columns.padded * 16 // 8
        codes = self.columns.place(self.ladder.codes(*row_range(first, last, self.ladder.shape[0])))
        for place, plane in enumerate(interleave.planes(codes, self.ladder.planes)):
            yield f"plane{place}" if place else "codes", first * size, plane
        for maker in self.makers:
            yield from maker(first, last)

    def _form(self, factors: Sequence[Factors]) -> ParamForm:
        """The form of the scales or offsets of all levels: of two levels where all of them are, over as many groups."""
        above = [own.above for own in factors if own.above is not None]
        spans = {own.span for own in factors}
        if len(above) == len(factors) == len(self.ladder.levels) and len(spans) == 1 and self._keeps(min(spans)):
            small = self._kind([own.small for own in factors], _SMALL)
            span = min(spans)
            span = span if span < self.ladder.groups else self.columns.groups
            return ParamForm(small, self._kind(above, _SUPERS), span)
        return ParamForm(self._kind([own.product for own in factors], numbers.SCALES))

    def _keeps(self, span: int) -> bool:
        """Whether spans of groups are the same in the order of the file."""
        return span >= self.ladder.groups or self.columns.order is None

    def _factors(self, part: str, own: Factors, form: ParamForm) -> None:
        if form.super_kind == NumberKind.NO or own.above is None:
            self._numbers(part, own.product, form.kind, self.columns.which)
            return
        self._numbers(part, own.small, form.kind, self.columns.which)
        last = -(-self.ladder.groups // own.span) - 1
        spans = np.minimum(np.arange(-(-self.columns.groups // form.super_span)), last)
        self._numbers(f"{part}.super", own.above, form.super_kind, spans)

    def _kind(self, readers: Sequence[Reader], kinds: Sequence[NumberKind]) -> NumberKind:
        def parts() -> Iterator[Array]:
            for read in readers:
                for first, last in row_slabs(self.ladder.shape[0], self.columns.groups):
                    yield read(*row_range(first, last, self.ladder.shape[0]))

        return numbers.smallest(kinds, parts) or NumberKind.F32

    def _as_reader(self, zero: RowReader | float) -> Reader:
        if not isinstance(zero, float):
            return zero
        return lambda start, stop: np.full((stop - start, self.ladder.groups), zero, np.float32)

    def _numbers(self, part: str, read: Reader, kind: NumberKind, which: Array) -> None:
        size = len(which) * 16 * numbers.DTYPES[kind].itemsize

        def produce(first: int, last: int) -> Iterator[Piece]:
            values = read(*row_range(first, last, self.ladder.shape[0]))
            full = np.zeros((16 * (last - first), len(which)), values.dtype)
            full[: len(values)] = values[:, which]
            yield part, first * size, interleave.by_columns(numbers.stored(kind, full))

        self.sizes[part] = self.blocks * size
        self.makers.append(produce)


def _column(bias: Float32 | None, rows: int) -> Reader:
    values = np.zeros(rows, np.float32) if bias is None else bias
    return lambda start, stop: values[start:stop, None]
