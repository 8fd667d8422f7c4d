"""Rounding weights so that later ones make up for the errors of earlier ones (GPTQ, arXiv 2210.17323, section 3).

For rows x with second moment H, the squared error of x W^T is tr((W - Q) H (W - Q)^T). Columns are rounded one after
the other; the error of each, divided by the diagonal of the upper Cholesky factor U of H^-1, is taken out of those
behind it along the rest of its row of U. Columns with the greatest diagonal of H go first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of H."""


def compensated(rows: Float64, scale: Float64, top: int, moment: Float64) -> Float64:
    """Returns codes of weights.

    Args:
        rows: float64 [N, K].
        scale: float64 [N].
        top: Codes are limited to -top - 1..top.
        moment: float64 [K, K].
    """
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)] + np.eye(len(order)) * max(DAMPING * np.diag(moment).mean(), 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: factor.T @ factor = inverse
    left, codes = rows[:, order].copy(), np.empty_like(rows)
    for j, column in enumerate(order):
        codes[:, column] = np.clip(np.rint(left[:, j] / scale), -top - 1, top)
        error = (left[:, j] - codes[:, column] * scale) / factor[j, j]
        left[:, j + 1 :] -= np.outer(error, factor[j, j + 1 :])
    return codes
