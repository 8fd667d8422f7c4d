"""What a tensor can be cut into, and what each piece is worth.

    integer codes of 2 to 8 bits   one piece per bit-plane, the highest first. A plane holds -1 and +1, so that a code
                                   whose low planes are missing reads as the middle of the interval that is left.
    sums of sign terms             one piece per term: BitStack's blocks, residual sign planes
    anything else                  one piece

A piece's worth is how far it lowers the squared error against the complete tensor. Errors are relative (divided by the
tensor's energy), because only so can tensors be compared; a sensitivity per tensor makes them a prediction of the
model's loss. The error of planes is measured on some rows; the gain of a BitStack block is ||u vt||_F^2 =
trace((u^T u)(vt vt^T)), since its residual is orthogonal to it (arXiv 2410.23918, section 3.2), and needs no signs.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError
from qdeploy.ir.decode import decode_codes, decode_param, read_codes
from qdeploy.ir.match import AffineGrouped, affine_grouped, sign_lowrank
from qdeploy.ir.tensor import Codes, Float32, QTensor
from qdeploy.measure import energy

Float64 = npt.NDArray[np.float64]

_RUNS, _RUN_ROWS = 8, 8  # of rows that are read; a run costs a stored column as little as a single row
_SAMPLE = 1 << 22  # elements at most


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that is resident or not; its predecessors always are.

    Attributes:
        tensor: The tensor's name.
        term: Which of its terms.
        plane: Which plane of the term's codes, highest first; 0 for a whole term.
        nbytes: What it takes.
        error_before: Relative squared error of the tensor without it (1: nothing is there), times the sensitivity.
        error_after: The same with it.
    """

    tensor: str
    term: int
    plane: int
    nbytes: int
    error_before: float
    error_after: float

    @property
    def gain(self) -> float:
        """How far it lowers the error."""
        return self.error_before - self.error_after


def pieces_of(
    name: str, tensor: QTensor, *, nbytes: Sequence[int] | None = None, sensitivity: float = 1.0
) -> tuple[Piece, ...]:
    """Cuts a tensor into pieces, in the only order in which they can come. The same tensor gives the same pieces.

    Args:
        name: Its name; it also seeds which rows are sampled.
        tensor: Any legal tensor.
        nbytes: Size of each piece in the layout that they will have. By default as stored; scales and tables, which
            every piece needs, count with the first one.
        sensitivity: What a relative squared error of this tensor costs the model.

    Raises:
        BadArgumentError: `nbytes` has another length than there are pieces.
    """
    keys, sizes, errors = _cut(name, tensor)
    if nbytes is not None and len(nbytes) != len(keys):
        raise BadArgumentError(
            "a tensor has another number of pieces", where=name, found=len(nbytes), allowed=str(len(keys))
        )
    weighted = [sensitivity * error for error in errors]
    return tuple(
        Piece(name, term, plane, size, before, after)
        for (term, plane), size, (before, after) in zip(
            keys, sizes if nbytes is None else nbytes, itertools.pairwise(weighted), strict=True
        )
    )


def weigh(pieces: Iterable[Piece], sensitivity: Mapping[str, float]) -> list[Piece]:
    """Multiplies the errors of pieces by a sensitivity per tensor; tensors that are not named keep theirs."""
    return [
        replace(p, error_before=factor * p.error_before, error_after=factor * p.error_after)
        for p in pieces
        for factor in (sensitivity.get(p.tensor, 1.0),)
    ]


_Cut = tuple[list[tuple[int, int]], list[int], list[float]]
"""(term, plane) of each piece, its stored size, and the relative errors around the pieces: one more than there are."""


def _cut(name: str, tensor: QTensor) -> _Cut:
    if len(tensor.terms) > 1 and (terms := _sign_terms(tensor)):
        return _blocks(name, tensor, terms)
    affine = affine_grouped(tensor)
    if affine is not None and affine.bits > 1:
        return _planes(name, tensor, affine)
    return [(0, 0)], [tensor.nbytes], [1.0, 0.0]


# Sums of sign terms.


def _sign_terms(tensor: QTensor) -> list[Codes]:
    """The terms, if they are sign codes with a scale that are added up, and nothing else."""
    found = []
    for term in tensor.terms:
        codes = term.values
        if not isinstance(codes, Codes) or codes.table != "sign" or term.where is not None or term.mode != "add":
            return []
        if codes.scale is None or codes.zero is not None or codes.offset is not None:
            return []
        found.append(codes)
    return found if tensor.scale is None and tensor.offset is None else []


