"""Rounding to nearest, symmetric, for weights that have no lossless form: only when the user chooses it, and reported.

    scale = max |w| of a block of 32 / (2 ** (bits - 1) - 1),  code = round(w / scale) + 2 ** (bits - 1)

with 4 bits where the source has at most 4 per weight, else 8.
"""

from __future__ import annotations

import math

import numpy as np

from qdeploy.ir.decode import slabs
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.ir.views import Grouped
from qdeploy.quantize.nearest import nearest

_GROUP = 32


def requantized(tensor: QTensor) -> tuple[Grouped, float]:
    """Returns the rounded matrix, and its signal-to-noise ratio in decibels (read once to measure it)."""
    n, k = tensor.shape
    bits = 4 if tensor.nbytes * 8 <= 5 * n * k else 8
    groups = -(-k // _GROUP)

    def scales(rows: Array) -> Array:  # [rows, K] -> [rows, groups]
        padded = np.pad(np.abs(rows), ((0, 0), (0, groups * _GROUP - k)))
        largest: Array = padded.reshape(-1, groups, _GROUP).max(axis=2)
        return largest / np.float32((1 << bits - 1) - 1)

    def round_rows(rows: Array) -> Array:
        spread = np.repeat(scales(rows), _GROUP, axis=1)[:, :k]
        top = (1 << bits - 1) - 1
        whole = nearest(np.divide(rows, spread, out=np.zeros_like(rows), where=spread > 0), -top, top)
        codes: Array = (whole + (1 << bits - 1)).astype(np.uint8)
        return codes

    signal = noise = 0.0
    for part in slabs(tensor):
        rows = tensor.decode(part)
        back = (round_rows(rows).astype(np.float32) - (1 << bits - 1)) * np.repeat(scales(rows), _GROUP, axis=1)[:, :k]
        signal += float(np.square(rows, dtype=np.float64).sum())
        noise += float(np.square(rows - back, dtype=np.float64).sum())
    view = Grouped(
        (n, k),
        (1 << bits) - 1,
        _GROUP,
        groups,
        lambda a, b: round_rows(tensor.decode(slice(a, b))),
        lambda a, b: scales(tensor.decode(slice(a, b))),
        1 << bits - 1,
        exact=False,
    )
    return view, 10 * math.log10(signal / noise) if noise and signal else math.inf
