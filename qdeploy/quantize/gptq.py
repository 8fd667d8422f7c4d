"""Rounding weights so that later ones make up for the errors of earlier ones (GPTQ, arXiv 2210.17323, section 3).

For rows x with second moment H, the squared error of x W^T is tr((W - Q) H (W - Q)^T). Columns are rounded one after
the other; the error of each, divided by the diagonal of the upper Cholesky factor U of H^-1, is taken out of those
behind it along the rest of its row of U. Columns with the greatest diagonal of H go first.

As a quantizer (`gptq:int4,group=128,calibrate=FILE`) it puts codes on the grids of rtn, or with zeros=group on grids
between the least and the greatest weight: those of each group before any weight was changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.tensor import Array, QTensor, Rows
from qdeploy.ir.views import Floats, view
from qdeploy.measure import decibels, energy
from qdeploy.options import option
from qdeploy.pack import bits as bitstream
from qdeploy.quantize.contract import Grid, Needs, Statistics, Weight
from qdeploy.quantize.nearest import columns_of, group_scales, grouped_tensor
from qdeploy.quantize.ranges import group_ranges
from qdeploy.store.spill import Spill

Float64 = npt.NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of H."""


def compensated(
    rows: Float64, scale: Float64, top: int, moment: Float64, zero: npt.NDArray[np.uint8] | None = None
) -> Float64:
    """Returns codes of weights.

    Args:
        rows: float64 [N, K].
        scale: float64 [N], or [N, K] for a scale per weight; not 0.
        top: Codes are limited to -top - 1..top.
        moment: float64 [K, K].
        zero: [N, K]: codes are limited to -zero..2 * top + 1 - zero instead.
    """
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)] + np.eye(len(order)) * max(DAMPING * np.diag(moment).mean(), 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: factor.T @ factor = inverse
    left, codes = rows[:, order].copy(), np.empty_like(rows)
    for j, column in enumerate(order):
        step = scale if scale.ndim == 1 else scale[:, column]
        low = -top - 1 if zero is None else -zero[:, column].astype(np.float64)
        codes[:, column] = np.clip(np.rint(left[:, j] / step), low, low + 2 * top + 1)
        error = (left[:, j] - codes[:, column] * step) / factor[j, j]
        left[:, j + 1 :] -= np.outer(error, factor[j, j + 1 :])
    return codes


@dataclass(frozen=True)
class Gptq:
    """The method and its settings.

    Attributes:
        clip: "search" or "none", as for rtn.
        zeros: "middle", or "group": zero points of their own.
        calibrate: The text that the second moments of the inputs are measured on.
        spill: Where finished codes are kept.
    """

    TYPES = ("int4", "int2", "int3", "int5", "int6", "int7", "int8")

    clip: str = option(
        "search", "search: the scale of least squared error.", choices=("search", "none"), label="clipping"
    )
    zeros: str = option(
        "middle", "group: every group has a zero point; middle: that of its codes.", choices=("middle", "group")
    )
    calibrate: str = option("", "A text that second moments are measured on; it must be given.", metavar="FILE")
    spill: Spill = field(default_factory=Spill, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses to work without data."""
        if not self.calibrate:
            raise BadArgumentError(
                "gptq needs a calibration text", where="calibrate", allowed="gptq:...,calibrate=FILE"
            )

    @property
    def needs(self) -> Needs:
        """Second moments of the inputs."""
        return Needs(frozenset({"moments"}), self.calibrate)

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Describes the quantized tensor; all of its codes are made when one of its buffers is first read.

        Args:
            weight: What to quantize.
            statistics: Second moments of its inputs; empty: weights are rounded one by one.
            grid: 2 to 8 bits, and the group.
        """
        moments = statistics[0].moments if statistics else None
        work = _Work(self, weight, grid, np.eye(weight.tensor.shape[1]) if moments is None else moments)
        zeros = _Part(work.zeros) if self.zeros == "group" else None
        return grouped_tensor(weight.tensor, grid, _Part(work.codes), _Part(work.scales), zeros)


@dataclass(frozen=True)
class _Part:
    """The rows of one of the buffers that are made together."""

    rows: Callable[[], Rows]

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        return self.rows().read(start, stop)


class _Work:
    """Quantizes one tensor, once."""

    def __init__(self, settings: Gptq, weight: Weight, grid: Grid, moments: Float64) -> None:
        self._settings, self._weight, self._grid, self._moments = settings, weight, grid, moments
        self._parts: tuple[Rows, ...] | None = None
        self._lock = threading.Lock()

    def codes(self) -> Rows:
        """Packed codes."""
        return self._quantized()[0]

    def scales(self) -> Rows:
        """Scales per group."""
        return self._quantized()[1]

    def zeros(self) -> Rows:
        """Zero points per group, where there are any."""
        return self._quantized()[2]

    def _quantized(self) -> tuple[Rows, ...]:
        with self._lock:
            if self._parts is None:
                self._parts = self._make()
            return self._parts

    def _make(self) -> tuple[Rows, ...]:
        tensor, bits = self._weight.tensor, self._grid.bits
        if not isinstance(view(tensor), Floats):
            raise UnsupportedError("only floats that are not quantized are rounded", where=self._weight.name)
        width, half = tensor.shape[1], 1 << (bits - 1)
        group = columns_of(self._grid, width)
        scale, zero = self._grids(group)
        steps = np.repeat(scale.astype(np.float64), group, axis=1)[:, :width]
        zeros = None if zero is None else np.repeat(zero, group, axis=1)[:, :width]
        rows = tensor.decode().astype(np.float64)
        codes = compensated(rows, np.where(steps == 0, 1.0, steps), half - 1, self._moments, zeros)
        codes[steps == 0] = 0
        self._weight.losses[self._weight.name] = decibels(
            energy(rows.astype(np.float32)), energy((codes * steps - rows).astype(np.float32))
        )
        packed = bitstream.pack((codes + (half if zeros is None else zeros)).astype(np.uint8), bits)
        return tuple(self._settings.spill.keep(part) for part in (packed, scale, zero) if part is not None)

    def _grids(self, group: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8] | None]:
        """Scales and, where groups have them, zero points: [rows, groups]."""
        tensor, bits, settings = self._weight.tensor, self._grid.bits, self._settings
        if settings.zeros == "group":
            return group_ranges(tensor.decode(), group, bits, settings.clip, self._weight.name)
        seen = view(tensor)
        assert isinstance(seen, Floats)  # `_make` has looked
        return group_scales(seen.rows(0, tensor.shape[0]), group, bits, settings.clip, self._weight.name), None
