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
from qdeploy.ir.views.levels import Levels


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
    matrices: Sequence[tuple[str, QTensor, Levels, list[BlockPlan]]],
    kind: Kind = "gain",
    reference: Sequence[tuple[str, int]] = (),
    sensitivities: Callable[[list[Piece]], Mapping[str, float]] = lambda pieces: {},
) -> Stack:
    """Orders the blocks of all matrices.

    Args:
        matrices: In the order of the graph, each with how it is cut into levels, and its blocks.
        kind: As for `qdeploy.elastic.plan.order`.
        reference: The same.
        sensitivities: What an error of each tensor costs, given all pieces; tensors without count once.

    Raises:
        BadFileError: The reference does not fit the tensors.
        BadArgumentError: The blocks of a matrix are of another number of levels than it is cut into.
    """
    levels: dict[tuple[str, int], list[BlockPlan]] = {}
    pieces: list[Piece] = []
    for name, tensor, cut, blocks in matrices:
        for block in blocks:
            levels.setdefault((name, block.level), []).append(block)
        count = 1 + max(block.level for block in blocks)
        sizes = [sum(b.nbytes for b in levels[name, level]) for level in range(count)]
        pieces += pieces_of(name, tensor, cut, nbytes=sizes)
    weights = sensitivities(pieces)
    pieces = weigh(pieces, weights)
    stack, seen = Stack([], 0, [], weights), dict[str, int]()
    left = sum(p.error_before for p in pieces if (p.term, p.plane) == (0, 0))
    for piece in order(pieces, kind, reference):
        level = seen[piece.tensor] = seen.get(piece.tensor, -1) + 1
        left -= piece.gain
        blocks_of_level = levels[piece.tensor, level]
        stack.blocks.extend(blocks_of_level)
        stack.errors.extend([max(left, 0.0)] * len(blocks_of_level))
    return Stack(stack.blocks, sum(b.level == 0 for b in stack.blocks), stack.errors, weights)
