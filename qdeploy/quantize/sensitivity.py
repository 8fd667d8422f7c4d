"""How much is lost when a layer gets fewer bits: the losses of the integer programme in `allocate.py`.

    weight_losses    mean over inputs x of |(W - W_b) x|^2: the perturbation of the weights, weighted by the second
                     moments of the layer's inputs; without them |W - W_b|^2 times the mean square of its input
    output_losses    mean squared error of the network's outputs on calibration data, with one layer at a time at b
                     bits, weights and input alike (AdaQuant, arXiv 2006.10518, section 3.3; MixDQ, arXiv 2405.17873)
    hessian.py       trace of the Hessian times |W - W_b|^2 (HAWQ)
    measure          what costs are formed from: weights and products of each layer

Layers are named by their weight. `quantizer(layer, bits)` gives the weight of a layer as its codes would be decoded;
what deploys the network knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.run import batches, run
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.allocate import LAYERS, Widths
from qdeploy.quantize.perturbed import Replaced, layer_nodes, suffixes

Quantizer = Callable[[str, int], Array]


@dataclass(frozen=True)
class Layer:
    """Facts of a layer.

    Attributes:
        input: The value that it takes.
        weights: How many it has.
        products: How many it forms per entry of the batch.
        energy: Mean square of an element of its input.
    """

    input: str
    weights: int
    products: int
    energy: float


def measure(graph: Graph, weights: Mapping[str, Array], data: Mapping[str, Array]) -> dict[str, Layer]:
    """Runs data through a float network once and returns its layers, in order.

    Args:
        graph: Without states.
        weights: By name, float32.
        data: One array per input, the batch first.
    """
    sizes: dict[str, tuple[int, int, float]] = {}

    def note(name: str, x: Array) -> None:
        mean = float(np.mean(np.square(x, dtype=np.float64))) if x.size and x.dtype.kind == "f" else 0.0
        sizes[name] = (x.size, max(len(x), 1) if x.ndim else 1, mean)

    run(graph, data, None, weights, note)
    layers: dict[str, Layer] = {}
    for name, node in layer_nodes(graph, weights).items():
        weight, (size, batch, _) = weights[name], sizes[node.outputs[0]]
        outputs = weight.shape[1] if node.op == "Gemm" and not node.attrs.get("transB", 0) else weight.shape[0]
        products = size // batch * (weight.size // max(outputs, 1))
        layers[name] = Layer(node.inputs[0], weight.size, products, sizes[node.inputs[0]][2])
    return layers


def weight_losses(
    weights: Mapping[str, Array],
    options: Sequence[Widths],
    quantizer: Quantizer,
    moments: Mapping[str, Array],
    energies: Mapping[str, float],
) -> dict[str, dict[Widths, float]]:
    """Mean squared errors of the outputs of layers, from their weights alone.

    Args:
        weights: Of the layers, [N, ...] each.
        options: Bits of weights and input; the losses know the former only.
        quantizer: Gives the weight of a layer at some bits.
        moments: float64 [groups, K, K] of the inputs of layers, as far as known (`calibrate.moments`).
        energies: Mean square of an element of the input, where there is no moment.
    """
    losses: dict[str, dict[Widths, float]] = {}
    for name, weight in weights.items():
        by_bits = {
            b: _perturbation(weight, quantizer(name, b), moments.get(name), energies.get(name, 1.0))
            for b in {bits[0] for bits in options}
        }
        losses[name] = {bits: by_bits[bits[0]] for bits in options}
    return losses


def _perturbation(weight: Array, rounded: Array, moment: Array | None, energy: float) -> float:
    change = (np.asarray(weight, np.float64) - rounded).reshape(len(weight), -1)  # [N, K]
    if moment is None or moment.shape[-1] != change.shape[1]:
        return float(np.square(change).sum() * energy)
    parts = np.split(change, len(moment))  # per group [N / groups, K]
    return float(sum(np.sum((part @ m) * part) for part, m in zip(parts, moment, strict=True)))


def output_losses(
    graph: Graph,
    weights: Mapping[str, Array],
    data: Mapping[str, Array],
    ranges: Mapping[str, tuple[float, float]],
    options: Sequence[Widths],
    quantizer: Quantizer,
    *,
    layers: Sequence[str] = (),
    batch: int = 32,
    progress: Progress = SILENT,
) -> dict[str, dict[Widths, float]]:
    """Mean squared error of the outputs with one layer at a time at few bits.

    Args:
        graph: A float network without states.
        weights: By name, float32.
        data: One array per input.
        ranges: (least, greatest) of the inputs of layers.
        options: Bits of weights and input.
        quantizer: Gives the weight of a layer at some bits.
        layers: Which; empty: all.
        batch: Entries that are run at a time.
        progress: Told of layers times batches.

    Raises:
        BadArgumentError: The range of a layer's input is not known.
    """
    nodes = {name: node for name, node in layer_nodes(graph, weights).items() if not layers or name in layers}
    for name, node in nodes.items():
        if node.inputs[0] not in ranges:
            raise BadArgumentError("the range of a layer's input is not known", where=name, found=node.inputs[0])
    parts = list(batches(graph, data, batch))
    count = sum(len(next(iter(feeds.values()))) for feeds in parts)
    losses: dict[str, dict[Widths, float]] = {name: dict.fromkeys(options, 0.0) for name in nodes}
    progress.start("losses of the outputs", len(parts) * len(nodes), "passes")
    for feeds in parts:
        share = len(next(iter(feeds.values()))) / count
        wanted, _ = run(graph, feeds, None, weights)
        for suffix in suffixes(graph, weights, feeds, nodes):
            name, source = suffix.layer, nodes[suffix.layer].inputs[0]
            for bits in options:
                changed, extra = _with_codes(suffix.graph, name, source, *ranges[source], bits[1])
                replaced = Replaced(weights, {name: np.asarray(quantizer(name, bits[0]), np.float32), **extra})
                losses[name][bits] += share * _mean_square(wanted, suffix.outputs(replaced, changed))
            progress.advance(1, name)
    return losses


def _mean_square(wanted: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
    return float(np.mean([np.mean(np.square(outputs[k] - wanted[k], dtype=np.float64)) for k in wanted]))


def _with_codes(
    graph: Graph, layer: str, source: str, low: float, high: float, bits: int
) -> tuple[Graph, dict[str, Array]]:
    """The graph with the input of a layer on a grid of 2^bits values."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, 1e-30) / ((1 << bits) - 1)
    shown = f"{layer}/shown"
    zero = np.array(round(-low / step), np.uint8 if bits <= 8 else np.uint16)
    extra: dict[str, Array] = {f"{shown}/scale": np.array(step, np.float32), f"{shown}/zero": zero}
    grid = (f"{shown}/scale", f"{shown}/zero")
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op in LAYERS and node.inputs[1] == layer and node.inputs[0] == source:
            if not any(shown in n.outputs for n in nodes):
                limits: dict[str, float] = {"min": low, "max": high}
                nodes += [
                    Node("Clip", (source,), (f"{shown}/limited",), limits),
                    Node("QuantizeLinear", (f"{shown}/limited", *grid), (f"{shown}/codes",)),
                    Node("DequantizeLinear", (f"{shown}/codes", *grid), (shown,)),
                ]
            node = replace(node, inputs=(shown, *node.inputs[1:]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)), extra
