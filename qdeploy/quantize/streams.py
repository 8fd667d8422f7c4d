"""A float model and its rungs side by side: what reaches a layer where the layers before stand at each rung.

Every stream runs the same graph on the same samples. When they come to a layer that is to be quantized, its inputs are
measured in all of them, the layer is quantized, and each stream goes on with its own rung of it. Second moments, means
and the products of the float stream with those of the rungs are all that is kept of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from qdeploy.ir.decode import decode_codes, decode_tensor
from qdeploy.ir.graph import Node
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.quantize.contract import Statistics
from qdeploy.quantize.samples import Samples
from qdeploy.quantize.walk import Layer, Walk, on_all_cores

Quantized = tuple[QTensor, QTensor | None]
"""A tensor with rungs, and what its layer adds to its outputs, float [N]."""


def run_streams(
    model: Model,
    samples: Samples,
    names: Collection[str],
    rungs: int,
    quantize: Callable[[str, Sequence[Statistics]], Quantized | None],
) -> None:
    """Runs a model.

    Args:
        model: Of floats.
        samples: What it is run on.
        names: Of the weights that are to be quantized.
        rungs: How many streams there are beside the float one: those of the last rungs of each tensor.
        quantize: Given the name of a weight and the statistics of its inputs (the float model's, then each rung's),
            makes the tensor; None: the weight stays as it is.
    """
    streams = [Walk(model, samples) for _ in range(1 + rungs)]
    measured: dict[str, list[Statistics]] = {}
    nodes = streams[0].nodes
    wanted = [place for place, node in enumerate(nodes) if node.op == "Linear" and node.inputs[1] in names]
    last = wanted[-1] if wanted else -1
    while streams[0].place <= last:
        node, own = streams[0].next_layer, None
        if node is not None and node.inputs[1] in names:
            name = node.inputs[0]
            measured = measured if name in measured else {name: _statistics([s.rows(name) for s in streams])}
            own = quantize(node.inputs[1], measured[name])
        for number, stream in enumerate(streams):
            behind = number - 1 - rungs  # the rung, counted from the last
            stream.step(_layer(stream, node, own, behind) if node is not None and own is not None and number else None)


def _layer(stream: Walk, node: Node, own: Quantized, behind: int) -> Layer:
    """A layer with a rung of its weight."""
    tensor, shift = own
    rung = len(tensor.rungs) + behind
    weight = decode_tensor(tensor, rung=rung)
    biases: list[Array] = [stream.constant(bias) for bias in node.inputs[2:] if bias]
    relative = tensor.rungs[rung].bias
    biases += [shift.decode()] if shift is not None else []
    biases += [decode_codes(relative)] if relative is not None else []
    return lambda x: sum(biases, x @ weight.T)


def _statistics(inputs: Sequence[Sequence[Array]]) -> list[Statistics]:
    """Of the float stream's inputs, then of those of each rung: rows [tokens, K] of each batch."""
    count = sum(len(x) for x in inputs[0])

    def sums(batch: Sequence[Array]) -> list[tuple[Array, Array, Array]]:
        first = batch[0]
        return [(x.T @ x, x.sum(axis=0, dtype=np.float64), first.T @ x) for x in batch]

    parts = on_all_cores(sums, list(zip(*inputs, strict=True)))
    return [
        Statistics(
            moments=sum(part[place][0].astype(np.float64) for part in parts) / count,
            means=sum(part[place][1] for part in parts) / count,
            cross=sum(part[place][2].astype(np.float64) for part in parts) / count if place else None,
        )
        for place in range(len(inputs))
    ]
