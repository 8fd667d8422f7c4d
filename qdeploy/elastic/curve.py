"""Bytes against predicted loss, for a given order of pieces: what fits into a budget."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.elastic.pieces import Piece
from qdeploy.elastic.plan import resident
from qdeploy.errors import BadArgumentError


@dataclass(frozen=True)
class Point:
    """A prefix of an order.

    Attributes:
        count: How many pieces.
        nbytes: What they take, the fixed part included.
        loss: The sum over all tensors of their (weighted) relative squared errors.
    """

    count: int
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """All prefixes of an order that can run, the floor first.

    Attributes:
        order: The pieces.
        points: One per prefix, from the floor to everything; bytes never fall.
    """

    order: tuple[Piece, ...]
    points: tuple[Point, ...]

    @classmethod
    def of(cls, order: Sequence[Piece], fixed: int = 0) -> Curve:
        """The curve of an order.

        Args:
            order: As `plan.order` gives it: the first piece of every tensor at its head.
            fixed: Bytes that are there whatever the budget (norms, cache, scratch).
        """
        least = len(resident(order))
        sizes = itertools.accumulate((p.nbytes for p in order), initial=fixed)
        start = sum(p.error_before for p in order[:least])
        losses = itertools.accumulate((-p.gain for p in order), initial=start)
        points = [Point(i, size, max(loss, 0.0)) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))]
        return cls(tuple(order), tuple(points[least:]))

    def at(self, budget: int) -> Point:
        """The longest prefix that fits into a number of bytes.

        Raises:
            BadArgumentError: Not even the floor fits; the error names it.
        """
        count = bisect_right(self.points, budget, key=lambda point: point.nbytes)
        if not count:
            raise BadArgumentError(
                "the budget is too small for this model",
                found=f"{budget} bytes",
                allowed=f"at least {self.points[0].nbytes} bytes",
            )
        return self.points[count - 1]

    def resident(self, budget: int) -> dict[str, int]:
        """How many pieces of every tensor fit into a number of bytes; raises as `at` does."""
        return resident(self.order[: self.at(budget).count])
