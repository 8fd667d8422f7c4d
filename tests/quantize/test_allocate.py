"""Bits per layer: the programme finds the best choice, and losses are those of the network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.calibrate.calibrate import calibrate
from qdeploy.calibrate.moments import input_moments
from qdeploy.errors import BadArgumentError
from qdeploy.integer.integerize import integerize, layer_names
from qdeploy.integer.plan import Bits
from qdeploy.integer.weights import quantized
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import fold, plain_tensor
from qdeploy.quantize.allocate import (
    allocate,
    bit_operations,
    cost_range,
    limit_between,
    parse_choices,
    shared_inputs,
    show_choice,
    sizes,
)
from qdeploy.quantize.sensitivity import Quantizer, measure, output_losses, weight_losses

RNG = np.random.default_rng(4)
OPTIONS = [(2, 8), (4, 8), (8, 8)]
NUMBERS = st.floats(0, 1e6, allow_nan=False).map(lambda x: round(x, 3))


def best(losses: dict, costs: dict, limit: float, ties: list[tuple[str, ...]]) -> float:
    """The least loss over every choice."""
    names, result = list(losses), np.inf
    for choice in itertools.product(*(losses[n] for n in names)):
        picked = dict(zip(names, choice, strict=True))
        tied = all(len({picked[n] for n in tie}) == 1 for tie in ties)
        if tied and sum(costs[n][b] for n, b in picked.items()) <= limit:
            result = min(result, sum(losses[n][b] for n, b in picked.items()))
    return result


@st.composite
def programmes(draw: st.DrawFn) -> tuple[dict, dict, float, list[tuple[str, ...]]]:
    names = [f"l{i}" for i in range(draw(st.integers(1, 6)))]
    table = st.fixed_dictionaries(dict.fromkeys(OPTIONS, NUMBERS))
    losses, costs = ({n: draw(table) for n in names} for _ in range(2))
    ties = draw(st.lists(st.sets(st.sampled_from(names), min_size=2).map(tuple), max_size=2)) if len(names) > 1 else []
    return losses, costs, limit_between(costs, draw(st.floats(-0.1, 1.1))), ties


@settings(deadline=None, max_examples=120)
@given(programmes())
def test_no_choice_within_the_limit_is_better(programme: tuple):
    losses, costs, limit, ties = programme
    wanted = best(losses, costs, limit, ties) if limit >= 0 else np.inf
    if wanted == np.inf:
        with pytest.raises(BadArgumentError):
            allocate(losses, costs, limit, ties)
        return
    result = allocate(losses, costs, limit, ties)
    assert result.cost <= limit
    assert result.loss <= wanted * (1 + 1e-6) + 1e-5 * max(max(part.values()) for part in losses.values())
    assert all(len({result.layers[n] for n in tie}) == 1 for tie in ties)
    assert result.cost == pytest.approx(sum(costs[n][b] for n, b in result.layers.items()))


def test_costs_are_bytes_and_bit_operations():
    assert sizes({"a": 100}, [(2, 8), (4, 4)]) == {"a": {(2, 8): 25.0, (4, 4): 50.0}}
    assert bit_operations({"a": 100}, [(4, 4), (8, 8)]) == {"a": {(4, 4): 1600.0, (8, 8): 6400.0}}
    costs = sizes({"a": 100, "b": 60}, [(4, 8), (8, 8)])
    assert (limit_between(costs, 0), limit_between(costs, 0.5), limit_between(costs, 1)) == (80, 120, 160)


def test_limits_that_nothing_meets_are_named():
    costs = sizes({"a": 100}, [(4, 8), (8, 8)])
    with pytest.raises(BadArgumentError) as caught:
        allocate({"a": {(4, 8): 1.0, (8, 8): 0.0}}, costs, 49)
    assert caught.value.allowed == "50.0 or more"


@pytest.mark.parametrize(
    "losses", [{}, {"b": {(4, 8): 1.0}}, {"a": {(8, 8): 1.0}}, {"a": {(4, 8): -1.0}}, {"a": {(4, 8): float("nan")}}]
)
def test_tables_that_do_not_fit_are_refused(losses: dict):
    with pytest.raises(BadArgumentError):
        allocate(losses, {"a": {(4, 8): 1.0}}, 10)


def block() -> Model:
    """A block with a convolution in its shortcut, and a matrix behind it."""
    weights = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "ws": (8, 8, 1, 1), "w4": (5, 8)}
    outputs = {
        n: plain_tensor((RNG.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32))
        for n, s in weights.items()
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = (
        Node("Conv", ("x", "w1"), ("c1",), pads),
        Node("Relu", ("c1",), ("r1",)),
        Node("Conv", ("r1", "w2"), ("c2",), pads),
        Node("Relu", ("c2",), ("r2",)),
        Node("Conv", ("r2", "w3"), ("c3",), pads),
        Node("Conv", ("r1", "ws"), ("cs",)),
        Node("Add", ("c3", "cs"), ("a",)),
        Node("Relu", ("a",), ("r3",)),
        Node("GlobalAveragePool", ("r3",), ("p",)),
        Node("Flatten", ("p",), ("f",)),
        Node("Gemm", ("f", "w4"), ("y",), {"transB": 1}),
    )
    graph = Graph((Value("x", "F32", ("batch", 3, 8, 8)),), (Value("y", "F32", ("batch", 5)),), nodes)
    return Model("test", "memory", outputs, build_graph=lambda _: graph)


def quantizer(weights: dict[str, np.ndarray]) -> Quantizer:
    return lambda name, bits: quantized(weights[name], bits).values()


def test_facts_of_layers_are_counted():
    model, x = block(), RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    result = measure(model.graph, Weights(model), {"x": x})
    assert {n: (f.input, f.weights, f.products) for n, f in result.items()} == {
        "w1": ("x", 216, 216 * 64),
        "w2": ("r1", 576, 576 * 64),
        "w3": ("r2", 576, 576 * 64),
        "ws": ("r1", 64, 64 * 64),
        "w4": ("f", 40, 40),
    }
    assert result["w1"].energy == pytest.approx(float(np.square(x).mean()), rel=1e-5)


def test_layers_of_a_shortcut_are_tied():
    assert shared_inputs(block().graph) == [("w2", "ws")]


def test_the_loss_of_weights_is_the_mean_squared_error_of_the_layer():
    model, x = block(), RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    weights, graph = dict(Weights(model)), model.graph
    moments = input_moments(model, {"x": x})
    result = weight_losses(weights, [(4, 8)], quantizer(weights), moments, {})
    seen: list[np.ndarray] = []
    for content in (weights, weights | {"w1": quantizer(weights)("w1", 4).astype(np.float32)}):
        run(graph, {"x": x}, None, content, lambda name, value: seen.append(value) if name == "c1" else None)
    error = np.square(seen[0] - seen[1]).sum(axis=1).mean()
    assert result["w1"][4, 8] == pytest.approx(float(error), rel=1e-3)


def test_losses_of_outputs_fall_with_the_bits():
    model, x = block(), RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)
    ranges = calibrate(model, {"x": x}).values
    options, weights = [(2, 4), (4, 4), (4, 8), (8, 8)], dict(Weights(model))
    result = output_losses(model.graph, weights, {"x": x}, ranges, options, quantizer(weights))
    for losses in result.values():
        ordered = [losses[bits] for bits in options]
        assert ordered == sorted(ordered, reverse=True) and ordered[-1] > 0


def test_losses_of_outputs_are_those_of_the_changed_network_however_it_is_run():
    model, x = block(), RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)
    weights, ranges = dict(Weights(model)), calibrate(model, {"x": x}).values
    results = [
        output_losses(model.graph, weights, {"x": x}, ranges, [(2, 8)], quantizer(weights), batch=batch)
        for batch in (8, 3)
    ]
    step = (ranges["r1"][1] - min(ranges["r1"][0], 0)) / 255
    seen: list[np.ndarray] = []
    run(model.graph, {"x": x}, None, weights, lambda name, value: seen.append(value) if name == "r1" else None)
    graph = replace(
        model.graph,
        inputs=(*model.graph.inputs, Value("q", "F32", (8, 8, 8, 8))),
        nodes=tuple(
            replace(node, inputs=("q", "ws")) if node.inputs[1:] == ("ws",) else node for node in model.graph.nodes
        ),
    )
    changed = weights | {"ws": quantizer(weights)("ws", 2).astype(np.float32)}
    output = run(graph, {"x": x, "q": (np.rint(seen[0] / step) * step).astype(np.float32)}, None, changed)[0]["y"]
    error = np.square(output - run(model.graph, {"x": x}, None, weights)[0]["y"]).mean()
    for losses in results:
        assert losses["ws"][2, 8] == pytest.approx(float(error), rel=1e-3)


def test_weights_that_folding_made_are_changed_too():
    model, x = block(), RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    weights = dict(Weights(model))
    inside = replace(model.graph, constants={"w2": model.tensors["w2"]})
    ranges = calibrate(model, {"x": x}).values
    result, wanted = (
        output_losses(graph, weights, {"x": x}, ranges, [(2, 8)], quantizer(weights), layers=["w2"])
        for graph in (inside, model.graph)
    )
    assert result == wanted and result["w2"][2, 8] > 1e-6


def test_choices_are_read_as_they_are_shown():
    assert parse_choices("8,4") == ((8, 8), (4, 8))
    assert parse_choices(" 8x8, 4x4,2x3") == ((8, 8), (4, 4), (2, 3))
    assert [show_choice(bits) for bits in parse_choices("8x8,4x4")] == ["8x8", "4x4"]
    for text in ("", "8,,4", "3", "4x9", "4x1", "8,8x8", "x8", "8 4"):
        with pytest.raises(BadArgumentError, match="choices of bits"):
            parse_choices(text)


def test_the_range_of_costs_is_one_that_tied_layers_can_have():
    costs = {"a": {(8, 8): 1.0, (4, 8): 5.0}, "b": {(8, 8): 6.0, (4, 8): 1.0}}
    assert cost_range(costs) == (2, 11)
    assert cost_range(costs, [("a", "b")]) == (6, 7)
    losses = {name: dict.fromkeys(row, 1.0) for name, row in costs.items()}
    assert allocate(losses, costs, limit_between(costs, 0, [("a", "b")]), [("a", "b")]).cost == 6


def test_an_allocation_is_what_integerize_takes():
    model, x = block(), RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)
    graph, weights = fold(model.graph, model.tensors), dict(Weights(model))
    layers, ranges = measure(graph, weights, {"x": x}), calibrate(model, {"x": x}).values
    assert list(layers) == layer_names(model)
    costs = sizes({name: layer.weights for name, layer in layers.items()}, OPTIONS)
    losses = weight_losses(weights, OPTIONS, quantizer(weights), input_moments(model, {"x": x}), {})
    result = allocate(losses, costs, limit_between(costs, 0.4), shared_inputs(graph))
    output = integerize(model, ranges, Bits(layers=result.layers))
    contents = {name.removesuffix("/codes"): tensor for name, tensor in output.tensors.items()}
    for name, bits in result.layers.items():
        assert contents[name].terms[0].values.table == f"int{bits[0]}"  # type: ignore[union-attr]
