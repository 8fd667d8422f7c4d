"""Bits per layer for a float network: sensitivities from data, costs from its shapes, and the best choice in a limit.

    sensitivities  quantize/sensitivity.py, quantize/hessian.py     what a layer loses at each choice
    costs          size, bit operations, or a table of latencies    what it takes
    programme      quantize/allocate.py                             the least loss within the limit

The result is what a conversion to integers takes as `layer_bits`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy import registry
from qdeploy.calibrate.calibrate import calibrate, fitted, read_data
from qdeploy.calibrate.moments import input_moments
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.integer.layer_shapes import folded
from qdeploy.integer.weights import quantized
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.run import batches
from qdeploy.ir.tensor import Array
from qdeploy.ir.views import Floats, view
from qdeploy.latency import latencies, read_table
from qdeploy.limits import AllocationSpec, Limit, rounded_up, show_cost
from qdeploy.options import SourceOptions, options_of
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize import allocate as programme
from qdeploy.quantize.allocate import Choices, Widths, parse_choices, show_choice
from qdeploy.quantize.hessian import BATCH, Trace, hessian_losses, hessian_traces
from qdeploy.quantize.perturbed import layer_nodes
from qdeploy.quantize.sensitivity import Layer, Quantizer, measure, output_losses, weight_losses
from qdeploy.store.output import refuse_existing, write_json

Result = dict[str, Any]
SAMPLES = {"output": 64, "hessian": 256}
"""Entries of the data that losses are measured on, where nothing else is asked."""
FIXED: Widths = (8, 8)
"""Of layers that have no choice."""


def allocate(
    path: str | os.PathLike[str],
    data: str | os.PathLike[str] | Mapping[str, Array],
    limit: str,
    *,
    out: str | os.PathLike[str] = "",
    force: bool = False,
    format: str = "",
    trust_links: bool = False,
    progress: Progress = SILENT,
    **how: Any,
) -> Result:
    """Chooses the bits of every layer of a float network so that it loses least within a limit.

    Args:
        path: Any readable checkpoint with a network.
        data: An .npz file with an array for each input, or such arrays: inputs as the network takes them.
        limit: "size:0.5", "size:3.5MB", "bops:72G", "latency:12ms"; a ratio lies between least and greatest.
        out: Where to write the bits, for `convert(layer_bits=...)`; empty: nowhere.
        force: Replace that file.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the source folder.
        progress: Told of every stage.
        how: sensitivity, choices, latency, fixed, ties, samples; see `AllocationSpec`. And the other `SourceOptions`.

    Returns:
        {"bits": {layer: [weights, activations]}, "loss", "cost", "limit": {"kind", "asked", "cost", "least",
        "greatest"}, "sensitivity", "samples", "layers": {layer: {"weights", "products", "fixed", "tied", "chosen",
        "loss": {choice: number}, "cost": {choice: number}}}}; for the Hessian also "trace" (per weight) and
        "trace_error" of each layer.

    Raises:
        BadArgumentError: An argument is not allowed, or no choice meets the limit: the error says the least.
        UnsupportedError: The network has no layers whose bits could be chosen, or scipy is not installed.

    Example:
        >>> bits = allocate("resnet20.onnx", "images.npz", "size:0.5")["bits"]  # doctest: +SKIP
        >>> convert("resnet20.onnx", "out", to="tvm", calibrate="images.npz", layer_bits=bits)  # doctest: +SKIP
    """
    known = [option.name for option in options_of(AllocationSpec)]
    reading = {option.name: how.pop(option.name) for option in options_of(SourceOptions) if option.name in how}
    unknown = set(how) - set(known)
    if unknown:
        raise BadArgumentError(
            "an allocation has no such option", found=", ".join(sorted(unknown)), allowed=", ".join(known)
        )
    spec = AllocationSpec(limit, **how)
    if out:
        refuse_existing(Path(out), force, file=True)
    arrays = data if isinstance(data, Mapping) else read_data(os.fspath(data))
    report = allocated(registry.open_model(path, format, trust_links, **reading), arrays, spec, progress)
    if out:
        write_json(Path(out), report["bits"], force)
    return report


def allocated(model: Model, data: Mapping[str, Array], spec: AllocationSpec, progress: Progress = SILENT) -> Result:
    """As `allocate`, for a model that is there."""
    limit, options = Limit.parse(spec.limit), parse_choices(spec.choices)
    table = read_table(spec.latency) if spec.latency else None
    graph, weights = folded(model)
    feeds, _ = fitted(graph, data)
    layers = _choosers(model, graph, measure(graph, weights, next(batches(graph, feeds, BATCH))))
    fixed = _fixed(spec.fixed, list(layers))
    free = [name for name in layers if name not in fixed]
    if not free:
        raise UnsupportedError(
            "no layer is left whose bits could be chosen",
            where=model.path,
            found=f"{len(layers)} layers, all of them fixed",
            todo="Fix fewer.",
        )
    choices = {name: (FIXED,) if name in fixed else options for name in layers}
    ties = [[n for n in tie if n in free] for tie in programme.shared_inputs(graph)] if spec.ties else []
    costs = (
        _costs(limit.kind, layers, choices)
        if table is None
        else latencies(table, graph, weights, choices, spec.latency)
    )
    amount, least, greatest = _amount(limit, costs, ties)
    losses, traces = _losses(model, graph, weights, feeds, {n: layers[n] for n in free}, options, spec, progress)
    every = {name: losses.get(name, {FIXED: 0.0}) for name in layers}
    optimum = programme.allocate(every, costs, amount, ties)
    rows = {
        name: {
            "weights": layer.weights,
            "products": layer.products,
            "fixed": name in fixed,
            "tied": next((tie for tie in ties if name in tie and len(tie) > 1), []),
            "chosen": show_choice(optimum.layers[name]),
            "loss": {show_choice(b): x for b, x in every[name].items()},
            "cost": {show_choice(b): x for b, x in costs[name].items()},
            **_traced(traces.get(name)),
        }
        for name, layer in layers.items()
    }
    return {
        "bits": {name: list(bits) for name, bits in optimum.layers.items()},
        "loss": optimum.loss,
        "cost": optimum.cost,
        "limit": {"kind": limit.kind, "asked": spec.limit, "cost": amount, "least": least, "greatest": greatest},
        "sensitivity": spec.sensitivity,
        "samples": min(_samples(spec), len(next(iter(feeds.values())))),
        "layers": rows,
    }


def _traced(trace: Trace | None) -> dict[str, float | None]:
    """What a layer's row says of its Hessian; there is no infinity in JSON."""
    if trace is None:
        return {}
    return {"trace": trace.mean, "trace_error": trace.error if math.isfinite(trace.error) else None}


