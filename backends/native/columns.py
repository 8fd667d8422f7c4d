"""In which order the columns of a matrix lie: as they are, or sorted by group where groups are not runs of 16s.

The file's groups all have one size, a multiple of 16, and the columns are padded to a multiple of 32. Padding columns
have code 0 and meet an x of 0. Columns whose groups are in another order (act-order), or of another size, are gathered
group by group; a group with more columns than others takes several of the file's groups, each with its params.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native.layout import aligned

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """An order of columns.

    Attributes:
        count: Columns of the matrix.
        padded: Columns in the file.
        group: Columns per group of the file.
        which: The source's group of each group of the file, int [groups].
        order: int32 [padded]: the matrix's column at each place of the file, -1 for padding; None: in order.
    """

    count: int
    padded: int
    group: int
    which: Array
    order: Array | None = None

    @property
    def groups(self) -> int:
        """Groups of the file."""
        return len(self.which)

    def place(self, numbers: Array) -> Array:
        """[rows, columns] -> [16 * row blocks, padded], zero where nothing is."""
        out = np.zeros((aligned(len(numbers), 16), self.padded), numbers.dtype)
        if self.order is None:
            out[: len(numbers), : self.count] = numbers
        else:
            there = self.order >= 0
            out[: len(numbers), there] = numbers[:, self.order[there]]
        return out

    def spread(self, params: Array) -> Array:
        """[rows, source's groups] -> [16 * row blocks, groups], zero below the last row."""
        out = np.zeros((aligned(len(params), 16), self.groups), params.dtype)
        out[: len(params)] = params[:, self.which]
        return out


def columns_in_order(count: int, group: int) -> Columns | None:
    """The columns as they are, where groups are runs of a multiple of 16, or the whole row."""
    padded = aligned(count, 32)
    if group >= count:
        return Columns(count, padded, padded, np.zeros(1, np.int64))
    if group % 16:
        return None
    last = -(-count // group) - 1
    return Columns(count, padded, group, np.minimum(np.arange(-(-padded // group)), last))


def columns_by_group(index: Array, groups: int) -> Columns:
    """The columns sorted by their group; `index` int [columns] names it, below `groups`."""
    group = aligned(-(-len(index) // groups), 16)
    sizes = np.bincount(index, minlength=groups)
    runs = -(-sizes // group)
    first = (np.cumsum(runs) - runs) * group  # where each group begins
    sorted_columns = np.argsort(index, kind="stable")
    owner = index[sorted_columns]
    within = np.arange(len(index)) - (np.cumsum(sizes) - sizes)[owner]
    which = np.repeat(np.arange(groups), runs)
    padded = aligned(len(which) * group, 32)
    order = np.full(padded, -1, np.int32)
    order[first[owner] + within] = sorted_columns
    total = -(-padded // group)
    which = which[np.minimum(np.arange(total), len(which) - 1)]
    return Columns(len(index), padded, group, which, order)


def choose_columns(count: int, group: int, groups: int, index: Array | None) -> Columns:
    """The order that a matrix needs."""
    columns = columns_in_order(count, group) if index is None else None
    if columns is not None:
        return columns
    return columns_by_group(np.arange(count) // group if index is None else np.asarray(index, np.int64), groups)
