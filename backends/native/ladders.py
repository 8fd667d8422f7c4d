"""Ladders: planes of which every level has params and a bias of its own, in the block of its plane.

All blocks are laid out alike, so that one record describes them: codes, scales, zero points, biases. The params of the
last plane that is there count (runtime/src/format.h, `ladder`).
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
from qdeploy.ir.views.ladder import Ladder
from qdeploy.ir.views.params import RowReader as Reader

_SUPERS = (NumberKind.BF16, NumberKind.F16, NumberKind.F32)
_ZEROS = (NumberKind.U8, NumberKind.F16, NumberKind.F32)


def ladder_matrix(name: str, ladder: Ladder) -> LoweredMatrix:
    """The form of a ladder."""
    rows, count = ladder.shape
    columns = choose_columns(count, ladder.group, ladder.groups, None)
    term = _Term(ladder, columns).lowered()
    shape = f"ladder of {ladder.planes} planes, group {ladder.group}"
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
        scale = self._scale_form()
        zeros = [level.zero for level in levels]
        common = zeros[0] if all(isinstance(zero, float) and zero == zeros[0] for zero in zeros) else None
        zero = None if common is not None else self._kind([self._as_reader(z) for z in zeros], _ZEROS)
        bias = NumberKind.F16 if any(level.bias is not None for level in levels) else NumberKind.NO
        for plane, level in enumerate(levels):
            prefix = f"plane{plane}/" if plane else ""
            self.sizes[f"plane{plane}" if plane else "codes"] = self.blocks * codes
            self._numbers(f"{prefix}scale", level.small, scale.kind, self.columns.which)
            if scale.super_kind != NumberKind.NO and level.factor is not None:
                self._numbers(f"{prefix}scale.super", level.factor, scale.super_kind, np.zeros(1, np.int64))
            if zero is not None:
                self._numbers(f"{prefix}zero", self._as_reader(level.zero), zero, self.columns.which)
            if bias != NumberKind.NO:
                self._numbers(f"{prefix}bias", _column(level.bias, self.ladder.shape[0]), bias, np.zeros(1, np.int64))
        record: dict[str, float] = {"group": self.columns.group, "groups": self.columns.groups}
        record |= {"zero_for_all": common} if isinstance(common, float) else {}
        params = {"scale": scale, **({"zero": ParamForm(zero)} if zero is not None else {})}
        return LoweredTerm(TermKind.PLANES, self.sizes, self._produce, self.ladder.planes, record, params, bias=bias)

    def _produce(self, first: int, last: int) -> Iterator[Piece]:
        size = self.columns.padded * 16 // 8
        codes = self.columns.place(self.ladder.codes(*row_range(first, last, self.ladder.shape[0])))
        for place, plane in enumerate(interleave.planes(codes, self.ladder.planes)):
            yield f"plane{place}" if place else "codes", first * size, plane
        for maker in self.makers:
            yield from maker(first, last)

    def _scale_form(self) -> ParamForm:
        levels = self.ladder.levels
        factors = [level.factor for level in levels if level.factor is not None]
        if len(factors) == len(levels):
            small = self._kind([level.small for level in levels], (NumberKind.U8, NumberKind.F16, NumberKind.F32))
            return ParamForm(small, self._kind(factors, _SUPERS), self.columns.groups)
        return ParamForm(self._kind([level.small for level in levels], numbers.SCALES))

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
