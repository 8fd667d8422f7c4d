"""The transpose of a matrix of codes: the same numbers in a plain grid of the other orientation.

Nothing is read before its first use; columns are then read as rows, strip by strip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qdeploy.ir.codes import read_codes
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param
from qdeploy.store.storage import storage_dtype

_STRIP = 24 << 20
_SLAB = 4 << 20
"""Bytes of transposed codes that are kept for the next rows, and bytes that are read at a time to make them."""


@dataclass(frozen=True, eq=False)
class TransposedRows:
    """Rows of a grid of codes that are columns of the stored one.

    Every strip of columns costs a pass over all stored rows, so the last one is kept; one for all tensors.
    """

    codes: Codes
    dtype: str
    _kept: ClassVar[tuple[TransposedRows, int, Array] | None] = None

    def read(self, start: int, stop: int) -> Array:
        """Returns columns [start, stop) as rows, in the storage type."""
        width = max(1, _STRIP // (self.codes.shape[0] * storage_dtype(self.dtype).itemsize))
        parts = []
        for first in range(start // width * width, stop, width):
            strip = self._strip(first, min(first + width, self.codes.shape[1]))
            parts.append(strip[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _strip(self, first: int, last: int) -> Array:
        kept = TransposedRows._kept
        if kept is not None and kept[0] is self and kept[1] == first:
            return kept[2]
        TransposedRows._kept = None  # before the next is made
        k, n = self.codes.shape
        strip = np.empty((last - first, k), storage_dtype(self.dtype))
        view, step = strip.view(f"u{strip.itemsize}"), max(1, _SLAB // n)
        for low in range(0, k, step):
            high = min(low + step, k)
            view[:, low:high] = read_codes(self.codes, low, high)[:, first:last].T
        TransposedRows._kept = (self, first, strip)
        return strip


def transposed_codes(codes: Codes) -> Codes | None:
    """The transpose of a grid of codes with its params; None where a codebook or an index belongs to columns."""
    params = (codes.zero, codes.scale, codes.offset)
    plain_codes = isinstance(codes.table, str) and codes.layout.kind in ("plain", "bits") and len(codes.shape) == 2
    if not plain_codes or any(p is not None and p.index is not None for p in params):
        return None
    if any(p is not None and not isinstance(p.values, Codes) for p in params):
        return None
    zero, scale, offset = (_param(p) for p in params)
    return replace(transposed_grid(codes), zero=zero, scale=scale, offset=offset)


def _param(param: Param | None) -> Param | None:
    if param is None or not isinstance(param.values, Codes):
        return None
    values = transposed_codes(param.values)
    return None if values is None else replace(param, values=values, tile=param.tile[::-1])


def transposed_grid(codes: Codes) -> Codes:
    """The codes alone."""
    buffer, shape = codes.data[0], codes.shape[::-1]
    dtype = buffer.dtype if codes.layout.kind == "plain" else "U8"
    return Codes(shape, (Buffer(buffer.key, dtype, shape, TransposedRows(codes, dtype)),), PLAIN, codes.table)
