"""A histogram that grows with its data, so that one pass over a data set is enough.

Bins are equal and cover [-top, top] with a power of two as top. Where a number lies outside, top is doubled until it
does not, and bins are merged pair by pair: counts stay exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError
from qdeploy.ir.tensor import Array

BINS = 1 << 13
_HALF = BINS // 2
_SMALLEST = 2.0**-64
"""Of `top`: below, nothing is told from zero."""


@dataclass
class Histogram:
    """Of one value.

    Attributes:
        least: The least number so far.
        greatest: The greatest one.
        top: Bins cover [-top, top]; 0: nothing but zeros yet.
        counts: int64 [BINS].
    """

    least: float = math.inf
    greatest: float = -math.inf
    top: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, x: Array) -> None:
        """Counts numbers; BadArgumentError for one that is not finite."""
        if not x.size:
            return
        least, greatest = float(x.min()), float(x.max())
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise BadArgumentError("the data gives a value that is not finite", found=f"{least}..{greatest}")
        self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
        self._cover(max(abs(least), abs(greatest)))
        if self.top:
            places = (x.reshape(-1).astype(np.float32) * np.float32(_HALF / self.top)).astype(np.int32)  # towards zero
            places -= (x.reshape(-1) < 0).astype(np.int32)
            self.counts += np.bincount(np.clip(places + _HALF, 0, BINS - 1), minlength=BINS)
        else:
            self.counts[_HALF] += x.size

    def _cover(self, size: float) -> None:
        if not size:
            return
        wanted = max(2.0 ** math.ceil(math.log2(size)), _SMALLEST)
        while self.top and self.top < wanted:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[_HALF // 2 : _HALF // 2 + _HALF] = pairs
            self.top *= 2
        self.top = max(self.top, wanted)

    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of every bin, float64 [BINS]."""
        return (np.arange(BINS, dtype=np.float64) - _HALF + 0.5) * np.float64(self.top / _HALF)

    def sizes(self) -> tuple[npt.NDArray[np.int64], float]:
        """Counts of the absolute values, int64 [BINS / 2], and the width of a bin."""
        folded: npt.NDArray[Any] = self.counts[_HALF:] + self.counts[:_HALF][::-1]
        return folded, self.top / _HALF
