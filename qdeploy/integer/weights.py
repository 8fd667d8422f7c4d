"""Weights of an integer network: codes with one scale per output, from the source or quantized here.

Quantized here they are symmetric, per output channel: scale = f max|w| / (2^(bits-1) - 1), codes limited to
-2^(bits-1)..2^(bits-1)-1, where f is 1 for 8 bits and else that of FACTORS which leaves the least squared error in its
channel. With the second moments of a layer's inputs the errors are weighted by them, and rounding compensates
(quantize/gptq.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.ir.codes import packed_codes
from qdeploy.ir.decode import decode_codes
from qdeploy.ir.dtype import dtype
from qdeploy.ir.element import as_value, element_name
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Table, Term
from qdeploy.ir.views import Affine, Lookup, view
from qdeploy.ir.views.multiples import multiples
from qdeploy.ir.views.scaled import is_quantized
from qdeploy.quantize.gptq import compensated
from qdeploy.quantize.nearest import nearest

Float64 = npt.NDArray[np.float64]
FACTORS = np.arange(8, 21) / 20


@dataclass(frozen=True)
class Coded:
    """A constant as codes: real = codes * scale.

    Attributes:
        codes: int64; zero points are taken off.
        scale: float64 [1], or [n] along `axis`.
        axis: Of the scales.
        bits: Of the codes in the source.
    """

    codes: npt.NDArray[np.int64]
    scale: Float64
    axis: int = 0
    bits: int = 8

    def settled(self) -> Coded:
        """As a batch norm leaves it, made fit for sums: scales above 0, and all of them of a size.

        Codes of negative scales are negated. Outputs that a batch norm has all but taken out, less than 2^-20 of the
        greatest one, lose their codes: at their scale no bias would fit an int32.
        """
        if self.scale.size == 1 and self.scale[0] > 0:
            return self
        axis = self.axis % self.codes.ndim
        others = tuple(i for i in range(self.codes.ndim) if i != axis)
        size = np.abs(self.codes).sum(axis=others) * np.abs(self.scale)  # [n]
        kept = size > size.max(initial=0) * 2.0**-20
        if self.scale.size == 1 or not kept.any():
            kept = self.scale != 0
        scale = np.where(kept, np.abs(self.scale), np.abs(self.scale[kept]).max(initial=0) or 1.0)
        shape = [-1 if scale.size > 1 and i == axis else 1 for i in range(self.codes.ndim)]
        codes = self.codes * (np.sign(self.scale) * kept).astype(np.int64).reshape(shape)
        return replace(self, codes=codes, scale=scale)

    def transposed(self) -> Coded:
        """Of a matrix."""
        return Coded(self.codes.T, self.scale, 1 - self.axis % 2, self.bits)

    def values(self) -> Float64:
        """The real numbers."""
        shape = [-1 if i == self.axis % self.codes.ndim else 1 for i in range(self.codes.ndim)]
        return self.codes * (self.scale.reshape(shape) if self.scale.size > 1 else self.scale.reshape(()))


def quantized(weight: Array, bits: int, moments: Float64 | None = None) -> Coded:
    """Codes of float weights.

    Args:
        weight: [N, ...].
        bits: 2 to 8.
        moments: Of the inputs, float64 [groups, K, K] for K weights per output; None: unknown.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    if moments is None or bits >= 8 or moments.shape[1:] != (rows.shape[1], rows.shape[1]):
        scale, top = _scales(rows, bits, np.ones(rows.shape[1]))
        return Coded(_round(rows, scale, top).astype(np.int64).reshape(weight.shape), scale, 0, bits)
    scales, codes = [], []
    for part, moment in zip(np.split(rows, len(moments)), moments, strict=True):
        scale, top = _scales(part, bits, np.diag(moment))
        scales.append(scale)
        codes.append(compensated(part, scale, top, moment))
    return Coded(np.concatenate(codes).astype(np.int64).reshape(weight.shape), np.concatenate(scales), 0, bits)


