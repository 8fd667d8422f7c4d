"""Between which numbers the values of a graph lie: one analysis, from the interval rules of the rows of ops.

Of a float network it says what its scales and weights alone imply (`Intervals`): a value that they say nothing of has
no interval. Of an integer network it is a proof that nothing overflows (`check_ranges`): inputs may hold every number
of their type, every op needs a rule, and sums over an axis of free extent hold up to that which the graph's meta gives
("limits": {axis: extent}), or else up to one that is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.ops.integer_intervals import INT32, INT64
from qdeploy.ir.ops.row import Interval, Op
from qdeploy.ir.ops.table import OPS
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.passes.shapes import SymbolicShape, inferred_shapes

__all__ = ["INT32", "INT64", "Bounds", "Intervals", "check_ranges", "where"]


class Intervals:
    """The intervals of a graph's values; nothing is computed before one is asked for.

    Args:
        graph: Folded, or one of integers.
        tensors: The model's.
        known: Intervals that are known otherwise: of inputs, or measured.
        complete: Whether an op without a rule is an error.

    Attributes:
        graph: The graph.
        limits: For free axes that are summed over: the greatest extent for which nothing overflows.
    """

    def __init__(
        self, graph: Graph, tensors: Mapping[str, QTensor], known: Mapping[str, Interval], complete: bool = False
    ) -> None:
        self.graph, self.limits = graph, dict[str, int]()
        self._tensors, self._complete = tensors, complete
        self._values: dict[str, Interval] = dict(known)
        self._arrays: dict[str, Array | None] = {}
        self._visited = False

    def get(self, name: str) -> Interval | None:
        """The interval of a value; None where nothing is known of it."""
        return self.values.get(name)

    @property
    def values(self) -> Mapping[str, Interval]:
        """Every interval that is known."""
        if not self._visited:
            self._visited = True
            for node in self.graph.nodes:
                self._visit(node)
        return self._values

    def _visit(self, node: Node) -> None:
        row = OPS.get(node.op)
        if self._complete and (row is None or row.interval is None):
            raise UnsupportedError(
                "an op that the range analysis does not know",
                where=where(node),
                found=node.op,
                allowed=", ".join(name for name, other in OPS.items() if other.interval),
            )
        if row is None or node.outputs[0] in self._values:
            return
        interval = row.interval(self, node) if row.interval else self._of_monotone(row, node)
        if interval is not None and (self._complete or np.isfinite(interval).all()):
            for name in node.outputs if row.moves else node.outputs[:1]:
                self._values[name] = interval

    def _of_monotone(self, row: Op, node: Node) -> Interval | None:
        """The op of the ends of its inputs."""
        inputs = [self.interval(name) for name in node.inputs] if row.monotone else []
        ends = [interval for interval in inputs if interval is not None]
        if not ends or len(ends) < len(node.inputs):
            return None
        with np.errstate(all="ignore"):
            low, high = (row.numpy(*(np.asarray(e[i], np.float64) for e in ends), **node.attrs) for i in (0, 1))
        return float(low), float(high)

    # ---- what rules ask for (ir/ops/row.py: IntervalContext)

    def interval(self, name: str) -> Interval | None:
        """Of a value or a constant."""
        if name in self._values:
            return self._values[name]
        array = self.array(name)
        if array is None:
            return None
        low, high = (array.min().item(), array.max().item()) if array.size else (0, 0)
        return low, high

    def array(self, name: str) -> Array | None:
        """A constant."""
        if name not in self._arrays:
            tensor = self.graph.constants.get(name) or self._tensors.get(name)
            self._arrays[name] = None if tensor is None else as_value(tensor)
        return self._arrays[name]

    def extent(self, name: str, axis: int) -> int | str:
        """The extent of an axis of a value; its name where it is free."""
        array = self.array(name)
        return int(array.shape[axis]) if array is not None else self._shapes[name][axis]

    @cached_property
    def _shapes(self) -> dict[str, SymbolicShape]:
        arrays = {name: self.array(name) for name in (*self.graph.weights(), *self.graph.constants)}
        return inferred_shapes(self.graph, {name: array for name, array in arrays.items() if array is not None})

    def below(self, node: Node, bound: float, limit: int, what: str) -> None:
        """Raises UnsupportedError where a bound reaches a limit."""
        if bound >= limit:
            raise UnsupportedError(
                f"{what} could overflow",
                where=where(node),
                found=bound,
                allowed=f"below {limit}",
                todo="Give this layer fewer bits, or a coarser scale.",
            )

    def times(self, node: Node, count: int | str, each: int, limit: int, what: str) -> int:
        """Proves count * each below a limit; of a free axis, notes the greatest extent. Returns the bound."""
        if isinstance(count, int) and count >= 0:
            self.below(node, count * each, limit, what)
            return count * each
        known: Any = self.graph.meta.get("limits", {})
        if count in known:
            return self.times(node, int(known[count]), each, limit, what)
        most = (limit - 1) // max(each, 1)
        self.below(node, 1 if most else limit, limit, what)
        axis = str(count)
        self.limits[axis] = min(self.limits.get(axis, most), most)
        return most * each


@dataclass
class Bounds:
    """What is proven of an integer graph.

    Attributes:
        values: The least and greatest number that each value can hold.
        limits: For free axes that are summed over: the greatest extent for which nothing overflows.
    """

    values: dict[str, tuple[int, int]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


def check_ranges(graph: Graph, tensors: Mapping[str, QTensor]) -> Bounds:
    """Proves every accumulator and every shift of an integer graph.

    Args:
        graph: Of the rows of ir/ops/integer.py and of rows that move elements.
        tensors: The model's.

    Raises:
        UnsupportedError: A result could overflow: names the node, the bound and the limit; or an op has no rule.
    """
    types = {value.name: np.iinfo(element_dtype(value.dtype)) for value in graph.inputs}
    known = {name: (int(limits.min), int(limits.max)) for name, limits in types.items()}
    analysis = Intervals(graph, tensors, known, complete=True)
    values = {name: (int(low), int(high)) for name, (low, high) in analysis.values.items()}
    return Bounds(values, analysis.limits)


def where(node: Node) -> str:
    """A node as errors name it."""
    return f"node {node.name or node.outputs[0]} ({node.op})"
