"""How much is lost when a layer gets fewer bits: the losses of the integer programme in `allocate.py`.

    weight_losses    mean over inputs x of |(W - W_b) x|^2: the perturbation of the weights, weighted by the second
                     moments of the layer's inputs; without them |W - W_b|^2 times the mean square of its input
    output_losses    mean squared error of the network's outputs on calibration data, with one layer at a time at b
                     bits, weights and input alike (AdaQuant, arXiv 2006.10518, section 3.3; MixDQ, arXiv 2405.17873)
    measure          what costs are formed from: weights and products of each layer

Layers are named by their weight. `quantizer(weight, bits)` gives a weight as its codes would be decoded; what deploys
the network knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array
from qdeploy.quantize.allocate import LAYERS, Widths

Quantizer = Callable[[Array, int], Array]


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
    found: dict[str, Layer] = {}
    for node in _layers(graph, weights):
        weight, (size, batch, _) = weights[node.inputs[1]], sizes[node.outputs[0]]
        outputs = weight.shape[1] if node.op == "Gemm" and not node.attrs.get("transB", 0) else weight.shape[0]
        products = size // batch * (weight.size // max(outputs, 1))
        found[node.inputs[1]] = Layer(node.inputs[0], weight.size, products, sizes[node.inputs[0]][2])
    return found


def weight_losses(weights: Mapping[str, Array], options: Sequence[Widths], quantizer: Quantizer,
                  moments: Mapping[str, Array],
                  energies: Mapping[str, float]) -> dict[str, dict[Widths, float]]:  # fmt: skip
    """Mean squared errors of the outputs of layers, from their weights alone.

    Args:
        weights: Of the layers, [N, ...] each.
        options: Bits of weights and input; the losses know the former only.
        quantizer: Gives a weight at some bits.
        moments: float64 [groups, K, K] of the inputs of layers, as far as known (`calibrate.moments`).
        energies: Mean square of an element of the input, where there is no moment.
    """
    found: dict[str, dict[Widths, float]] = {}
    for name, weight in weights.items():
        by_bits = {b: _perturbation(weight, quantizer(weight, b), moments.get(name), energies.get(name, 1.0))
                   for b in {bits[0] for bits in options}}  # fmt: skip
        found[name] = {bits: by_bits[bits[0]] for bits in options}
    return found


def _perturbation(weight: Array, rounded: Array, moment: Array | None, energy: float) -> float:
    change = (np.asarray(weight, np.float64) - rounded).reshape(len(weight), -1)  # [N, K]
    if moment is None or moment.shape[-1] != change.shape[1]:
        return float(np.square(change).sum() * energy)
    parts = np.split(change, len(moment))  # per group [N / groups, K]
    return float(sum(np.sum((part @ m) * part) for part, m in zip(parts, moment, strict=True)))


def output_losses(graph: Graph, weights: Mapping[str, Array], data: Mapping[str, Array],
                  ranges: Mapping[str, tuple[float, float]], options: Sequence[Widths],
                  quantizer: Quantizer) -> dict[str, dict[Widths, float]]:  # fmt: skip
    """Mean squared error of the outputs with one layer at a time at few bits.

    Args:
        graph: A float network without states.
        weights: By name, float32.
        data: One array per input.
        ranges: (least, greatest) of the inputs of layers.
        options: Bits of weights and input.
        quantizer: Gives a weight at some bits.

    Raises:
        BadArgumentError: The range of a layer's input is not known.
    """
    wanted, _ = run(graph, data, None, weights)
    found: dict[str, dict[Widths, float]] = {}
    for node in _layers(graph, weights):
        name, source = node.inputs[:2][::-1]
        if source not in ranges:
            raise BadArgumentError("the range of a layer's input is not known", where=name, found=source)
        found[name] = {}
        for bits in options:
            changed, extra = _with_codes(graph, name, source, *ranges[source], bits[1])
            held = _Changed(weights, {name: quantizer(weights[name], bits[0]).astype(np.float32), **extra})
            made, _ = run(changed, data, None, held)
            found[name][bits] = float(
                np.mean([np.mean(np.square(made[k] - wanted[k], dtype=np.float64)) for k in wanted])
            )
    return found


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
                nodes += [Node("Clip", (source,), (f"{shown}/limited",), limits),
                          Node("QuantizeLinear", (f"{shown}/limited", *grid), (f"{shown}/codes",)),
                          Node("DequantizeLinear", (f"{shown}/codes", *grid), (shown,))]  # fmt: skip
            node = replace(node, inputs=(shown, *node.inputs[1:]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)), extra


class _Changed(dict[str, Array]):
    """Some weights in place of others."""

    def __init__(self, weights: Mapping[str, Array], changed: Mapping[str, Array]) -> None:
        super().__init__(changed)
        self._weights = weights

    def __missing__(self, name: str) -> Array:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._weights


def _layers(graph: Graph, weights: Mapping[str, Array]) -> list[Node]:
    return [node for node in graph.nodes if node.op in LAYERS and node.inputs[1] in weights]
