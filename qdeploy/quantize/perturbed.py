"""A network with one layer changed: what lies in front of the layer runs once, what lies behind it for each change.

    for batch in batches(graph, data, 32):                                (ir/run.py)
        for behind in suffixes(graph, weights, batch):
            behind.outputs(weights)                                       as it is
            behind.outputs({**weights, behind.layer: other weights})      with the layer changed

Of the values in front only those are held that something behind still takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qdeploy.ir.element import element_name
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array
from qdeploy.quantize.allocate import LAYERS


@dataclass(frozen=True)
class Suffix:
    """What lies behind the inputs of a layer.

    Attributes:
        layer: The name of its weight.
        place: Its place among the layers.
        graph: From the layer on; its inputs are the values that it takes from in front.
        values: These values.
    """

    layer: str
    place: int
    graph: Graph
    values: Mapping[str, Array]

    def outputs(self, weights: Mapping[str, Array], graph: Graph | None = None) -> dict[str, Array]:
        """The outputs of the network with other weights, or another graph from the layer on."""
        return run(graph or self.graph, self.values, None, weights)[0]


class Replaced(dict[str, Array]):
    """Some weights in place of others."""

    def __init__(self, weights: Mapping[str, Array], changed: Mapping[str, Array]) -> None:
        super().__init__(changed)
        self._weights = weights

    def __missing__(self, name: str) -> Array:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._weights


def layer_nodes(graph: Graph, weights: Mapping[str, Array]) -> dict[str, Node]:
    """The layers of a folded graph whose weights are numbers: the first node that takes each, in order."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op in LAYERS and node.inputs[1] in weights:
            nodes.setdefault(node.inputs[1], node)
    return nodes


def suffixes(
    graph: Graph, weights: Mapping[str, Array], feeds: Mapping[str, Array], layers: Mapping[str, Node]
) -> Iterator[Suffix]:
    """One suffix per layer, in order; each must be used before the next one is taken.

    Args:
        graph: Without states.
        weights: By name.
        feeds: An array per input.
        layers: See `layer_nodes`.
    """
    constants = {name: tensor for name, tensor in graph.constants.items() if name not in layers}  # else they stay
    graph = replace(graph, constants=constants)
    live, at = dict(feeds), 0
    for number, (layer, node) in enumerate(layers.items()):
        place = next(i for i, other in enumerate(graph.nodes) if other is node)
        rest = graph.nodes[place:]
        wanted = {name for other in rest for name in other.inputs} | {value.name for value in graph.outputs}
        computed = [name for other in graph.nodes[at:place] for name in other.outputs if name in wanted]
        if place > at:
            between = replace(
                graph,
                inputs=_inputs(live),
                nodes=graph.nodes[at:place],
                outputs=tuple(Value(name, "F32", ()) for name in computed),
            )
            live |= run(between, live, None, weights)[0]
        live, at = {name: array for name, array in live.items() if name in wanted}, place
        yield Suffix(layer, number, replace(graph, inputs=_inputs(live), nodes=rest), live)


def _inputs(values: Mapping[str, Array]) -> tuple[Value, ...]:
    return tuple(Value(name, element_name(array.dtype), array.shape) for name, array in values.items())
