"""The loops in numpy, without blocks: what the compiled ones are held to, and what runs where there is no compiler.

Codes have P bits; level l reads the first l of them, the rest at their middle, in steps of the whole code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Float32
from qdeploy.quantize.ladder.metric import Metric

UInt8 = npt.NDArray[np.uint8]
RIDGE = np.float32(1.001)
"""What a step of one scale divides the curvature of its error by, times that."""


def reading(codes: UInt8, planes: int, level: int) -> Float32:
    """What level `level` reads: the middle of what is left, less (2^P - 1) / 2."""
    step = np.float32(1 << (planes - level))
    kept = (codes >> np.uint8(planes - level)).astype(np.float32)
    read: Float32 = kept * step + np.float32(0.5) * (step - np.float32(1 << planes))
    return read


def best_codes(target: Float32, scale: Float32, weight: Float32) -> UInt8:
    """The code of each row with the least weighted squared error over all levels; of equal ones the least.

    Args:
        target: float32 [levels, rows]: what each level is to read.
        scale: float32 [levels, rows].
        weight: float32 [levels].

    Returns:
        uint8 [rows].
    """
    planes = len(target)
    cost: Float32 | None = None
    which = np.arange(1 << planes)[:, None]
    for level in range(planes, 0, -1):
        leaves = np.arange(1 << level).astype(np.uint8)
        read = reading(leaves << np.uint8(planes - level), planes, level)[:, None]
        off = scale[level - 1] * read - target[level - 1]
        own = weight[level - 1] * off * off
        cost = own if cost is None else cost + own
        second = cost[1::2] < cost[::2]
        which = np.where(second, which[1::2], which[::2])
        cost = np.where(second, cost[1::2], cost[::2])
    best: UInt8 = which[0].astype(np.uint8)
    return best


def round_rows(targets: Sequence[Float32], scales: Float32, codes: UInt8, metric: Metric, weights: Float32) -> None:
    """One pass over the columns, the one with the greatest diagonal first; writes `codes`.

    Args:
        targets: float32 [rows, columns] for each level.
        scales: float32 [rows, groups, levels].
        codes: uint8 [rows, columns].
        metric: Of the inputs.
        weights: float32 [levels].
    """
    planes, order, factor = len(targets), metric.order, metric.factor
    left = np.stack([target[:, order] for target in targets])  # [levels, rows, columns]
    for place, column in enumerate(order):
        scale = np.ascontiguousarray(scales[:, column // metric.group].T)  # [levels, rows]
        chosen = best_codes(left[:, :, place], scale, weights)
        codes[:, column] = chosen
        inverse = np.float32(1) / factor[place, place]
        for level in range(planes):
            error = (left[level, :, place] - scale[level] * reading(chosen, planes, level + 1)) * inverse
            left[level, :, place + 1 :] -= np.outer(error, factor[place, place + 1 :])


def descend(
    targets: Sequence[Float32], scales: Float32, codes: UInt8, metric: Metric, weights: Float32, sweeps: int
) -> None:
    """Coordinate descent, group after group: its scales, then the codes of its columns; writes `scales` and `codes`."""
    planes, group, moment = len(targets), metric.group, metric.moment
    products: list[Any] = [(t - decoded(codes, scales, group, level)) @ moment for level, t in enumerate(targets)]
    for _ in range(sweeps):
        for g in range(metric.columns // group):
            own = slice(g * group, (g + 1) * group)
            for level in range(planes):
                _scale_step(level, g, own, scales, codes, products[level], moment)
            for column in range(own.start, own.stop):
                _code_step(column, scales[:, g], codes, products, moment, weights)


def _scale_step(
    level: int, g: int, own: slice, scales: Float32, codes: UInt8, product: Float32, moment: Float32
) -> None:
    read = reading(codes[:, own], scales.shape[2], level + 1)  # [rows, group]
    along = read @ moment[own, own]
    curvature, slope = (along * read).sum(axis=1), (product[:, own] * read).sum(axis=1)
    fresh = scales[:, g, level] + slope / (curvature * RIDGE + np.float32(1e-20))
    step = np.where(fresh > 0, fresh, scales[:, g, level]) - scales[:, g, level]
    scales[:, g, level] += step
    product -= step[:, None] * (read @ moment[own])


def _code_step(
    column: int, scale: Float32, codes: UInt8, products: list[Float32], moment: Float32, weights: Float32
) -> None:
    diagonal = moment[column, column]
    if diagonal <= 0:
        return
    planes, before = len(products), codes[:, column].copy()
    read = [reading(before, planes, level + 1) for level in range(planes)]
    target = np.stack(
        [scale[:, level] * read[level] + products[level][:, column] / diagonal for level in range(planes)]
    )
    codes[:, column] = best_codes(target, np.ascontiguousarray(scale.T), weights)
    for level in range(planes):
        change = scale[:, level] * (reading(codes[:, column], planes, level + 1) - read[level])
        products[level] -= np.outer(change, moment[column])


def refit(targets: Sequence[Float32], scales: Float32, codes: UInt8, metric: Metric, ridge: float) -> None:
    """All scales of a row and level at once, by their normal equations; writes `scales`.

    The `ridge` is a share of the curvature, towards the present scale; what comes out negative stays as it was.
    """
    rows, groups, planes = scales.shape
    group, moment = metric.group, metric.moment.astype(np.float64)
    for level in range(planes):
        read = reading(codes, planes, level + 1).astype(np.float64)
        right = ((targets[level].astype(np.float64) @ moment) * read).reshape(rows, groups, group).sum(axis=2)
        normal = np.empty((rows, groups, groups))
        for g in range(groups):
            own = slice(g * group, (g + 1) * group)
            normal[:, :, g] = ((read[:, own] @ moment[own]) * read).reshape(rows, groups, group).sum(axis=2)
        diagonal = np.einsum("rgg->rg", normal).copy()
        more = ridge * diagonal + 1e-9 * diagonal.mean(axis=1, keepdims=True) + 1e-20
        normal[:, np.arange(groups), np.arange(groups)] += more
        solved = np.linalg.solve(normal, (right + more * scales[:, :, level])[..., None])[..., 0]
        scales[:, :, level] = np.where(solved > 0, solved, scales[:, :, level])


def decoded(codes: UInt8, scales: Float32, group: int, level: int) -> Float32:
    """The weight of a level (from 0): float32 [rows, columns]."""
    read = reading(codes, scales.shape[2], level + 1)
    spread: Float32 = np.repeat(scales[:, :, level], group, axis=1)
    return spread * read
