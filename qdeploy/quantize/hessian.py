"""The trace of the Hessian of each layer from forward passes alone: the sensitivity of HAWQ-V2 and HAWQ-V3.

    loss of b bits = trace(H) / n * |W - W_b|^2                          arXiv 2011.10680, section 3.4 (n weights)
    trace(H)       = mean over directions v of entries +1 and -1 of v^T H v      Hutchinson, as in HAWQ-V2 (1911.03852)

HAWQ multiplies H with v by backpropagation, through the loss of labels. Here it is the curvature of the distance
between the network's outputs and those of its changed self: zero at the weights, where its gradient is zero, too, so

    v^T H v = 2 distance(W, W + s v) / s^2 + O(s)

without a difference of large numbers, without labels and without gradients. The O(s) is odd in v: it cancels in the
mean.

    scores   KL(p || p_changed) of the softmax of the outputs; H is Fisher's information matrix, which is the
             generalized Gauss-Newton matrix of the cross entropy
    values   |y - y_changed|^2 / 2; H is J^T J, with J the derivative of the outputs

Both are means over the entries of the data. The step is relative: |s v| = STEP |W|. At 1 % of a layer float32 resolves
the distance well, and few ReLUs turn on or off; on resnet20 the traces at 0.1 %, 1 % and 2 % agree within 3 %, while
their standard errors, which are those of the data (few images have most of the curvature), are 10 to 40 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.run import batches, run
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.allocate import Widths
from qdeploy.quantize.perturbed import Replaced, Suffix, layer_nodes, suffixes
from qdeploy.quantize.sensitivity import Quantizer

STEP = 0.01
"""Size of a step, as a share of the norm of the layer's weights."""
DIRECTIONS = 8
"""Least number of directions of a layer; each batch of data has directions of its own."""
BATCH = 8
Kind = Literal["auto", "scores", "values"]
Distance = Callable[[Mapping[str, Array], Mapping[str, Array]], float]
_SIGNS = np.array([-1, 1], np.float32)
_MOVES = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_SCORERS = frozenset({"Gemm", "Linear", "MatMul", "Conv", "Add", "GlobalAveragePool", "ReduceMean"})


@dataclass(frozen=True)
class Trace:
    """The mean eigenvalue of a layer's Hessian.

    Attributes:
        mean: trace / number of weights.
        error: Standard error of `mean`, over directions and data; infinite where there was one direction.
        probes: How many directions.
    """

    mean: float
    error: float
    probes: int


def hessian_traces(
    graph: Graph,
    weights: Mapping[str, Array],
    data: Mapping[str, Array],
    *,
    layers: Sequence[str] = (),
    kind: Kind = "auto",
    probes: int = 0,
    step: float = STEP,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Trace]:
    """Estimates the trace of every layer's Hessian; the same arguments give the same numbers.

    Args:
        graph: A folded float network without states.
        weights: By name, float32.
        data: One array per input.
        layers: Which; empty: all.
        kind: What the outputs are; "auto": see `is_scores`.
        probes: Directions per batch; 0: as few as make `DIRECTIONS` in all.
        step: Relative to the norm of the layer.
        batch: Entries per batch.
        seed: Of the directions.
        progress: Told of layers times batches.

    Raises:
        BadArgumentError: A setting is out of range, or a distance is not finite.
    """
    if probes < 0 or batch < 1 or not 0 < step <= 1:
        raise BadArgumentError(
            "a setting of the Hessian is out of range",
            found=f"{probes}, {batch}, {step}",
            allowed="0 or more probes, a batch of 1 or more, a step from 0 to 1",
        )
    graph, distance = _objective(graph, kind)
    nodes = {name: node for name, node in layer_nodes(graph, weights).items() if not layers or name in layers}
    parts = list(batches(graph, data, batch))
    probes = probes or -(-DIRECTIONS // len(parts))
    by_layer: dict[str, list[list[float]]] = {name: [] for name in nodes}
    progress.start("Hessian traces", len(parts) * len(nodes), "passes")
    for number, feeds in enumerate(parts):
        wanted, _ = run(graph, feeds, None, weights)
        for suffix in suffixes(graph, weights, feeds, nodes):
            rng = np.random.default_rng((seed, suffix.place, number))
            shape = weights[suffix.layer].shape
            curvatures = [
                _curvature(suffix, weights, wanted, distance, rng.choice(_SIGNS, shape), step) for _ in range(probes)
            ]
            by_layer[suffix.layer].append(curvatures)
            progress.advance(1, suffix.layer)
    shares = [len(next(iter(feeds.values()))) for feeds in parts]
    return {name: _summary(np.array(numbers), shares, weights[name].size) for name, numbers in by_layer.items()}


def _curvature(
    suffix: Suffix,
    weights: Mapping[str, Array],
    wanted: Mapping[str, Array],
    distance: Distance,
    direction: Array,
    step: float,
) -> float:
    """v^T H v of a layer in a direction v, on a batch whose outputs are `wanted`."""
    weight, size = weights[suffix.layer], step_size(weights[suffix.layer], step)
    with np.errstate(all="ignore"):  # values that are not finite are refused below
        changed = suffix.outputs(Replaced(weights, {suffix.layer: weight + np.float32(size) * direction}))
        curvature = 2 * distance(wanted, changed) / size**2
    if not math.isfinite(curvature):
        raise BadArgumentError(
            "the network's outputs are not finite numbers",
            where=suffix.layer,
            found=curvature,
            todo="Look at the calibration data, and at the model's weights.",
        )
    return curvature


def hessian_losses(
    traces: Mapping[str, Trace], weights: Mapping[str, Array], options: Sequence[Widths], quantizer: Quantizer
) -> dict[str, dict[Widths, float]]:
    """Trace / n * |W - W_b|^2 of each layer and choice, which knows the bits of the weights only."""
    losses: dict[str, dict[Widths, float]] = {}
    for name, trace in traces.items():
        by_bits = {
            b: float(np.square(np.asarray(weights[name], np.float64) - quantizer(name, b)).sum())
            for b in {bits[0] for bits in options}
        }
        losses[name] = {bits: max(trace.mean, 0.0) * by_bits[bits[0]] for bits in options}
    return losses


def step_size(weight: Array, step: float) -> float:
    """The s with |s v| = step |W| for a direction v of entries +1 and -1."""
    norm = float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))) if weight.size else 0.0
    return step * (norm or 1.0)


