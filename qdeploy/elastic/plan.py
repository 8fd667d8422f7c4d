"""The order in which pieces become resident: a budget is a prefix of it. Pure and deterministic.

    gain       the floor first; then the upper hull of every tensor's (bytes, gain), merged by gain per byte. A prefix
               that ends between two segments is the best of its size, as far as errors of tensors add up.
    uniform    level by level, the tensors in their order
    reference  the floor first; then what the checkpoint's authors chose (their list of blocks), then level by level

The floor is the first piece of every tensor. Where two pieces are worth the same, the tensor that comes first in the
graph goes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qdeploy.elastic.pieces import Piece
from qdeploy.errors import BadArgumentError, BadFileError

Kind = Literal["gain", "uniform", "reference"]


def order(pieces: Iterable[Piece], kind: Kind = "gain", reference: Sequence[tuple[str, int]] = ()) -> list[Piece]:
    """Orders pieces; one never comes before its predecessor of the same tensor.

    Args:
        pieces: Of all tensors, each tensor's in their own order; tensors in the order of the graph.
        kind: See above.
        reference: For "reference": (tensor, number of its piece), as `published.reference_steps` gives it.

    Raises:
        BadArgumentError: There is no such kind.
        BadFileError: The reference names a tensor or piece that is not there, or pieces out of their order.
    """
    tensors = _by_tensor(pieces)
    rest: dict[Kind, Callable[[], list[Piece]]] = {
        "gain": lambda: _by_gain(tensors),
        "uniform": lambda: _by_level(tensors),
        "reference": lambda: _by_reference(tensors, reference),
    }
    if kind not in rest:
        raise BadArgumentError("no such order", found=kind, allowed=", ".join(rest))
    return [own[0] for own in tensors.values()] + rest[kind]()


def floor(pieces: Iterable[Piece]) -> int:
    """Bytes of the first piece of every tensor: less than this cannot run."""
    return sum(own[0].nbytes for own in _by_tensor(pieces).values())


def resident(prefix: Iterable[Piece]) -> dict[str, int]:
    """How many pieces of every tensor a prefix of an order holds."""
    return {name: len(own) for name, own in _by_tensor(prefix).items()}


def _by_tensor(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    by_tensor: dict[str, list[Piece]] = {}
    for piece in pieces:
        own = by_tensor.setdefault(piece.tensor, [])
        if own and (own[-1].term, own[-1].plane) >= (piece.term, piece.plane):
            raise BadArgumentError(
                "the pieces of a tensor are out of order",
                where=piece.tensor,
                found=f"term {piece.term}, plane {piece.plane}",
            )
        own.append(piece)
    return by_tensor


@dataclass(frozen=True)
class _Segment:
    """Pieces of one tensor that are worth loading only together: an edge of its hull."""

    pieces: tuple[Piece, ...]

    @property
    def slope(self) -> float:
        size = sum(p.nbytes for p in self.pieces)
        gain = self.pieces[0].error_before - self.pieces[-1].error_after
        return gain / size if size else math.inf


def _by_gain(tensors: dict[str, list[Piece]]) -> list[Piece]:
    segments = [segment for own in tensors.values() for segment in _hull(own[1:])]
    segments.sort(key=lambda segment: -segment.slope)  # stable: ties stay in the order of the tensors
    return [piece for segment in segments for piece in segment.pieces]


def _hull(pieces: Sequence[Piece]) -> list[_Segment]:
    """Segments of falling slope: a piece that is worth more per byte than the one before is joined to it."""
    hull: list[_Segment] = []
    for piece in pieces:
        hull.append(_Segment((piece,)))
        while len(hull) > 1 and hull[-1].slope >= hull[-2].slope:
            last = hull.pop()
            hull[-1] = _Segment(hull[-1].pieces + last.pieces)
    return hull


def _by_level(tensors: dict[str, list[Piece]], start: dict[str, int] | None = None) -> list[Piece]:
    levels = max((len(own) for own in tensors.values()), default=0)
    begin = start or {}
    return [
        own[level]
        for level in range(1, levels)
        for name, own in tensors.items()
        if begin.get(name, 1) <= level < len(own)
    ]


def _by_reference(tensors: dict[str, list[Piece]], reference: Sequence[tuple[str, int]]) -> list[Piece]:
    taken, ordered = dict.fromkeys(tensors, 1), list[Piece]()
    for name, number in reference:
        if name not in tensors or number != taken[name] or number >= len(tensors[name]):
            allowed = f"piece {taken[name]} of {len(tensors[name])}" if name in tensors else "a tensor that is cut"
            raise BadFileError(
                "the reference order does not fit the tensors", where=name, found=f"piece {number}", allowed=allowed
            )
        ordered.append(tensors[name][number])
        taken[name] += 1
    return ordered + _by_level(tensors, taken)
