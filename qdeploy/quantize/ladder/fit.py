"""Which loops run, in which order, and with what weights of the levels.

    start    signs of what is left, plane by plane, at sizes that follow from the mean magnitude of a group
    fast     two passes of rounding, scales refitted after each
    full     then three sweeps of coordinate descent, and a last refit

A level counts by `weight / error`, so that relative errors are what is minimised: sum of weight * log error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Float32
from qdeploy.quantize.ladder.loops import Loops
from qdeploy.quantize.ladder.metric import Metric
from qdeploy.quantize.ladder.oracle import decoded

UInt8 = npt.NDArray[np.uint8]
_SAMPLED = 256
_PASSES, _SWEEPS = 2, 3


@dataclass(frozen=True)
class Profile:
    """Where on the ladder quality is to peak.

    Attributes:
        weights: How much each level counts.
        start: Size of the first plane at the start, in mean magnitudes.
    """

    weights: tuple[float, ...]
    start: float

    @property
    def planes(self) -> int:
        """How many levels there are."""
        return len(self.weights)


PROFILES = {
    "low": Profile((0.1, 2.0, 1.0, 1.0), 1.3),
    "balanced": Profile((1.0, 1.0, 1.0, 1.0), 1.25),
    "high": Profile((0.1, 1.0, 2.0, 4.0), 1.35),
    "deep": Profile((0.1, 0.1, 0.3, 1.0, 1.0, 1.0, 1.0, 2.0), 2.2),
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """Codes and scales.

    Attributes:
        codes: uint8 [rows, K].
        scales: float32 [rows, groups, levels], in steps of the whole code.
        group: Columns that share a scale.
    """

    codes: UInt8
    scales: Float32
    group: int

    def decoded(self, level: int) -> Float32:
        """The weight of a level (from 0): float32 [rows, K]."""
        width = self.codes.shape[1]
        padded = np.zeros((len(self.codes), self.scales.shape[1] * self.group), np.uint8)
        padded[:, :width] = self.codes
        return decoded(padded, self.scales, self.group, level)[:, :width]


def fit(
    weight: Float32,
    loops: Loops,
    profile: Profile,
    *,
    sweeps: int = _SWEEPS,
    targets: Sequence[Float32] = (),
) -> Fitted:
    """Fits a ladder.

    Args:
        weight: float32 [rows, K].
        loops: Over the metric of the weight's inputs.
        profile: Levels and what they count.
        sweeps: Of coordinate descent; 0: none, which is three times as fast.
        targets: What each level stands for, float32 [rows, K] each; empty: the weight.
    """
    metric, planes = loops.metric, profile.planes
    wanted = [metric.padded(weight)] * planes if not targets else [metric.padded(target) for target in targets]
    codes, scales = _start(metric.padded(weight), metric, profile)
    loops.refit(wanted, scales, codes)
    for _ in range(_PASSES):
        loops.round_rows(wanted, scales, codes, _level_weights(wanted, scales, codes, metric, profile))
        loops.refit(wanted, scales, codes)
    if sweeps:
        loops.descend(wanted, scales, codes, _level_weights(wanted, scales, codes, metric, profile), sweeps)
        loops.refit(wanted, scales, codes)
    groups = -(-metric.count // metric.group)
    return Fitted(
        np.ascontiguousarray(codes[:, : metric.count]), np.ascontiguousarray(scales[:, :groups]), metric.group
    )


def _start(weight: Float32, metric: Metric, profile: Profile) -> tuple[UInt8, Float32]:
    """Codes by signs of what is left, and for each level the scale that fits best by itself."""
    rows, group, planes = len(weight), metric.group, profile.planes
    size = np.diag(metric.moment).reshape(1, -1, group)
    grouped = weight.reshape(rows, -1, group)
    mean = (np.abs(grouped) * size).sum(axis=2) / np.maximum(size.sum(axis=2), 1e-30)
    step, left = np.maximum(profile.start * mean, 1e-8)[..., None], grouped.copy()
    codes = np.zeros(grouped.shape, np.uint8)
    for plane in range(planes):
        positive = left >= 0
        left -= np.where(positive, step, -step) * np.float32(0.5**plane)
        codes = codes * np.uint8(2) + positive
    flat = np.ascontiguousarray(codes.reshape(rows, -1).astype(np.uint8))
    scales = np.empty((rows, grouped.shape[1], planes), np.float32)
    unit = np.ones_like(scales)
    for level in range(planes):
        read = decoded(flat, unit, group, level).reshape(grouped.shape)
        best = (grouped * read * size).sum(axis=2) / np.maximum((read * read * size).sum(axis=2), 1e-30)
        scales[:, :, level] = np.maximum(best, 1e-8)
    return flat, scales


def _level_weights(
    targets: Sequence[Float32], scales: Float32, codes: UInt8, metric: Metric, profile: Profile
) -> Float32:
    """What a squared error of each level counts, from the errors of some rows: float32 [levels]."""
    rows = np.linspace(0, len(codes) - 1, min(_SAMPLED, len(codes))).astype(int)
    lost = []
    for level, target in enumerate(targets):
        off = target[rows] - decoded(codes[rows], scales[rows], metric.group, level)
        lost.append(float(np.einsum("ij,ij->", off @ metric.moment, off, dtype=np.float64)))
    weighted = np.array(profile.weights) / np.maximum(lost, 1e-30)
    shares: Float32 = (weighted / max(weighted.max(), 1e-30)).astype(np.float32)
    return shares
