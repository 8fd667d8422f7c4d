"""From groups to the blocks of ONNX Runtime's kernels, which are runs of 16, 32, 64, 128 or 256 columns.

A group that is a multiple of a block is cut into blocks with equal scales. Any other group (shorter than 16, no
multiple of 16, or columns scattered by act-order) is gathered: the columns of each group are brought together and
filled up with columns of zeros to whole blocks, once for the codes when they are written and once per run for the
activations:

    x'[j] = x[columns[j]], with x[K] = 0        y = x' W'^T

which is exact, and keeps every such matrix on the fast kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qdeploy.ir.tensor import Array
from qdeploy.ir.views import Grouped

BLOCKS = (16, 32, 64, 128, 256)
"""What MatMulNBits takes."""
BLOCKS_2BIT = (32, 64, 128)
"""With two bits, the block sizes that have a fast kernel."""


@dataclass(frozen=True)
class Blocking:
    """How the columns of a matrix lie in blocks.

    Attributes:
        block: Columns per block.
        count: Blocks in a row.
        group: Which group each block belongs to, int [count].
        columns: Source column of each of the `count * block` columns, with K for a column of zeros; None where column j
            is column j (and zeros stand at the end only).
        padded: Whether `columns` names columns of zeros.
    """

    block: int
    count: int
    group: Array
    columns: Array | None = None
    padded: bool = False


def blocking(view: Grouped, allowed: tuple[int, ...], bits: int) -> Blocking:
    """Chooses the blocks that need the fewest bytes: codes of `bits` bits and float32 scales; ties go to the larger."""
    columns = view.shape[1]
    runs = _runs(view)
    if runs is None:
        fitting = [b for b in allowed if view.group % b == 0 or view.group >= columns]
        if fitting:
            block = min(fitting, key=lambda b: (-(-columns // b) * (b * bits / 8 + 4), -b))
            count = -(-columns // block)
            return Blocking(block, count, np.arange(count) * block // view.group)
        starts = range(0, columns, view.group)
        runs = [np.arange(start, min(start + view.group, columns)) for start in starts]
    block = min(allowed, key=lambda b: (sum(-(-len(r) // b) for r in runs) * (b * bits / 8 + 4), -b))
    return _gathered(runs, block, columns)


def _runs(view: Grouped) -> list[Array] | None:
    """The columns of each group in their order, where groups are not runs of columns."""
    if view.index is None:
        return None
    order = np.argsort(view.index, kind="stable")
    counts = np.bincount(view.index, minlength=view.groups)
    return np.split(order, np.cumsum(counts)[:-1])


def _gathered(runs: list[Array], block: int, columns: int) -> Blocking:
    filled, group = [], []
    for number, run in enumerate(runs):
        count = math.ceil(len(run) / block)
        filled.append(np.concatenate((run, np.full(count * block - len(run), columns))))
        group += [number] * count
    order = np.concatenate(filled).astype(np.int64)
    return Blocking(block, len(group), np.array(group, np.int64), order, bool(np.any(order == columns)))
