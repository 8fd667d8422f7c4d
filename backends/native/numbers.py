"""Which number format of the file holds given numbers without rounding, and their bytes in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native.layout import NumberKind
from qdeploy.ir.dtype import rows

Array = npt.NDArray[Any]

DTYPES: dict[NumberKind, np.dtype[Any]] = {NumberKind(row.native): row.numpy for row in rows() if row.native}

SCALES = (NumberKind.E8M0, NumberKind.F16, NumberKind.BF16, NumberKind.F32)
ZEROS = (NumberKind.U8, NumberKind.F16, NumberKind.F32)
SUBSCALES = (NumberKind.U8, NumberKind.I8)
SUPERS = (NumberKind.F16, NumberKind.F32)


def holds(kind: NumberKind, numbers: Array) -> bool:
    """Whether every float32 comes back from this format as it was; -0 and NaN too, by their bits."""
    if kind == NumberKind.F32:
        return True
    if kind == NumberKind.E8M0:  # a power of two, and nothing else: its rounding of other numbers is not looked at
        bits = numbers.view(np.uint32)
        return bool(((bits & np.uint32(0x807FFFFF)) == 0).all() and (bits != 0).all() and (bits < 0x7F800000).all())
    if kind in (NumberKind.U8, NumberKind.I8):
        info = np.iinfo(DTYPES[kind])
        whole = np.isfinite(numbers).all() and (numbers >= info.min).all() and (numbers <= info.max).all()
        return bool(whole and np.array_equal(numbers, np.rint(numbers)))
    with np.errstate(all="ignore"):
        back = numbers.astype(DTYPES[kind]).astype(np.float32)
    return np.array_equal(back.view(np.uint32), numbers.view(np.uint32))


def smallest(kinds: Iterable[NumberKind], parts: Callable[[], Iterable[Array]]) -> NumberKind | None:
    """The first of the kinds that holds every number; None where none does."""
    left = list(kinds)
    for part in parts():
        exact = np.ascontiguousarray(part, np.float32)
        left = [kind for kind in left if holds(kind, exact)]
        if len(left) < 2 and (not left or left[0] == NumberKind.F32):
            break
    return left[0] if left else None


def stored(kind: NumberKind, numbers: Array) -> Array:
    """Numbers in a format of the file."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(numbers).astype(DTYPES[kind])
