"""In which order blocks lie in the stack: what must be there to run first, then what lowers the error most per byte.

The floor is the first level of every matrix (plane 0 with the params; of a decomposition, its first term) in the order
of the graph. What follows is ordered by qdeploy.elastic, which measures what each level is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qdeploy.elastic.pieces import Piece, pieces_of, weigh
from qdeploy.elastic.plan import Kind, order
from qdeploy.ir.tensor import QTensor


@dataclass(frozen=True)
class BlockPlan:
    """A block: plane `plane` of term `term` (its index in the file).

    Attributes:
        term: Index of the term.
        plane: 0 holds the params too.
        nbytes: Its size.
        level: 0: needed to run at all.
    """

    term: int
    plane: int
    nbytes: int
    level: int


@dataclass(frozen=True)
class Stack:
    """The blocks as they lie, how many of them are the floor, the error that is left after each, and the weights."""

    blocks: list[BlockPlan]
    floor: int
    errors: list[float]
    sensitivities: Mapping[str, float]


def stack_order(
    matrices: Sequence[tuple[str, QTensor, list[BlockPlan]]],
    kind: Kind = "gain",
    reference: Sequence[tuple[str, int]] = (),
    sensitivities: Callable[[list[Piece]], Mapping[str, float]] = lambda pieces: {},
) -> Stack:
    """Orders the blocks of all matrices.

    Args:
        matrices: In the order of the graph.
        kind: As for `qdeploy.elastic.plan.order`.
        reference: The same.
        sensitivities: What an error of each tensor costs, given all pieces; tensors without count once.

    Raises:
        BadFileError: The reference does not fit the tensors.
    """
    levels: dict[tuple[str, int], list[BlockPlan]] = {}
    pieces: list[Piece] = []
    for name, tensor, blocks in matrices:
        for block in blocks:
            levels.setdefault((name, block.level), []).append(block)
        count = 1 + max(block.level for block in blocks)
        pieces += _pieces(name, tensor, [sum(b.nbytes for b in levels[name, level]) for level in range(count)])
    weights = sensitivities(pieces)
    pieces = weigh(pieces, weights)
    stack, seen = Stack([], 0, [], weights), dict[str, int]()
    left = sum(p.error_before for p in pieces if (p.term, p.plane) == (0, 0))
    for piece in order(pieces, kind, reference):
        level = seen[piece.tensor] = seen.get(piece.tensor, -1) + 1
        left -= piece.gain
        found = levels[piece.tensor, level]
        stack.blocks.extend(found)
        stack.errors.extend([max(left, 0.0)] * len(found))
    return Stack(stack.blocks, sum(b.level == 0 for b in stack.blocks), stack.errors, weights)


def _pieces(name: str, tensor: QTensor, sizes: list[int]) -> list[Piece]:
    """A piece per level: as measured, or where the levels are cut otherwise, each a quarter of the error before."""
    measured = pieces_of(name, tensor)
    if len(measured) != len(sizes):
        errors = [*(0.25**level for level in range(len(sizes))), 0.0]
        return [Piece(name, 0, i, size, errors[i], errors[i + 1]) for i, size in enumerate(sizes)]
    return [
        Piece(name, p.term, p.plane, size, p.error_before, p.error_after)
        for p, size in zip(measured, sizes, strict=True)
    ]
