"""Rungs of a stack that are chosen by their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def evenly_apart(sizes: Sequence[int], floor: int, count: int) -> list[int]:
    """Rungs that are evenly apart in bytes, in order.

    Args:
        sizes: Bytes of the stack at each rung from the first on.
        floor: The least rung that runs.
        count: How many: the floor, everything, and what is among them; 1: everything.
    """
    wanted = np.linspace(sizes[floor - 1], sizes[-1], max(count, 2))[-max(count, 1) :]
    return sorted({max(floor, int(np.searchsorted(sizes, size, "right"))) for size in wanted})
