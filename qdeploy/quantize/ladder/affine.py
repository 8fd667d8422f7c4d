"""The best scales and shifts per group for codes that are given: what a prefix of somebody else's planes can still be.

    W_l[n, k] = scale[n, g] * read[n, k] + shift[n, g],    g = group of column k

With E [K, groups] the indicator of groups and H the second moment of the inputs, the squared error of a row's outputs
is quadratic in its scales and shifts; its normal equations have the blocks

    (read E)' H (read E)     (read E)' H E     E' H E

and the right sides (read E)' H w and E' H w for the target w.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Float32
from qdeploy.quantize.walk import on_all_cores

Float64 = npt.NDArray[np.float64]
Pair = tuple[Float64, Float64]
Shape = Callable[[Float64], Float64]
"""Rounds shifts [rows, groups], in units of their scales, to what is stored."""

_SLAB_BYTES = 1 << 26
RIDGE = 1e-3
"""Share of the curvature that pulls towards the present numbers."""


class Affine:
    """Fits to one metric.

    Args:
        moment: float64 [K, K]: of the inputs about their mean, damped.
        which: int [K]: the group of each column.
        groups: How many there are; each has a column at least.
    """

    def __init__(self, moment: Float64, which: npt.NDArray[np.int64], groups: int) -> None:
        self._order = np.argsort(which, kind="stable")
        self._starts = np.searchsorted(which[self._order], np.arange(groups))
        self._ends = np.append(self._starts[1:], len(which))
        self._moment = np.ascontiguousarray(moment[np.ix_(self._order, self._order)], np.float32)
        self._summed = self._by_group(self._moment)  # H E: [K, groups]
        self._whole = np.add.reduceat(self._summed, self._starts, axis=0)  # E' H E

    def fit(
        self,
        target: Float32,
        read: Float32,
        scale: Float32,
        stored: Callable[[slice, Float64, Float64], Pair],
        *,
        shifted: bool,
    ) -> Pair:
        """Finds scales and shifts, in two steps: both together, then the scales to the shifts as they are stored.

        Args:
            target: float32 [rows, K].
            read: float32 [rows, K]: what codes are read as, near a mean of zero.
            scale: float32 [rows, groups]: at present; shifts are zero at present.
            stored: Given rows, their scales and their shifts [rows, groups], splits shifts into (a, b) as a file holds
                them: shift = a + scale * b.
            shifted: Whether there are shifts.

        Returns:
            The scales and the shifts' a + scale * b, float64 [rows, groups].
        """
        rows, groups = scale.shape
        step = max(1, _SLAB_BYTES // max(1, 8 * (2 * groups) ** 2))
        out_scale, out_shift = np.empty((rows, groups)), np.empty((rows, groups))

        def part(start: int) -> None:
            own = slice(start, start + step)
            out_scale[own], out_shift[own] = self._rows(
                target[own][:, self._order],
                read[own][:, self._order],
                scale[own].astype(np.float64),
                (lambda s, b: stored(own, s, b)) if shifted else None,
            )

        on_all_cores(part, range(0, rows, step))
        return out_scale, out_shift

    def _rows(
        self, target: Float32, read: Float32, scale: Float64, stored: Callable[[Float64, Float64], Pair] | None
    ) -> Pair:
        wanted = target @ self._moment  # [rows, K]
        of_scale, of_shift = (self._by_group(x).astype(np.float64) for x in (wanted * read, wanted))
        normal, cross = self._normal(read), self._cross(read)
        if stored is None:
            return _solved(normal, of_scale, scale), np.zeros_like(scale)
        groups = scale.shape[1]
        both = np.empty((len(scale), 2 * groups, 2 * groups))
        both[:, :groups, :groups], both[:, groups:, groups:] = normal, self._whole
        both[:, :groups, groups:], both[:, groups:, :groups] = cross, cross.transpose(0, 2, 1)
        start = np.concatenate((scale, np.zeros_like(scale)), axis=1)
        solution = _solved(both, np.concatenate((of_scale, of_shift), axis=1), start)
        fixed, moving = stored(solution[:, :groups], solution[:, groups:])
        turned = cross * moving[:, None, :]  # (read E)' H E diag(moving)
        normal = normal + turned + turned.transpose(0, 2, 1) + moving[:, :, None] * self._whole * moving[:, None, :]
        right = of_scale + moving * of_shift
        right -= np.einsum("rgh,rh->rg", cross, fixed) + moving * (fixed @ self._whole)
        fitted = _solved(normal, right, solution[:, :groups])
        return fitted, fixed + fitted * moving

    def _by_group(self, numbers: Float32) -> Float32:
        """Sums over the columns of each group: [rows, K] -> [rows, groups]."""
        sums: Float32 = np.add.reduceat(numbers, self._starts, axis=1)
        return sums

    def _normal(self, read: Float32) -> Float64:
        """(read E)' H (read E) of every row: [rows, groups, groups]."""
        normal = np.empty((len(read), len(self._starts), len(self._starts)))
        for group, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            normal[:, group] = self._by_group((read[:, start:end] @ self._moment[start:end]) * read)
        return normal

    def _cross(self, read: Float32) -> Float64:
        """(read E)' H E of every row: [rows, groups, groups]."""
        cross = np.empty((len(read), len(self._starts), len(self._starts)))
        for group, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            cross[:, group] = read[:, start:end] @ self._summed[start:end]
        return cross


def _solved(normal: Float64, right: Float64, present: Float64) -> Float64:
    """The solutions of normal equations [rows, n, n] with right sides [rows, n], drawn a little to the present ones."""
    places = np.arange(normal.shape[1])
    diagonal = normal[:, places, places]
    more = RIDGE * diagonal + 1e-9 * diagonal.mean(axis=1, keepdims=True) + 1e-20
    normal = normal.copy()
    normal[:, places, places] += more
    solution: Float64 = np.linalg.solve(normal, (right + more * present)[..., None])[..., 0]
    return solution
