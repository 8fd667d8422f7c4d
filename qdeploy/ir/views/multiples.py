"""Codebooks whose levels are whole multiples of one step, such as sums of powers of two: codes as those multiples.

A level in float32 is that multiple up to a last bit; times a step in float64 it is what the float32 was rounded from.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from qdeploy.ir.codes import packed_codes, read_codes
from qdeploy.ir.decode import decode_codes
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Table, Term
from qdeploy.ir.views.kinds import Lookup
from qdeploy.ir.views.recognise import view

MOST_PARTS = 512
"""The step is the greatest level over at most so many."""
_NEARLY = 1e-4  # of a step: float32 levels are nearer to a multiple, levels that are not multiples are not


def multiples(tensor: QTensor) -> tuple[npt.NDArray[np.int64], float] | None:
    """The integers that a tensor's codes stand for, int64 in its shape, and the step; without the tensor's scale.

    Returns:
        None for a tensor that is anything but codes into one table of multiples, with at most a scale.
    """
    seen = view(tensor)
    if not isinstance(seen, Lookup) or not isinstance(seen.codes.table, Table) or seen.codes.shape != tensor.shape:
        return None
    codes, table = seen.codes, seen.codes.table
    if codes.zero or codes.offset or table.select is not None or len(table.values.shape) != 2:
        return None
    values = table.values.read().astype(np.float64)  # [tables, levels]
    size = float(np.abs(values).max(initial=0))
    if len(values) != 1 or not size:
        return None
    whole = values / size * np.arange(1, MOST_PARTS + 1)[:, None]  # [parts, levels]
    fitting = np.flatnonzero((np.abs(whole - np.rint(whole)) < _NEARLY).all(axis=1))
    if not fitting.size:
        return None
    integers = np.rint(whole[fitting[0]]).astype(np.int64)
    return integers[read_codes(codes, 0, codes.shape[0])], size / (int(fitting[0]) + 1)


def as_integers(tensor: QTensor) -> QTensor | None:
    """The same tensor as integers of 4 or 8 bits and a float32 scale, each number up to its last bits.

    Returns:
        None where `multiples` gives none, they need more bits, or the scale is not one number for all or per tile.
    """
    seen, whole = view(tensor), multiples(tensor)
    scale = seen.codes.scale if isinstance(seen, Lookup) else None
    if whole is None or scale is None or scale.divide or not isinstance(scale.values, Codes):
        return None
    integers, step = whole
    size = int(np.abs(integers).max(initial=0))
    if size > 127:
        return None
    numbers = decode_codes(scale.values, slice(0, scale.values.shape[0])).astype(np.float64) * step
    stored = Codes(numbers.shape, (Buffer.of("scale", numbers.astype(np.float32), "F32"),), PLAIN, "f32")
    return _packed(tensor, integers, dataclasses.replace(scale, values=stored), 4 if size < 8 else 8)


def _packed(tensor: QTensor, integers: npt.NDArray[np.int64], scale: Param, bits: int) -> QTensor:
    if bits == 8:
        data = Buffer.of("codes", integers.astype(np.int8), "I8")
        codes = Codes(tensor.shape, (data,), PLAIN, "int8", scale=scale)
    else:
        codes = packed_codes(integers, bits, f"int{bits}", scale)
    return QTensor(tensor.shape, "F32", (Term(codes),))
