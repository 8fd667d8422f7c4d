"""Weights that a MatMul takes as [K, N], quantized in blocks along K: their transpose is what MatMulNBits holds.

Left as DequantizeLinear and MatMul they would be correct too, but ONNX Runtime then makes a MatMulNBits of its own
whose activations it rounds to 8 bits (`session.qdq_matmulnbits_accuracy_level` is 4 by default).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qdeploy.backends.onnx.passthrough import stored_form
from qdeploy.ir.codes import read_codes
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Term
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


def transposed_weight(name: str, tensor: QTensor) -> QTensor | None:
    """The transpose of a matrix of at most 8 bits in blocks along its first axis; None for anything else."""
    form = stored_form(name, tensor)
    if form is None or not form.block or form.axis != 0 or len(tensor.shape) != 2:
        return None
    codes, row = form.codes, dtype(str(form.codes.table))
    if not row.is_integer or row.bits not in (2, 4, 8):
        return None
    transposed = replace(_transposed_codes(codes), zero=_param(codes.zero), scale=_param(codes.scale))
    return QTensor(tensor.shape[::-1], tensor.dtype, (Term(transposed),))


def _param(param: Param | None) -> Param | None:
    if param is None or not isinstance(param.values, Codes):
        return None
    return replace(param, values=_transposed_codes(param.values), tile=param.tile[::-1])


def _transposed_codes(codes: Codes) -> Codes:
    """The same numbers in a plain grid of the other orientation."""
    buffer, shape = codes.data[0], codes.shape[::-1]
    dtype = buffer.dtype if codes.layout.kind == "plain" else "U8"
    return Codes(shape, (Buffer(buffer.key, dtype, shape, TransposedRows(codes, dtype)),), PLAIN, codes.table)
