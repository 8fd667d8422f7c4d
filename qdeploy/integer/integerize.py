"""From a network of floats with known ranges to one of integers: multiplication, addition and shift alone.

    plan.py       which scale each value gets: from the source, or from calibration
    weights.py    weights as codes
    builder.py    the graph that grows, rescaling
    layers.py     convolutions and matrix products       sums.py       sums and products of values
    moves.py      limits, pooling, moves                 quantized.py  quantize nodes of the source
    functions.py  tables                                 transformer.py  encoders
    smooth.py             channels of different sizes on one grid   intervals.py      bounds of values

The scheme is that of HAWQ-V3 (arXiv 2011.10680): codes of at most 8 bits go into each layer, products add up in an
int32 with the bias at their scale, a dyadic factor per channel brings them to the next grid, and limits (ReLU) are
those of that grid. Branches meet in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.integer import layers as integer_layers
from qdeploy.integer import moves as integer_moves
from qdeploy.integer import quantized as integer_quantized
from qdeploy.integer import sums as integer_sums
from qdeploy.integer.builder import Arithmetic, Builder, Rule
from qdeploy.integer.functions import FUNCTION_RULES
from qdeploy.integer.intervals import INT32, Intervals, check_ranges
from qdeploy.integer.plan import Bits, Plan
from qdeploy.integer.quantized_value import Float64, Grid, QuantizedValue, full_grid
from qdeploy.integer.transformer import TRANSFORMER_RULES
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Attr, Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import fold
from qdeploy.quantize.allocate import LAYERS
from qdeploy.quantize.smooth import Channels

_FLOATS = ("F32", "F16", "BF16", "F64")
_FAR = 1e30  # beyond what an input can be


def integerize(
    model: Model,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    bits: Bits | None = None,
    arithmetic: Arithmetic | None = None,
    moments: Mapping[str, Float64] | None = None,
    channels: Channels | None = None,
) -> Model:
    """Returns the network in integers.

    Args:
        model: A float network, or one with quantize nodes (QDQ, QOperator).
        ranges: Of the values of its graph, where the source has no activation scales (`calibrate(...).values`).
        bits: Of layers whose weights are not quantized yet; 8 by default.
        arithmetic: Rounding and how factors are formed.
        moments: Of the inputs of layers (`input_moments`): weights of less than 8 bits are rounded by them.
        channels: Ranges of single channels (`calibrate(...).channels`): inputs of layers are evened out by them.

    Returns:
        A model whose tensors are bare integers and whose graph holds the rows of ir/ops/integer.py. Its meta has
        "quantization": {input or output: {"scale", "zero"}}. Proven free of overflow (`intervals.check_ranges`).

    Raises:
        UnsupportedError: A value has no scale, an op has no integer form, or a result could overflow.
    """
    if model.graph.states:
        raise UnsupportedError(
            "a decoder has no integer-only form yet: its activations need a scale per token",
            where=model.path,
            todo="Convert it for another target.",
        )
    graph = fold(model.graph, model.tensors)
    known = {**_declared(graph), **(ranges or {})}
    plan = Plan(graph, known, bits or Bits(), _source(graph, model), Intervals(graph, model.tensors, known))
    build = Builder(graph, model.tensors, RULES, plan, arithmetic or Arithmetic(), moments or {}, channels or {})
    _enter(build)
    for node in graph.nodes:
        build.apply(node)
        _settle(build, node)
    integer_graph = _finished(build)
    check_ranges(integer_graph, build.weights)
    return Model("integer", model.path, build.weights, build_graph=lambda _: integer_graph, notes=list(model.notes))


def _declared(graph: Graph) -> dict[str, tuple[float, float]]:
    """Ranges of inputs that the source says."""
    declared: Any = graph.meta.get("ranges", {})
    pairs: list[Any] = list(declared.values()) if isinstance(declared, dict) else [None]
    for pair in pairs:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) in (int, float) for n in pair)
        if not whole or not -_FAR <= pair[0] <= pair[1] <= _FAR:
            raise BadFileError(
                "the range of an input is not two numbers",
                where="meta: ranges",
                found=declared,
                allowed="[least, greatest]",
            )
    return {str(name): (float(low), float(high)) for name, (low, high) in declared.items()}


def layer_names(model: Model) -> list[str]:
    """The layers whose bits can be chosen, in order: the names of their weights in the folded graph."""
    graph = fold(model.graph, model.tensors)
    return list(dict.fromkeys(node.inputs[1] for node in graph.nodes if node.op in LAYERS))


def _source(graph: Graph, model: Model) -> dict[str, Grid]:
    nodes = [n for n in graph.nodes if n.op == "QuantizeLinear"]
    wanted = {name for n in nodes for name in n.inputs[1:] if name}
    tensors = {name: graph.constants.get(name) or model.tensors.get(name) for name in wanted}
    arrays: dict[str, Array] = {name: as_value(tensor) for name, tensor in tensors.items() if tensor is not None}
    return integer_quantized.source_grids(graph, arrays)


def _enter(build: Builder) -> None:
    """Inputs of the graph: floats as codes that the caller makes, integers as they are."""
    for value in build.graph.inputs:
        build.name(value.name)
        if value.dtype not in _FLOATS:
            build.integers[value.name] = value.name
        else:
            declared = value.name in _declared(build.graph)  # of images: never in a sum, where a zero point would cost
            build.values[value.name] = QuantizedValue.on(
                build.plan.grid(value.name, 8, zero_point=declared), value.name
            )


def _settle(build: Builder, node: Node) -> None:
    """Values of a stream that are used more than once are brought to its scale where they are made."""
    for name in node.outputs:
        stream = build.plan.stream(name)
        if name in build.values and stream is not None and build.plan.uses[name] > 1:
            build.values[name] = build.requantize(build.values[name], stream, name)


def _finished(build: Builder) -> Graph:
    outputs: list[Value] = []
    quantization: dict[str, Attr] = {}
    for value in build.graph.inputs:
        if value.name in build.values:
            x = build.values[value.name]
            quantization[value.name] = {"scale": float(x.scale[0]), "zero": x.zero}
    rename: dict[str, str] = {}
    for value in build.graph.outputs:
        if value.name in build.integers:
            outputs.append(value)
            continue
        x = _in_one_scale(build, value.name)
        quantization[value.name] = {"scale": float(x.scale[0]), "zero": x.zero}
        if x.name != value.name and (x.name in rename or not any(x.name in n.outputs for n in build.nodes)):
            x = replace(x, name=build.add("Identity", (x.name,), f"{value.name}/output"))
        rename[x.name] = value.name
        outputs.append(Value(value.name, x.dtype, value.shape))
    inputs = tuple(
        replace(v, dtype=build.values[v.name].dtype) if v.name in build.values else v for v in build.graph.inputs
    )
    nodes = tuple(_renamed(node, rename) for node in build.nodes)
    meta: dict[str, Attr] = {"kind": "integer", "quantization": quantization}
    context = build.graph.meta.get("context")
    if isinstance(context, int):
        meta["limits"] = {n: context for v in inputs for n in v.shape[1:] if isinstance(n, str)}
    return _needed(Graph(inputs, tuple(outputs), nodes, (), build.constants, meta))


def _in_one_scale(build: Builder, name: str) -> QuantizedValue:
    """An output with one scale: accumulators with a scale per channel are brought to the greatest of them."""
    x = build.value(name)
    if x.grid is not None:
        return x
    grid = full_grid(float(x.scale.max()), 0, "I32")
    return build.requantize(x, replace(grid, lo=1 - INT32, hi=INT32 - 1), name)


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    return replace(
        node, inputs=tuple(names.get(n, n) for n in node.inputs), outputs=tuple(names.get(n, n) for n in node.outputs)
    )


def _needed(graph: Graph) -> Graph:
    """Without nodes and constants that nothing takes."""
    taken, kept = {value.name for value in graph.outputs}, []
    for node in reversed(graph.nodes):
        if taken.intersection(node.outputs):
            kept.append(node)
            taken.update(node.inputs)
    constants = {name: tensor for name, tensor in graph.constants.items() if name in taken}
    return replace(graph, nodes=tuple(reversed(kept)), constants=constants)


def _same(build: Builder, node: Node) -> None:
    source, name = node.inputs[0], node.outputs[0]
    if source in build.integers:
        build.integers[name] = build.integers[source]
    else:
        build.values[name] = build.value(source)


RULES: dict[str, Rule] = {
    "Conv": integer_layers.layer,
    "Linear": integer_layers.layer,
    "Gemm": integer_layers.layer,
    "MatMul": integer_layers.product,
    "Add": integer_sums.add,
    "Sub": integer_sums.add,
    "Mul": integer_sums.multiply,
    "Div": integer_sums.multiply,
    "Relu": integer_moves.relu,
    "Clip": integer_moves.clip,
    "Max": integer_moves.clip_by_value,
    "Min": integer_moves.clip_by_value,
    "MaxPool": integer_moves.max_pool,
    "AveragePool": integer_moves.average_pool,
    "GlobalAveragePool": integer_moves.mean,
    "Pad": integer_moves.pad,
    "ReduceMean": integer_moves.mean,
    "Concat": integer_moves.concat,
    "Split": integer_moves.split,
    "Identity": _same,
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Slice", "Squeeze", "Unsqueeze"), integer_moves.move),
    "QuantizeLinear": integer_quantized.quantize,
    "DequantizeLinear": integer_quantized.dequantize,
    "QLinearConv": integer_quantized.qlinear_layer,
    "QLinearMatMul": integer_quantized.qlinear_layer,
    "QGemm": integer_quantized.qlinear_layer,
    "QLinearAdd": integer_quantized.qlinear_binary,
    "QLinearMul": integer_quantized.qlinear_binary,
    "QLinearGlobalAveragePool": integer_quantized.qlinear_average,
    "DynamicQuantizeLinear": integer_quantized.dynamic,
    **FUNCTION_RULES,
    **TRANSFORMER_RULES,
}
"""How each op of a float network becomes integers."""
