"""Which scale each value of an integer network gets.

A scale of the source comes first: a value that the source quantizes has that grid. Every other one is taken from
calibrated ranges, at the bits that its user asks for. A value that is only summed up, moved, or given to the last layer
may have neither: it is bounded by the quantized ones before it (`intervals.py`), at 16 bits or more. Without any of
these there is no integer network.

Values that meet in an addition, directly or through what keeps a scale (ReLU, moves, pooling), are one *stream*: 16
bits, one scale for all of it, so that the untouched branch of an addition needs no rescaling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from qdeploy.errors import UnsupportedError
from qdeploy.integer.intervals import Intervals
from qdeploy.integer.quantized_value import Grid, range_grid, signed_grid
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.ops.table import op
from qdeploy.quantize.allocate import LAYERS


@dataclass(frozen=True)
class Bits:
    """How many bits each layer has.

    Attributes:
        weights: 2, 4 or 8.
        activations: 2..8, of the inputs of layers.
        edges: Of weights and activations of the first and the last layer.
        layers: (weights, activations) of single layers, by the name of their weight in the folded graph.
        narrow_sums: There are no streams: addends and sums are codes of 8 bits, each at the scale of its own range.
    """

    weights: int = 8
    activations: int = 8
    edges: int = 8
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    narrow_sums: bool = False

    def of(self, name: str, edge: bool) -> tuple[int, int]:
        """Bits of the weights and of the input of a layer."""
        widths = self.layers.get(name, (self.edges, self.edges) if edge else (self.weights, self.activations))
        if widths[0] not in (2, 4, 8) or not 2 <= widths[1] <= 8:
            raise UnsupportedError(
                "a layer with bits that there is no form for",
                where=name,
                found=widths,
                allowed="weights of 2, 4 or 8 bits, activations of 2 to 8",
            )
        return widths


class Plan:
    """The scales of a float graph.

    Args:
        graph: Folded.
        ranges: Of its values; empty where the source has all scales.
        bits: Per layer.
        source: Grids that the source gives, by the value that it quantizes.
        intervals: Bounds of other values.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, tuple[float, float]],
        bits: Bits,
        source: Mapping[str, Grid],
        intervals: Intervals | None = None,
    ) -> None:
        self.ranges, self.bits, self.source, self._intervals = ranges, bits, source, intervals
        self.uses = Counter([name for node in graph.nodes for name in node.inputs] + [v.name for v in graph.outputs])
        layers = [node.inputs[1] for node in graph.nodes if node.op in LAYERS]
        self.edges = {layers[0], layers[-1]} if layers else set()
        unknown = set(bits.layers) - set(layers)
        if unknown:
            raise UnsupportedError(
                "bits for layers that the network does not have",
                found=", ".join(sorted(unknown)),
                allowed=", ".join(layers),
            )
        self._streams = {} if bits.narrow_sums else _streams(graph, ranges)

    def layer_bits(self, weight: str) -> tuple[int, int]:
        """Bits of the weights and of the input of a layer, by the name of its weight."""
        return self.bits.of(weight, weight in self.edges)

    def stream(self, name: str) -> Grid | None:
        """The grid of the stream that a value is part of."""
        return self._streams.get(name)

    def grid(self, name: str, bits: int, zero_point: bool = False) -> Grid:
        """The grid of a value; `zero_point`: it may have one.

        Raises:
            UnsupportedError: Neither the source nor a calibration says what the value can be.
        """
        if name in self.source:
            return self.source[name]
        return range_grid(*self.interval(name), bits, zero_point)

    def knows(self, name: str) -> bool:
        """Whether the value has a scale."""
        return name in self.source or name in self.ranges

    def interval(self, name: str) -> tuple[float, float]:
        """Between which numbers a value lies; raises as `grid` does."""
        if name in self.source:
            grid = self.source[name]
            return (grid.lo - grid.zero) * grid.scale, (grid.hi - grid.zero) * grid.scale
        if not self.knows(name):
            raise _unknown(name)
        return self.ranges[name]

    def largest_magnitude(self, name: str) -> float:
        """How large the numbers of a value without a scale can be; raises as `grid` does."""
        interval = self._intervals.get(name) if self._intervals else None
        if interval is None:
            raise _unknown(name)
        return max(abs(interval[0]), abs(interval[1]))


def _unknown(name: str) -> UnsupportedError:
    return UnsupportedError(
        "a value has no activation scale, which an integer network needs",
        where=name,
        todo="Give calibration data, or a model with quantized activations.",
    )


def _streams(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Grid]:
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    computed = {value.name for value in graph.inputs} | {name for node in graph.nodes for name in node.outputs}
    sums = [node for node in graph.nodes if node.op == "Add" and all(name in computed for name in node.inputs)]
    for node in graph.nodes:
        for name in _joined(node, computed):
            parent[root(name)] = root(node.outputs[0])
    members: dict[str, list[str]] = {root(node.outputs[0]): [] for node in sums}
    for name in parent:
        members.get(root(name), []).append(name)
    grids: dict[str, Grid] = {}
    for names in members.values():
        sizes = [max(abs(n) for n in ranges[name]) for name in names if name in ranges]
        if len(sizes) == len(names):
            grids.update(dict.fromkeys(names, signed_grid(max(sizes), 16)))
    return grids


def _joined(node: Node, computed: set[str]) -> tuple[str, ...]:
    """The inputs that share a scale with the result."""
    if node.op == "Add":
        return tuple(name for name in node.inputs if name in computed)
    return node.inputs[:1] if op(node.op).keeps_scale else ()