def is_scores(graph: Graph) -> bool:
    """Whether the outputs are class scores: one output [batch, classes], made by a softmax, a layer or a mean.

    What has the shape of an input (auto-encoders) and what encoders of text give are values.
    """
    if len(graph.outputs) != 1 or graph.meta.get("kind") == "encoder":
        return False
    value = graph.outputs[0]
    if any(len(i.shape) == len(value.shape) and i.shape[1:] == value.shape[1:] for i in graph.inputs):
        return False
    maker = _maker(graph, value.name)
    return len(value.shape) == 2 and maker is not None and maker.op in (_SCORERS | {"Softmax"})


def divergence(p: Array, q: Array) -> float:
    """Mean KL(softmax(p) || softmax(q)) over rows of scores [..., C], exact for scores that are almost equal.

    With d = q - p less its mean under softmax(p), KL = log(sum p exp(d)) = log1p(sum p (exp(d) - 1 - d)): no two large
    numbers are subtracted.
    """
    x, y = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (p, q))  # [rows, C]
    weight = np.exp(x - x.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    change = y - x
    change -= (weight * change).sum(axis=1, keepdims=True)
    return float(np.log1p((weight * (np.expm1(change) - change)).sum(axis=1)).mean())


def _objective(graph: Graph, kind: Kind) -> tuple[Graph, Distance]:
    """The graph with the outputs that are compared, and how."""
    if kind == "values" or (kind == "auto" and not is_scores(graph)):
        return graph, _half_square
    if len(graph.outputs) != 1:
        raise BadArgumentError("class scores are one output", found=", ".join(v.name for v in graph.outputs))
    maker = _maker(graph, graph.outputs[0].name)
    name = maker.inputs[0] if maker is not None and maker.op == "Softmax" else graph.outputs[0].name
    scored = replace(graph, outputs=(Value(name, "F32", ()),))
    return scored, lambda a, b: divergence(a[name], b[name])


def _maker(graph: Graph, name: str) -> Node | None:
    """The node that a value comes from, through what only moves it."""
    makers = {output: node for node in graph.nodes for output in node.outputs}
    while name in makers and makers[name].op in _MOVES:
        name = makers[name].inputs[0]
    return makers.get(name)


def _half_square(wanted: Mapping[str, Array], changed: Mapping[str, Array]) -> float:
    """|y - y_changed|^2 / 2 per entry of the batch."""
    floats = [name for name, array in wanted.items() if array.dtype.kind == "f"]
    return sum(
        float(np.square(changed[n] - wanted[n], dtype=np.float64).sum()) / 2 / max(len(wanted[n]), 1) for n in floats
    )


def _summary(numbers: Array, shares: Sequence[int], weights: int) -> Trace:
    """From curvatures [batches, probes]: batches differ more than directions, so the error is that of their means."""
    mean = float(np.average(numbers.mean(axis=1), weights=shares))
    apart = numbers.mean(axis=1) if len(numbers) > 1 else numbers[0]
    error = float(np.std(apart, ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
    return Trace(mean / max(weights, 1), error / max(weights, 1), numbers.size)
