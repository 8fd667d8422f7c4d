"""A graph, node by node over all samples: each weight is decoded once, and only values that are still needed are held.

Batches of samples run side by side, one per core. What comes to a layer is shown before the layer runs, and may change
the weight that it runs with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.passes.expand import expand_graph
from qdeploy.quantize.activations import KEPT, alone, last_uses
from qdeploy.quantize.blas import single_threaded
from qdeploy.quantize.samples import Samples

Layer = Callable[[Array], Array]
"""What a layer computes of its input [..., K]."""


class Walk:
    """Runs of one graph over batches of samples.

    Args:
        model: What to run.
        samples: On what.

    Attributes:
        nodes: Of the graph, in which every layer is a node of its own.
        values: For each batch, what is still needed, by name.
        masks: For each batch, where there is a token: bool [sequences, tokens].
        place: The next node.
    """

    def __init__(self, model: Model, samples: Samples) -> None:
        batches = list(samples.batches())
        self.nodes: tuple[Node, ...] = expand_graph(model.graph, KEPT).nodes
        self.values: list[dict[str, Array]] = [batch.inputs(model) for batch in batches]
        self.masks = [batch.mask for batch in batches]
        self.place = 0
        self._graph: Graph = model.graph
        self._tensors: Mapping[str, QTensor] = model.tensors
        self._last = last_uses(self.nodes)

    @property
    def layers(self) -> dict[str, list[str]]:
        """The weights of layers by the value that they are multiplied with, in the order of the graph."""
        takers: dict[str, list[str]] = {}
        for node in self.nodes:
            if self._is_layer(node):
                takers.setdefault(node.inputs[0], []).append(node.inputs[1])
        return takers

    @property
    def next_layer(self) -> Node | None:
        """The next node, where it is a layer with a weight of the model."""
        node = self.nodes[self.place] if self.place < len(self.nodes) else None
        return node if node is not None and self._is_layer(node) else None

    def rows(self, name: str) -> list[Array]:
        """A value [sequences, tokens, K] of each batch as the rows of its tokens: [tokens, K]."""
        together = zip(self.values, self.masks, strict=True)
        return [x[name][mask] if x[name].shape[:2] == mask.shape else _rows(x[name]) for x, mask in together]

    def step(self, layer: Layer | None = None) -> None:
        """Runs the next node in all batches; a layer by `layer`, where that is given."""
        node = self.nodes[self.place]
        weights = {} if layer else {n: as_value(self._tensors[n]) for n in node.inputs if n in self._tensors}

        def one(values: dict[str, Array]) -> None:
            if layer is not None:
                values[node.outputs[0]] = layer(values[node.inputs[0]])
            else:
                outputs, _ = run(alone(node, values, self._graph), values, {}, weights)
                values.update(outputs)
            for name in (*node.inputs, *node.outputs):
                if self._last.get(name, -1) <= self.place:
                    values.pop(name, None)

        on_all_cores(one, self.values)
        self.place += 1

    def constant(self, name: str) -> Array:
        """A bias or the like, as nodes take it."""
        owner = self._tensors if name in self._tensors else self._graph.constants
        return as_value(owner[name])

    def _is_layer(self, node: Node) -> bool:
        return node.op == "Linear" and node.inputs[1] in self._tensors


def on_all_cores(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The results of independent work, on as many threads as there are cores."""
    with single_threaded(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(work, items))


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
