"""Second moments of a layer's inputs, as the loops read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Float32

Float64 = npt.NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal."""
BLOCK = 128
"""Columns that are rounded before those behind them are brought up to date."""
_SMALL = 256


@dataclass(frozen=True, eq=False)
class Metric:
    """What an error of a weight costs: tr(E H E').

    Attributes:
        count: Columns of the weight.
        group: Columns that share a scale.
        block: Columns per block of a rounding pass; divides `moment`'s size, as does `group`.
        moment: float32 [columns, columns]: H, damped; zero for columns that only fill up.
        factor: float32 [columns, columns], upper triangular: factor' factor = H^-1, in `order`.
        order: int32 [columns]: columns by falling diagonal of H.
    """

    count: int
    group: int
    block: int
    moment: Float32
    factor: Float32
    order: npt.NDArray[np.int32]

    @property
    def columns(self) -> int:
        """Columns, those that fill up included."""
        return len(self.order)

    @classmethod
    def of(cls, moment: Float64, group: int, damping: float = DAMPING) -> Metric:
        """Prepares a second moment.

        Args:
            moment: float64 [K, K], symmetric and without negative eigenvalues.
            group: Columns that share a scale.
            damping: Share of the mean diagonal that is added.
        """
        count = len(moment)
        block = max(BLOCK // group, 1) * group if count >= BLOCK else group
        columns = -(-count // block) * block
        mean = max(float(np.diag(moment).mean()), 1e-30)
        damped = np.zeros((columns, columns))
        damped[:count, :count] = moment
        damped[np.arange(count), np.arange(count)] += damping * mean
        order = np.argsort(-np.diag(damped), kind="stable").astype(np.int32)
        whole = damped.copy()
        whole[np.arange(count, columns), np.arange(count, columns)] = mean
        factor = inverse_factor(whole[np.ix_(order, order)])
        return cls(count, group, block, damped.astype(np.float32), factor.astype(np.float32), order)

    @classmethod
    def diagonal(cls, energies: Float64, group: int) -> Metric:
        """The metric of inputs of which only the size of each column is known: float64 [K]."""
        return cls.of(np.diag(np.asarray(energies, np.float64)), group)

    def padded(self, weight: Float32) -> Float32:
        """A weight [rows, count] as the loops take it: float32 [rows, columns]."""
        out = np.zeros((len(weight), self.columns), np.float32)
        out[:, : self.count] = weight
        return out


def inverse_factor(moment: Float64) -> Float64:
    """The upper triangular U with U' U = moment^-1: that of Cholesky, of a matrix [K, K] that is positive definite."""
    lower = np.linalg.cholesky(moment[::-1, ::-1])
    upper: Float64 = np.ascontiguousarray(_inverted(lower)[::-1, ::-1])
    return upper


def _inverted(lower: Any) -> Any:
    """The inverse of a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= _SMALL:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    out = np.zeros_like(lower)
    first, second = _inverted(lower[:half, :half]), _inverted(lower[half:, half:])
    out[:half, :half], out[half:, half:] = first, second
    out[half:, :half] = -(second @ lower[half:, :half]) @ first
    return out
