"""What a tensor can be cut into, and what each piece is worth.

    planes   one piece per bit plane of the codes
    terms    one piece per term: BitStack's blocks, residual sign planes
    whole    one piece

as `qdeploy/ir/views/levels.py` says, from which writers take their levels, too.

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
from qdeploy.ir.decode import decode_codes, decode_param
from qdeploy.ir.tensor import Codes, Float32, QTensor
from qdeploy.ir.views import Coded, SignLowRank, Sum, View, view
from qdeploy.ir.views.ladder import ladder_of
from qdeploy.ir.views.levels import Levels, PlaneRows, cut_planes, levels
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
    name: str,
    tensor: QTensor,
    cut: Levels | None = None,
    *,
    nbytes: Sequence[int] | None = None,
    sensitivity: float = 1.0,
) -> tuple[Piece, ...]:
    """Cuts a tensor into pieces, in the only order in which they can come. The same tensor gives the same pieces.

    Args:
        name: Its name; it also seeds which rows are sampled.
        tensor: Any legal tensor.
        cut: How whoever writes the tensor cuts it; by default into the most levels that it has.
        nbytes: Size of each piece in the layout that they will have. By default as stored; scales and tables, which
            every piece needs, count with the first one.
        sensitivity: What a relative squared error of this tensor costs the model.

    Raises:
        BadArgumentError: The tensor cannot be cut so, or `nbytes` has another length than there are pieces.
    """
    seen = view(tensor)
    cut = levels(seen) if cut is None else cut
    if nbytes is not None and len(nbytes) != cut.count:
        raise BadArgumentError(
            "a tensor has another number of pieces", where=name, found=len(nbytes), allowed=str(cut.count)
        )
    keys, sizes, errors = _cut(name, tensor, seen, cut)
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


def _cut(name: str, tensor: QTensor, seen: View, cut: Levels) -> _Cut:
    ladder = ladder_of(tensor)
    if ladder is not None and cut == ladder.cut:
        sizes = [ladder.level_bytes(level) for level in range(cut.count)]
        return [(0, level) for level in range(cut.count)], sizes, [1.0, *ladder.errors]
    if cut.kind == "terms":
        return _terms(name, tensor, seen, cut)
    if cut.kind == "planes":
        return _planes(name, tensor, seen, cut)
    return [(0, 0)], [tensor.nbytes], [1.0, 0.0]


# Sums of sign terms.


def _terms(name: str, tensor: QTensor, seen: View, cut: Levels) -> _Cut:
    if isinstance(seen, SignLowRank):
        gains = [_product_energy(u, vt) for _, u, vt in seen.terms]
    else:
        parts = seen.parts if isinstance(seen, Sum) and seen.is_residual else ()
        grids = [part.codes for part in parts if isinstance(part, Coded)]
        gains = [_sampled(codes.decoded_shape, name, partial(_scale_energy, codes)) for codes in grids]
    if len(gains) != cut.count:
        raise _not_so(name, cut, str(levels(seen)))
    sizes = [QTensor(tensor.shape, tensor.dtype, (term,)).nbytes for term in tensor.terms]
    left = [*itertools.accumulate(reversed(gains), initial=0.0)][::-1]  # left[n]: what terms n and later hold
    return [(i, 0) for i in range(len(gains))], sizes, _relative(left, left[0])


def _product_energy(u: Codes, vt: Codes) -> float:
    """||u @ vt||_F^2 without the product: [N, k] and [k, K]."""
    a, b = decode_codes(u).astype(np.float64), decode_codes(vt).astype(np.float64)
    return float(np.sum((a.T @ a) * (b @ b.T)))


def _scale_energy(codes: Codes, rows: slice) -> float:
    """The energy of signs times a scale: that of the scale."""
    shape = (rows.stop - rows.start, *codes.decoded_shape[1:])
    if codes.scale is None:
        return float(math.prod(shape))
    spread = decode_param(codes.scale, rows, codes.decoded_shape)
    with np.errstate(all="ignore"):
        factor = np.float32(1) / spread if codes.scale.divide else spread
    return energy(np.broadcast_to(factor, shape))


# Integer codes.


def _planes(name: str, tensor: QTensor, seen: View, cut: Levels) -> _Cut:
    """One grid of codes by its own rows, sums of several by the rows of the matrix."""
    present = cut_planes(seen, cut)
    if present is None:
        raise _not_so(name, cut, str(levels(seen)))
    shape, full = tensor.shape, tensor.decode
    if isinstance(seen, Coded):
        shape, full = seen.codes.decoded_shape, partial(decode_codes, seen.codes)

    def measure(rows: slice) -> Float64:
        """Squared errors at 0 to `count` levels."""
        read = [part.rows(rows.start, rows.stop) for part in present]
        return np.array([energy(full(rows)), *(_lacking(read, level) for level in range(1, cut.count)), 0.0])

    total = _sampled(shape, name, measure)
    sizes = [sum(part.plane_bytes for part in present if part.bits > level) for level in range(cut.count)]
    sizes[0] += tensor.nbytes - sum(part.stored_bytes for part in present)
    return [(0, p) for p in range(cut.count)], sizes, _relative(list(total), float(total[0]))


def _lacking(parts: list[PlaneRows], level: int) -> float:
    """The squared error of rows with so many levels."""
    lacking: Float32 | None = None
    for part in parts:
        if part.bits > level:
            own = part.missing(level)
            lacking = own if lacking is None else lacking + own
    return 0.0 if lacking is None else energy(lacking)


def _not_so(name: str, cut: Levels, allowed: str) -> BadArgumentError:
    return BadArgumentError("a tensor cannot be cut in this way", where=name, found=cut, allowed=allowed)


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