def _scales(rows: Float64, bits: int, weights: Float64) -> tuple[Float64, int]:
    """A scale per row with the least weighted error, and the greatest code."""
    top = (1 << (bits - 1)) - 1
    full = np.abs(rows).max(axis=1, initial=0) / top
    full[full == 0] = 1.0
    scale, least = full.copy(), np.full(len(rows), np.inf)
    for factor in FACTORS if bits < 8 else (1.0,):
        step = full * factor
        error = np.square(_round(rows, step, top) * step[:, None] - rows) @ weights
        scale[error < least] = step[error < least]
        least = np.minimum(least, error)
    return scale, top


def _round(rows: Float64, step: Float64, top: int) -> Float64:
    return nearest(rows / step[:, None], -top - 1, top)


def stored_codes(tensor: QTensor, where: str) -> Coded | None:
    """The codes of a tensor that the source has quantized; None for a plain float or plain integer tensor.

    Raises:
        UnsupportedError: It is quantized in another way than by a scale for all or per index of one axis.
    """
    seen = view(tensor)
    if not is_quantized(tensor):
        return None
    if isinstance(seen, Lookup) and isinstance(seen.codes.table, Table):
        return _multiples(tensor, seen.codes, where)
    row = dtype(str(seen.codes.table)) if isinstance(seen, Affine) else None
    if not isinstance(seen, Affine) or row is None or not row.element or seen.codes.offset or not seen.is_own_grid:
        raise UnsupportedError(
            "a weight that is quantized in a way that integer arithmetic has no form for",
            where=where,
            allowed="integers with a scale for all, or one per channel",
        )
    codes = seen.codes
    scale, axis = _per_axis(codes.scale, codes.shape, where)
    zero, zero_axis = _per_axis(codes.zero, codes.shape, where) if codes.zero else (np.zeros(1), axis)
    bare = QTensor(tensor.shape, tensor.dtype, (Term(Codes(codes.shape, codes.data, codes.layout, codes.table)),))
    integers = as_value(bare).astype(np.int64)
    place = [-1 if zero.size > 1 and i == zero_axis else 1 for i in range(integers.ndim)]
    return Coded(integers - np.rint(zero).astype(np.int64).reshape(place), scale, axis, row.bits)


def _multiples(tensor: QTensor, codes: Codes, where: str) -> Coded:
    """Codes into a codebook of whole multiples of one step."""
    levels = multiples(tensor)
    if levels is None:
        raise UnsupportedError(
            "a weight with a codebook that integer arithmetic has no form for",
            where=where,
            allowed="one table of levels that are whole multiples of a step",
        )
    integers, step = levels
    scale, axis = _per_axis(codes.scale, codes.shape, where)
    return Coded(integers, scale * step, axis, int(np.abs(integers).max(initial=0)).bit_length() + 1)


def _per_axis(param: Param | None, shape: tuple[int, ...], where: str) -> tuple[Float64, int]:
    """The numbers of a param, [1] or [n], and the axis that they belong to."""
    if param is None:
        return np.ones(1), 0
    varied = [i for i, n in enumerate(param.values.decoded_shape) if n > 1]
    fine = not varied or (len(varied) == 1 and param.tile[varied[0]] == 1 and param.index is None)
    if not fine or not isinstance(param.values, Codes) or param.divide:
        raise UnsupportedError(
            "a weight with scales per block",
            where=where,
            found=f"tiles {param.tile} of {shape}",
            allowed="one scale for all, or one per channel",
        )
    numbers = decode_codes(param.values, slice(0, param.values.shape[0])).astype(np.float64)
    return numbers.reshape(-1), varied[0] if varied else 0


def codes_tensor(coded: Coded, bits: int) -> QTensor:
    """The codes as a tensor of bare integers: int2, int4, int8, or wider where they need it."""
    codes = coded.codes
    need = max(int(codes.max(initial=0)).bit_length(), int(-1 - codes.min(initial=0)).bit_length()) + 1
    width = next(n for n in (2, 4, 8, 16, 32) if n >= max(need, min(bits, 8)))
    if width < 8:
        return QTensor(codes.shape, "I8", (Term(packed_codes(codes, width, f"int{width}")),))
    array = codes.astype(f"<i{width // 8}")
    data = Buffer.of("codes", array, element_name(array.dtype))
    return QTensor(codes.shape, data.dtype, (Term(Codes(codes.shape, (data,), PLAIN, f"int{width}")),))
