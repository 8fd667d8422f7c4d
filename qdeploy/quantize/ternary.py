"""Weights of -1, 0 and +1 times the mean or the median magnitude.

    q = clip(rint(w / s), -1, 1)      s = mean |w|      BitNet b1.58, arXiv 2402.17764, section 2 (absmean)
                                      s = median |w|    BitNet b1.58 Reloaded, arXiv 2407.09527, section 3

Both papers train with it, over the whole matrix. For weights that were trained as floats it is coarse; groups help.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, ComputedRows, Float32, Layout, Param, QTensor, Term
from qdeploy.measure import decibels, energy
from qdeploy.options import option
from qdeploy.pack import bits as bitstream
from qdeploy.quantize.contract import Grid, Needs, Statistics, Weight
from qdeploy.quantize.nearest import nearest


@dataclass(frozen=True)
class Ternary:
    """The method and its settings.

    Attributes:
        scale: "mean" or "median" of the magnitudes.
        group: Columns of a row that share a scale; 0: the whole matrix has one.
    """

    TYPES = ()

    scale: str = option("mean", "The mean or the median magnitude.", choices=("mean", "median"))
    group: int = option(
        0, "Weights of a row that share a scale; 0: all of the matrix share one.", least=0, most=1 << 20
    )

    @property
    def needs(self) -> Needs:
        """Nothing: it looks at weights alone."""
        return Needs()

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Describes the quantized tensor; nothing is computed before one of its buffers is read.

        Args:
            weight: What to quantize.
            statistics: Not used.
            grid: Has no meaning here: codes have two bits.
        """
        (rows, columns), work = weight.tensor.shape, _Work(self, weight)
        group = min(self.group, columns) or columns
        shape, tile = ((rows, -(-columns // group)), (1, group)) if self.group else ((1, 1), (rows, columns))
        packed = Buffer("codes", "U8", (rows, -(-columns // 4)), ComputedRows(work.codes))
        scale = Buffer("scale", "F32", shape, ComputedRows(lambda start, stop: work.scales[start:stop]))
        scales = Param(Codes(shape, (scale,), PLAIN, "f32"), tile)
        codes = Codes((rows, columns), (packed,), Layout("bits", 2), "ternary", scale=scales)
        return QTensor((rows, columns), weight.tensor.dtype, (Term(codes),))


class _Work:
    """Quantizes one tensor: its scales once, its codes by rows."""

    def __init__(self, settings: Ternary, weight: Weight) -> None:
        self._settings, self._weight, self._lock = settings, weight, threading.Lock()
        self._scales: Float32 | None = None

    @property
    def scales(self) -> Float32:
        """float32 [rows, groups], or [1, 1]."""
        with self._lock:
            if self._scales is None:
                values = self._weight.tensor.decode()
                self._scales = scales_of(values, self._settings.scale, self._settings.group, self._weight.name)
                lost = values - (self._rounded(values, 0) - 1) * self._spread(0, *values.shape)
                self._weight.losses[self._weight.name] = decibels(energy(values), energy(lost))
            return self._scales

    def codes(self, start: int, stop: int) -> Array:
        """Packed codes of rows [start, stop): uint8 [rows, ceil(K / 4)]; 0, 1 and 2 stand for -1, 0 and 1."""
        _ = self.scales
        return bitstream.pack(self._rounded(self._weight.tensor.decode(slice(start, stop)), start).astype(np.uint8), 2)

    def _rounded(self, values: Float32, start: int) -> Float32:
        steps = self._spread(start, start + len(values), values.shape[1])
        scaled: Float32 = (values / np.where(steps == 0, np.float32(1), steps)).astype(np.float32)
        return nearest(scaled, -1, 1) + np.float32(1)

    def _spread(self, start: int, stop: int, columns: int) -> Float32:
        """The scale of every weight of some rows: [rows, columns], or [1, 1]."""
        assert self._scales is not None  # `scales` has made them
        if not self._settings.group:
            return self._scales
        spread: Float32 = np.repeat(self._scales[start:stop], self._settings.group, axis=1)[:, :columns]
        return spread


def scales_of(values: Float32, kind: str, group: int, name: str) -> Float32:
    """Mean or median magnitudes.

    Args:
        values: float32 [rows, K].
        kind: "mean" or "median".
        group: Columns that share a scale; 0: one for all.
        name: Of the tensor, for errors.

    Returns:
        float32 [rows, groups], or [1, 1]; the last group of a row counts what it has.

    Raises:
        BadFileError: A weight is infinite or not a number.
    """
    if not np.isfinite(values).all():
        raise BadFileError("a weight is infinite or not a number", where=name, todo="Leave it out with skip=REGEX.")
    sizes = np.abs(values).astype(np.float64)
    middle = np.mean if kind == "mean" else np.median
    if not group:
        return np.full((1, 1), middle(sizes), np.float32)
    starts = range(0, sizes.shape[1], group)
    return np.stack([middle(sizes[:, at : at + group], axis=1) for at in starts], axis=1).astype(np.float32)
