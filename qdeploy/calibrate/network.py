"""A network as integers, by its options: with calibration data, or with the scales that its source carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qdeploy.calibrate.calibrate import PERCENTILE, Ranges, calibrate, read_data
from qdeploy.calibrate.integers import Integers
from qdeploy.calibrate.moments import input_moments
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.integer.builder import Arithmetic
from qdeploy.integer.integerize import RULES, integerize, layer_names
from qdeploy.integer.islands import needs_islands, with_islands
from qdeploy.integer.plan import Bits
from qdeploy.ir.element import integer_type
from qdeploy.ir.graph import Attr, Graph
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import fold
from qdeploy.progress import SILENT, Progress

META = "integers"
"""Where the meta of an integer graph says how it was made: rounding, bits per layer, and what calibration found."""
_SCALED = ("QuantizeLinear", "QLinear", "QGemm")


def integer_network(model: Model, options: Integers, progress: Progress = SILENT) -> Model:
    """Returns a network in integers; one that is already so stays as it is.

    Args:
        model: A float network, or one with quantize nodes.
        options: See `Integers`.
        progress: Told of calibration.

    Raises:
        BadArgumentError: The data or the bits cannot be read, or do not fit the network.
        UnsupportedError: The network has no activation scales and none are measured, or it has no integer form.
    """
    if model.graph.meta.get("kind") == "integer":
        return _unchanged(model, options)
    data = read_data(options.calibrate) if options.calibrate else None
    _refuse(model, data is not None)
    graph = fold(model.graph, model.tensors)
    if data is not None and options.narrow_sums and needs_islands(graph, RULES):
        return _mixed(model, graph, data, options, progress)
    _refuse_formless(graph, RULES, model.path)
    layers = layer_bits(options.layer_bits)
    narrow = options.narrow_sums and any(node.op == "Conv" for node in model.graph.nodes)
    bits = Bits(options.weight_bits, options.activation_bits, layers=layers, narrow_sums=narrow)
    ranges, moments = None, None
    if data is not None:
        method, least = options.calibrate_method, min([options.activation_bits, *(a for _, a in layers.values())])
        ranges = calibrate(model, data, method, bits=least, percentile=PERCENTILE, progress=progress)
        if min([options.weight_bits, *(w for w, _ in layers.values())]) < 8:
            moments = input_moments(model, data, progress=progress)
    network = integerize(
        model,
        ranges.values if ranges else None,
        bits,
        Arithmetic(options.rounding),
        moments,
        ranges.channels if ranges else None,
    )
    return _described(network, model, _description(model, bits, ranges, options.rounding, network))


def _mixed(model: Model, graph: Graph, data: Mapping[str, Array], options: Integers, progress: Progress) -> Model:
    """Layers in 8 bits between floats, with ranges measured on data."""
    _refuse_formless(graph, {node.op for node in graph.nodes} - {"Opaque"}, model.path)
    fixed = dataclasses.replace(options, calibrate="", calibrate_method="minmax", narrow_sums=False)
    if fixed != Integers():
        raise BadArgumentError(
            "this network has islands of floats between layers of 8 bits, and no other arithmetic",
            where=model.path,
            found=", ".join(f.name for f in dataclasses.fields(fixed) if getattr(fixed, f.name) != f.default),
            todo="Leave these options out.",
        )
    ranges = calibrate(model, data, options.calibrate_method, percentile=PERCENTILE, progress=progress)
    return with_islands(model, ranges.values)


def _refuse_formless(graph: Graph, forms: Collection[str], where: str) -> None:
    """Raises UnsupportedError with every op that has no form, and its nodes."""
    nodes: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op not in forms:
            op = f"Opaque {node.attrs['type']}" if node.op == "Opaque" else node.op
            nodes.setdefault(op, []).append(node.name or node.outputs[0])
    if nodes:
        raise UnsupportedError(
            "operators without an integer form" if len(nodes) > 1 else "an operator without an integer form",
            where=where,
            found="; ".join(f"{op} ({len(names)}): {', '.join(names)}" for op, names in sorted(nodes.items())),
            allowed=", ".join(sorted(forms)),
            todo="--to onnx --integer fast leaves them in floats; --quantize rtn:int8 rounds weights alone.",
        )


def layer_bits(source: str | Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Bits of single layers, (weights, activations), from a mapping or a JSON file; one number stands for both.

    Raises:
        BadArgumentError: The file cannot be read, or says something else.
    """
    where, tree = "", source
    if isinstance(source, str):
        if not source:
            return {}
        where = source
        try:
            tree = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadArgumentError(f"bits per layer cannot be read: {error}", where=where) from error
    if isinstance(tree, Mapping):
        pairs = {str(name): [bits, bits] if isinstance(bits, int) else bits for name, bits in tree.items()}
        if all(isinstance(b, list | tuple) and len(b) == 2 and all(type(n) is int for n in b) for b in pairs.values()):
            return {name: (b[0], b[1]) for name, b in pairs.items()}
    raise BadArgumentError(
        "bits per layer are not a mapping of layers to bits",
        where=where,
        found=type(tree).__name__,
        allowed='{"layer": [weight bits, activation bits], ...}',
    )


def _unchanged(model: Model, options: Integers) -> Model:
    fixed = dataclasses.replace(options, narrow_sums=False)
    if fixed != Integers():
        changed = [f.name for f in dataclasses.fields(fixed) if getattr(fixed, f.name) != f.default]
        raise BadArgumentError(
            "the source is a network of integers already: its arithmetic is given",
            where=model.path,
            found=", ".join(changed),
            todo="Leave these options out.",
        )
    return model


def _refuse(model: Model, measured: bool) -> None:
    """Raises UnsupportedError for a decoder, and for a network without activation scales."""
    if model.graph.states:
        raise UnsupportedError(
            "a decoder has no integer-only form yet: its activations need a scale per token",
            where=model.path,
            todo="Convert it for another target.",
        )
    if not measured and not any(node.op.startswith(_SCALED) for node in model.graph.nodes):
        raise UnsupportedError(
            "the network has no activation scales, and integer arithmetic needs them",
            where=model.path,
            todo="Pass --calibrate DATA.npz with some of its inputs.",
        )


def _description(model: Model, bits: Bits, ranges: Ranges | None, rounding: str, network: Model) -> dict[str, Attr]:
    names = layer_names(model)
    listed = {name: list(bits.of(name, name in (names[0], names[-1]))) for name in names}
    for name, pair in listed.items():  # weights that the source has quantized have bits of their own
        table = integer_type(network.tensors[f"{name}/codes"]) if f"{name}/codes" in network.tensors else None
        pair[0] = int(table[1:]) if table is not None else pair[0]
    description: dict[str, Attr] = {"rounding": rounding, "bits": listed}
    if ranges is not None:
        description |= {
            "method": ranges.method,
            "samples": ranges.samples,
            "ranges": {name: list(pair) for name, pair in ranges.values.items()},
        }
    return description


def _described(network: Model, source: Model, description: dict[str, Attr]) -> Model:
    """The integer network, which still says what it came from and how."""
    graph: Graph = dataclasses.replace(network.graph, meta={**network.graph.meta, META: description})
    return dataclasses.replace(network, format=source.format, config=source.config, build_graph=lambda _: graph)