def _blocks(name: str, tensor: QTensor, terms: list[Codes]) -> _Cut:
    lowrank = sign_lowrank(tensor)
    if lowrank is not None:
        gains = [_product_energy(u, vt) for _, u, vt in lowrank.terms]
    else:
        gains = [_sampled(codes.decoded_shape, name, partial(_scale_energy, codes)) for codes in terms]
    sizes = [QTensor(tensor.shape, tensor.dtype, (term,)).nbytes for term in tensor.terms]
    left = [*itertools.accumulate(reversed(gains), initial=0.0)][::-1]  # left[n]: what blocks n and later hold
    return [(i, 0) for i in range(len(terms))], sizes, _relative(left, left[0])


def _product_energy(u: Codes, vt: Codes) -> float:
    """||u @ vt||_F^2 without the product: [N, k] and [k, K]."""
    a, b = decode_codes(u).astype(np.float64), decode_codes(vt).astype(np.float64)
    return float(np.sum((a.T @ a) * (b @ b.T)))


# Integer codes.


def _planes(name: str, tensor: QTensor, affine: AffineGrouped) -> _Cut:
    codes, bits = affine.codes, affine.bits

    def measure(rows: slice) -> Float64:
        """Squared errors at 0 to `bits` planes."""
        found = _offset_binary(codes, rows, bits if affine.signed else 0)
        scale = _scale(codes, rows)
        missing = [energy((_middle(found, bits - p) - found) * scale) for p in range(1, bits)]
        return np.array([energy(decode_codes(codes, rows)), *missing, 0.0])

    total = _sampled(codes.decoded_shape, name, measure)
    errors = _relative(list(total), float(total[0]))
    plane = math.prod(codes.shape[:-1]) * -(-codes.shape[-1] // 8)
    shared = tensor.nbytes - sum(b.nbytes for b in codes.data)
    return [(0, p) for p in range(bits)], [plane + shared, *[plane] * (bits - 1)], errors


def _offset_binary(codes: Codes, rows: slice, signed_bits: int) -> Float32:
    """Codes as numbers that start at 0; two's complement of so many bits has its sign bit turned."""
    found = read_codes(codes, rows.start, rows.stop)
    return (found ^ (1 << signed_bits >> 1)).astype(np.float32)


def _middle(found: Float32, missing: int) -> Float32:
    """The middle of the interval that a code lies in when its lowest planes are missing."""
    step = np.float32(1 << missing)
    middle: Float32 = np.floor(found / step) * step + (step - 1) / 2
    return middle


# What both need.


def _scale(codes: Codes, rows: slice) -> Float32:
    """The factor of every element, or 1 where there is none."""
    if codes.scale is None:
        return np.ones((1, 1), np.float32)
    spread = decode_param(codes.scale, rows, codes.decoded_shape)
    with np.errstate(all="ignore"):
        factor: Float32 = np.float32(1) / spread if codes.scale.divide else spread
    return factor


def _scale_energy(codes: Codes, rows: slice) -> float:
    return energy(np.broadcast_to(_scale(codes, rows), (rows.stop - rows.start, *codes.decoded_shape[1:])))


def _sampled(shape: tuple[int, ...], name: str, measure: Callable[[slice], Any]) -> Any:
    """The sum of a measure over some runs of rows, always the same ones for a name and shape."""
    rows = shape[0]
    length = max(1, min(_RUN_ROWS, _SAMPLE // max(1, _RUNS * math.prod(shape[1:]))))
    if rows <= _RUNS * length:
        return measure(slice(0, rows))
    chosen = np.random.default_rng(zlib.crc32(name.encode())).choice(rows // length, _RUNS, replace=False)
    return sum(measure(slice(int(i) * length, (int(i) + 1) * length)) for i in np.sort(chosen))


def _relative(errors: list[float], total: float) -> list[float]:
    """Errors divided by the total energy; all zero where there is none, or where it is no number."""
    if not math.isfinite(total) or total <= 0:
        return [0.0] * len(errors)
    return [float(e) / total if math.isfinite(e) else 1.0 for e in errors]