def _choosers(model: Model, graph: Graph, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers that the source has not quantized."""
    tensors = {name: graph.constants.get(name) or model.tensors[name] for name in layers}
    floats = {name: layer for name, layer in layers.items() if isinstance(view(tensors[name]), Floats)}
    if not floats:
        raise UnsupportedError(
            "the network has no float weights: bits of layers are chosen before they are quantized",
            where=model.path,
            found=model.format,
        )
    return floats


def _fixed(text: str, names: Sequence[str]) -> set[str]:
    ends = {"first": names[0], "last": names[-1]}
    parts = [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]
    unknown = [part for part in parts if part not in ends and part not in names]
    if unknown:
        raise BadArgumentError(
            "no such layer to fix", found=", ".join(unknown), allowed=f"none, first, last, {', '.join(names)}"
        )
    return {part if part in names else ends[part] for part in parts}


def _costs(kind: str, layers: Mapping[str, Layer], choices: Mapping[str, Sequence[Widths]]) -> Choices:
    costs: dict[str, Mapping[Widths, float]] = {}
    for name, layer in layers.items():
        layer_costs = (
            programme.sizes({name: layer.weights}, choices[name])
            if kind == "size"
            else programme.bit_operations({name: layer.products}, choices[name])
        )
        costs.update(layer_costs)
    return costs


def _amount(limit: Limit, costs: Choices, ties: Sequence[Sequence[str]]) -> tuple[float, float, float]:
    """The limit as a cost, the least and the greatest cost."""
    least, greatest = programme.cost_range(costs, ties)
    amount = programme.limit_between(costs, limit.amount, ties) if limit.ratio else limit.amount
    if amount < least:
        raise BadArgumentError(
            "no choice of bits meets the limit",
            found=f"{limit.kind}:{show_cost(limit.kind, amount)}",
            allowed=f"{show_cost(limit.kind, rounded_up(least))} or more",
            todo="Allow fewer bits with --choices, or fix fewer layers.",
        )
    return amount, least, greatest


def _losses(
    model: Model,
    graph: Graph,
    weights: Mapping[str, Array],
    data: Mapping[str, Array],
    layers: Mapping[str, Layer],
    options: Sequence[Widths],
    spec: AllocationSpec,
    progress: Progress,
) -> tuple[Choices, dict[str, Trace]]:
    """What each layer loses at each choice, and the traces that this was found by."""
    part = {name: array[: _samples(spec)] for name, array in data.items()}
    if spec.sensitivity == "hessian":
        traces = hessian_traces(graph, weights, part, layers=list(layers), progress=progress)
        return hessian_losses(traces, weights, options, _rounding(graph, weights, {})), traces
    moments = input_moments(model, data, progress=progress) if min(w for w, _ in options) < 8 else {}
    rounded = _rounding(graph, weights, moments)
    if spec.sensitivity == "weights":
        energies = {name: layer.energy for name, layer in layers.items()}
        return weight_losses(
            {n: weights[n] for n in layers}, options, rounded, _fitting(graph, weights, moments), energies
        ), {}
    ranges = calibrate(model, data, progress=progress).values
    return output_losses(graph, weights, part, ranges, options, rounded, layers=list(layers), progress=progress), {}


def _samples(spec: AllocationSpec) -> int:
    return spec.samples or SAMPLES.get(spec.sensitivity, 1)


def _fitting(graph: Graph, weights: Mapping[str, Array], moments: Mapping[str, Any]) -> dict[str, Any]:
    """The moments of layers whose weights are [N, ...]."""
    return {
        name: moments[name]
        for name, node in layer_nodes(graph, weights).items()
        if name in moments and (node.op != "Gemm" or node.attrs.get("transB", 0))
    }


def _rounding(graph: Graph, weights: Mapping[str, Array], moments: Mapping[str, Any]) -> Quantizer:
    """Weights as a conversion rounds them (`integer/layers.py`)."""
    nodes, fitting = layer_nodes(graph, weights), _fitting(graph, weights, moments)

    @cache
    def rounded(name: str, bits: int) -> Array:
        node, weight = nodes[name], weights[name]
        if node.op == "Gemm" and not node.attrs.get("transB", 0):
            return quantized(np.ascontiguousarray(weight.T), bits).values().T.astype(np.float32)
        return quantized(weight, bits, fitting.get(name)).values().astype(np.float32)

    return rounded
