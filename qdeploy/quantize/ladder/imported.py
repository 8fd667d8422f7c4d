"""Integers of a checkpoint as a ladder: its last level is the source bit for bit, those below are refitted.

    W_l[n, k] = (read_l[n, k] - zero_l[n, g]) * scale_l[n, g] + offset_l[n, g]

The planes are the source's, so that only numbers per group and a bias per row can follow from the data (affine.py).
Which of them move is what the source has: scales always; offsets where there are offsets; otherwise zero points, which
are float16 where groups are so wide that this is little, also where the source has one zero point for all. In narrow
groups they are bytes where the source's are, and stay where it has one for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Float32, Layout, Param, QTensor, Rung, Term
from qdeploy.ir.views import Coded, Grouped, view
from qdeploy.ir.views.levels import levels
from qdeploy.ir.views.params import Grid, Grouping
from qdeploy.pack import planes as packing
from qdeploy.quantize.ladder.affine import Affine
from qdeploy.quantize.ladder.numbers import Numbers, float_type
from qdeploy.quantize.ladder.tensor import bias_of
from qdeploy.store.spill import Spill

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
_WIDE = 64
"""Columns of a group from which on a zero point of 16 bits of its own is worth its bytes."""
_MOST_ZERO = {True: 255.0, False: 30000.0}


def has_planes(tensor: QTensor) -> bool:
    """Whether a tensor is integers of 2 to 8 bits that are cut into planes."""
    seen = view(tensor)
    return isinstance(seen, Coded) and levels(seen).kind == "planes" and not tensor.rungs


@dataclass(frozen=True, eq=False)
class Params:
    """Numbers per group of one level, in steps of the whole code.

    Attributes:
        scale: Scales.
        zero: float32 [rows, groups], or one number.
        offset: Offsets, or None.
    """

    scale: Numbers
    zero: Float32 | float
    offset: Numbers | None


class Imported:
    """A source's integers.

    Args:
        name: Of the tensor.
        tensor: As `has_planes` takes it.

    Attributes:
        codes: uint8 [rows, K].
        planes: How many bits they have.
        top: The source's params.
        values: What the source means: float32 [rows, K].

    Raises:
        UnsupportedError: The integers with their params do not give the source's numbers bit for bit.
    """

    def __init__(self, name: str, tensor: QTensor) -> None:
        seen = view(tensor)
        grouped = seen.grouped if isinstance(seen, Coded) else None
        if not isinstance(seen, Coded) or grouped is None:
            raise UnsupportedError("not integers that planes could be cut from", where=name)
        rows, columns = grouped.shape
        self._tensor = tensor
        self._grouping = Grouping(Grid(grouped.shape, columns), grouped.group, grouped.groups, grouped.index)
        self.codes: UInt8 = np.ascontiguousarray(grouped.codes(0, rows))
        self.planes = grouped.code_top.bit_length()
        self.top = self._params(seen, grouped)
        self.values = tensor.decode()
        if not np.array_equal(self.decoded(self.planes, self.top), self.values):
            raise UnsupportedError(
                "the source's arithmetic is not that of a ladder, whose last level would round",
                where=name,
                todo="Leave it out with skip=REGEX: it is then cut into planes as it is.",
            )

    def _params(self, seen: Coded, grouped: Grouped) -> Params:
        rows, groups = grouped.shape[0], grouped.groups
        wide = grouped.group >= min(_WIDE, grouped.shape[1])
        self._whole_zero = grouped.stored_zero is None and not wide
        scale = Numbers.of(seen.codes.scale, grouped.scale(0, rows), self._grouping)
        if grouped.stored_zero is not None:
            zero: Float32 | float = grouped.stored_zero(0, rows)
            offsets = grouped.stored_offset
        else:
            zero = float(grouped.zero) if isinstance(grouped.zero, int) else grouped.zero(0, rows).astype(np.float32)
            offsets = grouped.offset
        offset = None if offsets is None else Numbers.of(seen.codes.offset, offsets(0, rows), self._grouping)
        if offset is None and isinstance(zero, float) and wide:
            zero = np.full((rows, groups), zero, np.float32)
        return Params(scale, zero, offset)

    @property
    def which(self) -> npt.NDArray[np.int64]:
        """The group of each column: int [K]."""
        columns, index = self.codes.shape[1], self._grouping.index
        return np.arange(columns) // self._grouping.group if index is None else np.asarray(index, np.int64)

    def read(self, level: int) -> Float32:
        """The codes with only their first bits, the rest at the middle: float32 [rows, K]."""
        step = 1 << (self.planes - level)
        first: Float32 = (self.codes // step).astype(np.float32) * np.float32(step) + np.float32((step - 1) / 2)
        return first

    def decoded(self, level: int, params: Params) -> Float32:
        """The weight of a level (from 1): float32 [rows, K]."""
        zero = params.zero if isinstance(params.zero, float) else params.zero[:, self.which]
        values = (self.read(level) - np.float32(zero)) * params.scale.values()[:, self.which]
        return values if params.offset is None else values + params.offset.values()[:, self.which]

    def refitted(self, affine: Affine, target: Float32, level: int) -> Params:
        """The best params of a level.

        Args:
            affine: Of the metric, over the groups that have columns (`used`).
            target: float32 [rows, K]: what the level stands for.
            level: From 1.
        """
        used, read, top = self.used, self.read(level), self.top
        base = top.zero if isinstance(top.zero, float) else top.zero[:, self.which]
        centred = read - np.float32(base)
        fixed = 0.0 if top.offset is None else top.offset.values()[:, self.which]
        moves = top.offset is not None or not isinstance(top.zero, float)
        rounded: dict[int, Array] = {}

        def stored(rows: slice, scale: Float64, shift: Float64) -> tuple[Float64, Float64]:
            if top.offset is not None:
                full = top.offset.values()[rows].astype(np.float64)
                full[:, used] += shift
                rounded[rows.start] = np.asarray(top.offset.like(full, signs=True).values(), np.float64)
                return rounded[rows.start][:, used] - top.offset.values()[rows][:, used], np.zeros_like(scale)
            assert not isinstance(top.zero, float)  # `moves`
            before = top.zero[rows][:, used].astype(np.float64)
            zeros = self._zeros(before - shift / np.where(scale == 0, 1.0, scale))
            full = top.zero[rows].astype(np.float64)
            full[:, used] = zeros
            rounded[rows.start] = full
            return np.zeros_like(scale), before - zeros

        present = top.scale.values()
        scale, _ = affine.fit(target - np.float32(fixed), centred, present[:, used], stored, shifted=moves)
        scales = present.astype(np.float64)
        scales[:, used] = scale
        moved = np.concatenate([rounded[start] for start in sorted(rounded)]) if rounded else None
        fitted = top.scale.like(scales)
        if moved is None:
            return Params(fitted, top.zero, top.offset)
        if top.offset is not None:
            return Params(fitted, top.zero, top.offset.like(moved, signs=True))
        return Params(fitted, moved.astype(np.float32), None)

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """The groups that have columns."""
        return np.unique(self.which)

    @property
    def groups_with_columns(self) -> tuple[npt.NDArray[np.int64], int]:
        """The group of each column, counted among those that have columns; and how many those are."""
        used = self.used
        return np.searchsorted(used, self.which), len(used)

    def _zeros(self, exact: Float64) -> Float64:
        bounded = np.clip(exact, 0.0 if self._whole_zero else -_MOST_ZERO[False], _MOST_ZERO[self._whole_zero])
        zeros: Float64 = np.rint(bounded) if self._whole_zero else bounded.astype(np.float16).astype(np.float64)
        return zeros

    def tensor(
        self, params: Sequence[Params], biases: Sequence[Float32 | None], errors: Sequence[float], spill: Spill
    ) -> QTensor:
        """The ladder.

        Args:
            params: Of each level.
            biases: Of each level, float32 [rows] against the last level's; None: none.
            errors: Relative squared error of each level.
            spill: Where all of it is kept.
        """
        (rows, columns), index = self.codes.shape, self._grouping.index
        labels = None if index is None else Buffer.of("index", np.ascontiguousarray(index, np.int32), "I32")
        data = tuple(
            Buffer(f"plane.{place}", "U8", (rows, -(-columns // 8)), spill.keep(plane))
            for place, plane in enumerate(packing.pack(self.codes, self.planes))
        )
        terms = [
            Term(
                Codes(
                    (rows, columns),
                    data[:level],
                    Layout("planes", level),
                    f"uint{level}",
                    *self._level_params(own, level, labels, spill),
                )
            )
            for level, own in enumerate(params, 1)
        ]
        rungs = tuple(
            Rung((level,), (terms[level - 1],), float(errors[level - 1]), bias_of(level, biases[level - 1]))
            for level in range(1, len(params) + 1)
        )
        return QTensor((rows, columns), self._tensor.dtype, (terms[-1],), rungs)

    def _level_params(
        self, params: Params, level: int, index: Buffer | None, spill: Spill
    ) -> tuple[Param, Param, Param | None]:
        """Zero point, scale and offset as the term of a level has them: in steps of its own code."""
        step, tile = np.float32(1 << (self.planes - level)), (1, 1 if index is not None else self._grouping.group)
        zero, key = (params.zero - (step - 1) / 2) / step, f"zero.{level}"
        if isinstance(params.zero, float):
            buffer = Buffer.of(key, np.full((1, 1), zero, np.float32), "F32")
            zeros = Param(Codes((1, 1), (buffer,), PLAIN, "f32"), self.codes.shape)
        else:
            zeros = Param(_zero_codes(key, np.asarray(zero, np.float32), spill), tile, index)
        wide = params.scale.times(float(step))
        offset = None if params.offset is None else params.offset.param(f"offset.{level}", tile, index, spill)
        return zeros, wide.param(f"scale.{level}", tile, index, spill), offset


def _zero_codes(key: str, values: Float32, spill: Spill) -> Codes:
    """Zero points in the least type that holds them."""
    whole = np.array_equal(values, np.rint(values)) and values.min() >= 0 and values.max() <= 255
    kind = "uint8" if whole else float_type(values)
    narrow = values.astype(np.uint8) if whole else Numbers(values, None, 1, kind).typed()
    buffer = Buffer(key, "U8" if whole else kind.upper(), values.shape, spill.keep(narrow))
    return Codes(values.shape, (buffer,), PLAIN, kind)
