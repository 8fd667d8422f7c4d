"""A value of a float network as integers: real = (code - zero) * scale, and the grids on which such codes lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qdeploy.ir.element import element_dtype

Float64 = npt.NDArray[np.float64]
FINE = 20
"""Bits of a value that is summed up, or only moved, where no scale is given for it."""


@dataclass(frozen=True)
class Grid:
    """Where codes lie: one scale, a zero point, limits and the type that holds them."""

    scale: float
    zero: int
    lo: int
    hi: int
    dtype: str


@dataclass(frozen=True)
class QuantizedValue:
    """Integers of the graph that stand for a float value.

    Attributes:
        name: Their name in the integer graph.
        scale: float64 [1], or [C] along `axis` (accumulators behind filters that have a scale each).
        dtype: Of the integers.
        lo: Least code.
        hi: Greatest code.
        zero: The code of 0.
        axis: Of the scales.
        floor: What is below it is still to be raised to it (a ReLU that the next rescaling applies); real.
        ceil: What is above it is still to be lowered to it; real.
    """

    name: str
    scale: Float64
    dtype: str
    lo: int
    hi: int
    zero: int = 0
    axis: int = 1
    floor: float | None = None
    ceil: float | None = None

    @classmethod
    def on(cls, grid: Grid, name: str) -> QuantizedValue:
        """Codes on a grid."""
        return cls(name, np.array([grid.scale]), grid.dtype, grid.lo, grid.hi, grid.zero)

    @classmethod
    def accumulator(cls, name: str, scale: Float64, axis: int = 1, zero: int = 0) -> QuantizedValue:
        """Sums in an int32."""
        return cls(name, scale, "I32", -(1 << 31), (1 << 31) - 1, zero, axis)

    @property
    def grid(self) -> Grid | None:
        """The grid, where there is one scale and nothing is left to be limited."""
        if self.scale.size != 1 or self.floor is not None or self.ceil is not None:
            return None
        return Grid(float(self.scale[0]), self.zero, self.lo, self.hi, self.dtype)

    @property
    def is_codes(self) -> bool:
        """Whether these are codes on a grid of at most 16 bits."""
        return self.grid is not None and self.dtype != "I32"

    def limited(self, floor: float | None, ceil: float | None) -> QuantizedValue:
        """The same, limited from below and above (real numbers)."""
        low = [n for n in (self.floor, floor) if n is not None]
        high = [n for n in (self.ceil, ceil) if n is not None]
        least = (self.lo - self.zero) * float(self.scale.min())
        greatest = (self.hi - self.zero) * float(self.scale.max())
        lows, highs = max(low, default=None), min(high, default=None)
        return replace(
            self,
            floor=None if lows is None or lows <= least else lows,
            ceil=None if highs is None or highs >= greatest else highs,
        )

    def times(self, factor: float) -> QuantizedValue:
        """The same codes for numbers that are `factor` > 0 times as large."""
        return replace(
            self,
            scale=self.scale * factor,
            floor=None if self.floor is None else self.floor * factor,
            ceil=None if self.ceil is None else self.ceil * factor,
        )


def unsigned_grid(high: float, bits: int) -> Grid:
    """0 to `high` in unsigned codes of up to 8 bits without a zero point."""
    top = (1 << bits) - 1
    return Grid(_scale(high, top), 0, 0, top, "U8")


def signed_grid(size: float, bits: int) -> Grid:
    """-size to size in signed codes; up to 8 bits in I8, up to 16 in I16."""
    top = (1 << (bits - 1)) - 1
    return Grid(_scale(size, top), 0, -top - 1, top, "I8" if bits <= 8 else "I16")


def fine_grid(size: float) -> Grid:
    """-size to size, and as much again, in int32 codes so fine that their rounding vanishes: size / 2^20."""
    return Grid(max(size, 1e-30) / (1 << FINE), 0, -(1 << FINE + 1), 1 << FINE + 1, "I32")


def range_grid(low: float, high: float, bits: int, zero_point: bool = False) -> Grid:
    """Unsigned codes for what is never negative, signed ones for the rest and for more than 8 bits.

    Args:
        low: Least number.
        high: Greatest number.
        bits: Of a code, up to 16.
        zero_point: Codes of up to 8 bits are unsigned, with a zero point where there are negative numbers.
    """
    if low >= 0 and bits <= 8:
        return unsigned_grid(high, bits)
    if zero_point and bits <= 8:
        grid = unsigned_grid(max(high, 0.0) - low, bits)
        return replace(grid, zero=min(round(-low / grid.scale), grid.hi))
    return signed_grid(max(abs(low), abs(high)), bits)


def full_grid(scale: float, zero: int, dtype: str) -> Grid:
    """A grid over the whole range of its type."""
    limits = np.iinfo(element_dtype(dtype))
    return Grid(scale, zero, int(limits.min), int(limits.max), dtype)


def _scale(size: float, top: int) -> float:
    return size / top if size > 0 else 1.0  # a value that is always 0 has any scale
