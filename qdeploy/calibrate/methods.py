"""From a histogram to a range: what is clipped, and what is resolved more coarsely instead.

minmax       all that was seen
percentile   all but a share of the numbers, half of it at each end that has any
entropy      |x| is cut where the distribution that 2^bits levels can show diverges least from that of the clipped
             data (Kullback-Leibler; the calibration of TensorRT, S. Migacz, GTC 2017)
mse          both ends are scaled by one factor, which makes the expected squared error least: step^2 / 12 for what
             is inside, the squared distance for what is clipped
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qdeploy.calibrate.histogram import Histogram

Interval = tuple[float, float]
FACTORS = np.arange(16, 129) / 128
_ENTROPY_BINS = 2048


def minmax(seen: Histogram, bits: int, percentile: float) -> Interval:
    """All that was seen."""
    return seen.least, seen.greatest


def by_percentile(seen: Histogram, bits: int, percentile: float) -> Interval:
    """The interval that holds `percentile` percent of the numbers."""
    share = (100 - percentile) / 100 * (0.5 if seen.least < 0 < seen.greatest else 1.0)
    total = np.cumsum(seen.counts) / max(int(seen.counts.sum()), 1)
    edge = seen.top / (seen.counts.size // 2)
    centres = seen.centres()
    low = centres[np.searchsorted(total, share)] - edge / 2 if seen.least < 0 else seen.least
    high = centres[np.searchsorted(total, 1 - share)] + edge / 2 if seen.greatest > 0 else seen.greatest
    return _within(seen, float(low), float(high))


def by_entropy(seen: Histogram, bits: int, percentile: float) -> Interval:
    """The cut of |x| with the least divergence."""
    counts, width = seen.sizes()
    fold = counts.size // _ENTROPY_BINS
    sizes, step = counts.reshape(-1, fold).sum(axis=1).astype(np.float64), width * fold
    sizes[0] = sizes[1]  # zero is shown exactly, whatever the step
    levels = 1 << (bits if seen.least >= 0 else bits - 1)
    used = int(np.flatnonzero(sizes)[-1]) + 1 if sizes.any() else 0
    cuts = range(levels, used + 1, max(1, levels // 16))
    best = min(cuts, key=lambda cut: _divergence(sizes, cut, levels), default=used)
    return _within(seen, -best * step, best * step)


def _divergence(sizes: npt.NDArray[np.float64], cut: int, levels: int) -> float:
    """Of the clipped counts from the same in `levels` equal steps, in which each step's mass is spread evenly."""
    kept = sizes[:cut].copy()
    edges = np.arange(levels) * cut // levels
    mass, filled = np.add.reduceat(kept, edges), np.add.reduceat((kept > 0).astype(np.float64), edges)
    spread = np.repeat(mass / np.maximum(filled, 1), np.diff(np.append(edges, cut)))
    kept[-1] += sizes[cut:].sum()
    shown = np.where(kept > 0, np.maximum(spread, 1e-12), 0.0)
    p, q = kept / max(kept.sum(), 1), shown / max(shown.sum(), 1e-12)
    occupied = p > 0
    return float((p[occupied] * np.log(p[occupied] / q[occupied])).sum())


def by_mse(seen: Histogram, bits: int, percentile: float) -> Interval:
    """The factor of both ends with the least squared error."""
    low, high = min(seen.least, 0.0), max(seen.greatest, 0.0)
    centres, counts = seen.centres(), seen.counts
    if low < 0:  # one step to both sides of zero
        high = max(high, -low)
        low = -high

    def error(factor: float) -> float:
        a, b = low * factor, high * factor
        step = (b - a) / ((1 << bits) - 1)
        outside = np.maximum(centres - b, 0) + np.maximum(a - centres, 0)
        inside = counts[outside == 0].sum() * step * step / 12
        return float(inside + (counts * outside * outside).sum())

    factor = min((float(f) for f in FACTORS), key=error)
    return _within(seen, low * factor, high * factor)


def _within(seen: Histogram, low: float, high: float) -> Interval:
    return max(low, seen.least), min(high, seen.greatest)


METHODS: dict[str, Callable[[Histogram, int, float], Interval]] = {
    "minmax": minmax,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "mse": by_mse,
}
"""Methods by name; each takes a histogram, the bits that the range is for, and the percentile."""
