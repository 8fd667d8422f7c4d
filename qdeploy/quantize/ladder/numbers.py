"""Scales and offsets per group as a source stores them, and how others are rounded to the same form.

one level     floats [rows, groups], in the first of float16, bfloat16 and float32 that holds them
two levels    small integers [rows, groups] times floats [rows, ceil(groups / span)]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Float32, Param
from qdeploy.ir.views.params import Grouping, two_levels
from qdeploy.store.spill import Spill
from qdeploy.store.storage import storage_dtype

_FLOATS: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
}


_RANGES = {"f16": (2.0**-24, 65504.0), "bf16": (2.0**-126, 3e38), "f32": (2.0**-126, 3e38)}
"""A least positive number and a greatest one of each."""


def float_type(values: Float32) -> str:
    """The first of f16, bf16 and f32 that holds all numbers."""
    with np.errstate(all="ignore"):
        exact = (name for name, kind in _FLOATS.items() if np.array_equal(values.astype(kind).astype("f4"), values))
        return next(exact, "f32")


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers per group.

    Attributes:
        small: float32 [rows, groups]: integers of two levels, or the numbers themselves.
        above: float32 [rows, spans] of two levels; None: there is one level.
        span: Groups under one of those.
        kind: The type of the floats: f16, bf16 or f32.
        signed: Whether the integers are int8 rather than uint8.
    """

    small: Float32
    above: Float32 | None
    span: int
    kind: str
    signed: bool = False

    @classmethod
    def of(cls, param: Param | None, values: Float32, groups: Grouping) -> Numbers:
        """The numbers of a param that stand for `values` [rows, groups], in two levels where the param has them."""
        rows = len(values)
        split = two_levels(param, groups) if param is not None and groups.index is None else None
        if split is not None:
            small, above, span = split[0](0, rows), split[1](0, rows), split[2]
            whole = np.array_equal(small, np.rint(small)) and small.min() >= -128 and small.max() <= 255
            agrees = np.array_equal(small * np.repeat(above, span, axis=1)[:, : values.shape[1]], values)
            if whole and agrees and not (small.min() < 0 and small.max() > 127):
                return cls(small, above, span, float_type(above), bool(small.min() < 0))
        return cls(values, None, 1, float_type(values))

    def values(self) -> Float32:
        """What they mean: float32 [rows, groups]."""
        if self.above is None:
            return self.small
        product: Float32 = self.small * np.repeat(self.above, self.span, axis=1)[:, : self.small.shape[1]]
        return product

    def like(self, values: Array, *, signs: bool = False) -> Numbers:
        """The nearest numbers to float [rows, groups] in this form.

        Integers of one sign stay without signs, unless both `signs` are expected and int8 holds them; numbers that
        are then out of reach are of one level.
        """
        kind, (least, limit) = _FLOATS[self.kind], _RANGES[self.kind]
        bounded = np.clip(values, -limit, limit)
        signed = self.signed or (signs and self.small.max() <= 127)
        if self.above is None or (not signed and (signs or self.above.min() < 0)):
            return Numbers(bounded.astype(kind).astype(np.float32), None, 1, self.kind)
        top = 127 if signed else 255
        starts = np.arange(0, values.shape[1], self.span)
        largest = np.maximum.reduceat(np.abs(bounded), starts, axis=1) / top  # [rows, spans]
        above = np.maximum(largest, least).astype(kind).astype(np.float32)
        wide = np.repeat(above, self.span, axis=1)[:, : values.shape[1]]
        small = np.clip(np.rint(bounded / wide), -128 if signed else 0, top).astype(np.float32)
        return Numbers(small, above, self.span, self.kind, signed)

    def times(self, factor: float) -> Numbers:
        """These numbers times a power of two, in floats that hold them."""
        if self.above is None:
            scaled = self.small * np.float32(factor)
            return Numbers(scaled, None, 1, float_type(scaled))
        above = self.above * np.float32(factor)
        return Numbers(self.small, above, self.span, float_type(above), self.signed)

    def typed(self) -> Array:
        """Numbers of one level in their type."""
        typed = np.ascontiguousarray(self.small.astype(_FLOATS[self.kind]))
        return typed.view(storage_dtype(self.kind.upper()))

    def param(self, key: str, tile: tuple[int, int], index: Buffer | None, spill: Spill) -> Param:
        """The param, whose buffers are kept by `spill`."""
        if self.above is None:
            return Param(_floats(key, self.small, self.kind, spill), tile, index)
        small = self.small.astype(np.int8 if self.signed else np.uint8)
        buffer = Buffer(key, "I8" if self.signed else "U8", small.shape, spill.keep(small))
        above = Param(_floats(f"{key}.scale", self.above, self.kind, spill), (1, self.span))
        return Param(Codes(small.shape, (buffer,), PLAIN, "int8" if self.signed else "uint8", scale=above), tile)


def _floats(key: str, values: Float32, kind: str, spill: Spill) -> Codes:
    typed = Numbers(values, None, 1, kind).typed()
    buffer = Buffer(key, kind.upper(), values.shape, spill.keep(typed))
    return Codes(buffer.shape, (buffer,), PLAIN, kind)
