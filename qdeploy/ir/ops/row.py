"""A row of the table of ops: what an op computes, and its traits, which is all that passes and backends ask of it.

    moves         the result's elements are elements of the inputs; nothing is computed
    keeps_scale   the result lies on the grid of codes that the first input lies on
    monotone      f(a) <= f(b) where a <= b, element by element
    interval      between which numbers the result lies, from the intervals of the inputs (intervals.py)
    constants     attributes that the ONNX operator of the same name takes as inputs, in their order
    result        the element type of the result, where the op alone decides it
    choices       the values that an attribute may have, where they are words
    state         what kind of state it keeps (graph.State), where it keeps one
    weights       which inputs are matrices of a linear layer, which quantizers take, and which are their biases

Shapes need no trait: they are found by running the numpy function on zeros (`qdeploy/passes/shapes.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from qdeploy.ir.expand import Expansion
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array

Interval = tuple[float, float]
"""The least and the greatest number; integers where the op is one of integers, which Python keeps exact."""

ONNX = "ONNX 21"
QDEPLOY = "qdeploy"
MICROSOFT = "com.microsoft 1"
_RUNTIME = frozenset({"past"})  # keywords that the interpreter gives and no node carries


class IntervalContext(Protocol):
    """What an interval rule sees of a graph."""

    graph: Graph

    def interval(self, name: str) -> Interval | None:
        """Of a value or a constant; None where nothing is known of it."""
        ...

    def array(self, name: str) -> Array | None:
        """A constant; None for a value that is computed, and for no name."""
        ...

    def extent(self, name: str, axis: int) -> int | str:
        """The extent of an axis of a value; its name where it is free."""
        ...

    def below(self, node: Node, bound: float, limit: int, what: str) -> None:
        """Raises UnsupportedError where a bound reaches a limit: `what` could overflow."""
        ...

    def times(self, node: Node, count: int | str, each: int, limit: int, what: str) -> int:
        """Proves count * each below a limit, noting the greatest extent of a free axis; returns the bound."""
        ...


IntervalRule = Callable[[IntervalContext, Node], "Interval | None"]
"""The interval of a node's first output; None where nothing is known. A rule of an integer op proves, besides, that no
sum or product inside of it overflows."""


@dataclass(frozen=True)
class Op:
    """One row of the table.

    Attributes:
        name: As nodes name it.
        source: Whose semantics it has: "ONNX <opset>", "com.microsoft" or "qdeploy".
        semantics: What it computes, in one line; B batch, T new tokens, S all tokens, D head size.
        numpy: The same as a function: inputs positional, attributes as keywords.
        expand: For composites: the nodes that mean the same.
        moves: Nothing is computed.
        keeps_scale: The result lies on the grid of the first input.
        monotone: In every input, element by element.
        interval: Between which numbers the result lies.
        constants: Attributes that are inputs in ONNX.
        result: Element type of the result, where the op alone decides it.
        choices: Attribute -> the values that it may have; any value where an attribute is not named.
        state: The kind of the state that it keeps, where it keeps one.
        weights: Of a linear layer: the places of the matrices [N, K] that it multiplies with, each with the place of
            its bias, 0 where it can have none.
    """

    name: str
    source: str
    semantics: str
    numpy: Callable[..., Any]
    expand: Expansion | None = None
    moves: bool = False
    keeps_scale: bool = False
    monotone: bool = False
    interval: IntervalRule | None = None
    constants: tuple[str, ...] = ()
    result: str = ""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    state: str = "kv"
    weights: tuple[tuple[int, int], ...] = ()

    @cached_property
    def arity(self) -> tuple[int, int]:
        """Least and greatest number of inputs."""
        inputs = [p for p in self._parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if any(p.kind is p.VAR_POSITIONAL for p in self._parameters):
            return sum(p.default is p.empty for p in inputs), 1 << 30
        return sum(p.default is p.empty for p in inputs), len(inputs)

    @cached_property
    def attributes(self) -> dict[str, bool]:
        """Name of every attribute, and whether it must be there."""
        keywords = [p for p in self._parameters if p.kind is p.KEYWORD_ONLY and p.name not in _RUNTIME]
        return {p.name: p.default is p.empty for p in keywords}

    @cached_property
    def takes_past(self) -> bool:
        """Whether the interpreter gives it what a state held before: that of its attribute `state` or `length_of`."""
        return any(p.name == "past" for p in self._parameters)

    @property
    def keeps_state(self) -> bool:
        """Whether it gives, beside its result, what its state holds afterwards."""
        return self.takes_past and "state" in self.attributes

    @property
    def is_onnx(self) -> bool:
        """Whether it is an operator of ONNX or of ONNX Runtime, by the same name."""
        return self.source.startswith(("ONNX ", "com.microsoft"))

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.numpy).parameters.values())
