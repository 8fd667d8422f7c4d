"""Sums of signs times low-rank products, as residual sign planes: the same number of signs, a number per group instead.

    requires   a tensor whose view is `SignLowRank` (BitStack, arXiv 2410.23918)
    gives      as many terms  sign * scale,  scale float16 [N, ceil(K / group)], one per row and group of columns
    loses      the structure that a low-rank factor has along the columns; the signal-to-noise ratio is reported

BitStack's blocks cost as many multiplications per weight as their rank, a sign plane costs none. The planes are those
of the decoded matrix, greedily: plane n holds the signs of what the planes before left, and the mean of its magnitudes
in each group, which is the least squares choice; rounding to float16 goes into what is left. So the result is not the
source's: this happens only where the user names it.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Float32, Layout, Param, QTensor, Rows, Rung, Term
from qdeploy.ir.views import SignLowRank, view
from qdeploy.measure import combined_decibels, decibels, energy
from qdeploy.store.spill import Spill

GROUP = 128
_BLOCK = 1 << 20  # weights per step


def sign_planes(
    name: str, tensor: QTensor, losses: dict[str, float], *, group: int = GROUP, spill: Spill | None = None
) -> QTensor:
    """Describes the lowered tensor; its planes are made by rows when one of them is first read, and kept in a file.

    Args:
        name: Under which its loss is noted.
        tensor: A sum of sign codes times low-rank products, [N, K].
        losses: Where the signal-to-noise ratio against `tensor` (dB, all rows) is put once it is known; a loss that
            stands there (of a decomposition) is counted in.
        group: Columns that share a scale.
        spill: Where the planes are kept; the same one may serve many tensors.

    Returns:
        A QTensor [N, K] with one term per block of `tensor`, and a rung for every number of them.

    Raises:
        UnsupportedError: The tensor is not such a sum.
    """
    if not isinstance(view(tensor), SignLowRank):
        raise UnsupportedError("only sums of signs times low-rank products become sign planes", where=name)
    (rows, columns), count = tensor.shape, len(tensor.terms)
    group = min(group, columns)
    work = _Work(name, tensor, losses, group, spill or Spill())
    terms = []
    for i in range(count):
        signs = Buffer(f"signs.{i}", "U8", (rows, -(-columns // 8)), _Part(work, 2 * i))
        scale = Buffer(f"scale.{i}", "F16", (rows, -(-columns // group)), _Part(work, 2 * i + 1))
        spread = Param(Codes(scale.shape, (scale,), PLAIN, "f16"), (1, group))
        terms.append(Term(Codes(tensor.shape, (signs,), Layout("bits", 1), "sign", scale=spread)))
    rungs = tuple(Rung((1,) * i + (0,) * (count - i)) for i in range(1, count + 1))
    return QTensor(tensor.shape, tensor.dtype, tuple(terms), rungs)


@dataclass(frozen=True)
class _Part:
    """One of the buffers that are made together."""

    work: _Work
    number: int

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        steps = self.work.made()
        first, last = start // self.work.step, -(-stop // self.work.step)
        parts = []
        for i in range(first, last):
            low = i * self.work.step
            high = min(low + self.work.step, self.work.tensor.shape[0])
            parts.append(steps[i][self.number].read(max(start, low) - low, min(stop, high) - low))
        return np.concatenate(parts) if parts else steps[0][self.number].read(0, 0)


class _Work:
    """Makes all planes of one tensor, once, some rows at a time."""

    def __init__(self, name: str, tensor: QTensor, losses: dict[str, float], group: int, spill: Spill) -> None:
        self.tensor, self.step = tensor, max(1, _BLOCK // tensor.shape[1])
        self._name, self._losses, self._group, self._spill = name, losses, group, spill
        self._steps: list[list[Rows]] = []
        self._lock = threading.Lock()

    def made(self) -> list[list[Rows]]:
        """For every step of rows, the rows of every buffer."""
        with self._lock:
            if not self._steps:
                self._steps = self._make()
            return self._steps

    def _make(self) -> list[list[Rows]]:
        steps, signal, noise = list[list[Rows]](), 0.0, 0.0
        for start in range(0, self.tensor.shape[0], self.step):
            left = decode_tensor(self.tensor, slice(start, start + self.step))
            signal += energy(left)
            parts: list[Rows] = []
            for _ in self.tensor.terms:
                parts += [self._spill.keep(array) for array in peel(left, self._group)]
            steps.append(parts)
            noise += energy(left)
        self._losses[self._name] = combined_decibels(self._losses.get(self._name, math.inf), decibels(signal, noise))
        return steps


def peel(left: Float32, group: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Takes one sign plane off a matrix, in place.

    Args:
        left: float32 [rows, K]; afterwards what the plane leaves.
        group: Columns that share a scale.

    Returns:
        Signs uint8 [rows, ceil(K / 8)], low bit first, and scales float16 [rows, ceil(K / group)].
    """
    positive = left >= 0
    sizes = np.diff(np.arange(0, left.shape[1] + group, group).clip(max=left.shape[1]))  # the last may be shorter
    sums = np.add.reduceat(np.abs(left), np.arange(0, left.shape[1], group), axis=1)
    limit = np.float32(np.finfo(np.float16).max)
    scale = np.minimum(sums / sizes.astype(np.float32), limit).astype(np.float16)
    spread = np.repeat(scale.astype(np.float32), sizes, axis=1)  # [rows, K]
    left -= np.where(positive, spread, -spread)
    return np.packbits(positive, axis=1, bitorder="little"), scale
