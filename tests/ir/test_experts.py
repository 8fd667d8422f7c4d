"""Mixtures of experts: what a router chooses, what experts give, and that every form of them means the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir import slices
from qdeploy.ir.experts import route
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Term, plain
from qdeploy.passes.expand import expand_graph
from qdeploy.passes.experts import with_matrices

EXPERTS, INNER, HIDDEN, TOP = 5, 6, 4, 2
RANDOM = np.random.default_rng(3)


def floats(*shape: int) -> QTensor:
    return plain(Buffer.of("data", RANDOM.standard_normal(shape).astype(np.float32), "F32"), "f32")


def quantized(experts: int, rows: int, columns: int, tall: int) -> QTensor:
    codes = Buffer.of("codes", RANDOM.integers(0, 16, (experts, rows, columns), np.uint8), "U8")
    shape = (experts, -(-rows // tall), columns // 2)
    scales = Buffer.of("scale", RANDOM.uniform(0.5, 2, shape).astype(np.float32), "F32")
    scale = Param(Codes(shape, (scales,), PLAIN, "f32"), (1, tall, 2))
    grid = Codes((experts, rows, columns), (codes,), PLAIN, "uint8", scale=scale)
    return QTensor((experts, rows, columns), "F32", (Term(grid),))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


LOGITS = np.array([0.1, 2.0, -1.0, 1.5, 1.9, 0.0], np.float32)


def chosen(**attrs: Any) -> tuple[list[int], np.ndarray]:
    ids, weights = route(LOGITS[None, None], attrs.pop("bias", None), **attrs)
    return ids[0, 0].tolist(), weights[0, 0]


def test_the_best_experts_are_chosen_and_weighted_by_their_softmax():
    ids, weights = chosen(top_k=2)
    np.testing.assert_allclose(weights, softmax(LOGITS)[[1, 4]], rtol=1e-6)
    assert ids == [1, 4]


def test_weights_of_the_chosen_sum_to_the_scale():
    assert chosen(top_k=3, normalize=True, scale=2.5)[1].sum() == pytest.approx(2.5)
    np.testing.assert_allclose(chosen(top_k=2, scores="softmax_of_chosen")[1], softmax(LOGITS[[1, 4]]), rtol=1e-6)


def test_a_bias_moves_the_choice_and_not_the_weights():
    ids, weights = chosen(top_k=1, scores="sigmoid", bias=np.array([9, 0, 0, 0, 0, 0], np.float32))
    assert ids == [0]
    assert weights[0] == pytest.approx(1 / (1 + np.exp(-0.1)))


def test_only_the_best_groups_are_chosen_from():
    # pairs of neighbours: sums 2.1, 0.5, 1.9; best 2.0, 1.5, 1.9
    assert chosen(top_k=2, groups=3, kept_groups=1, scores="softmax_of_chosen")[0] == [1, 0]
    assert chosen(top_k=3, groups=3, kept_groups=2, group_score="best")[0] == [1, 4, 0]


def test_a_mixer_weighs_each_of_two_experts_among_those_close_to_it():
    ids, weights = chosen(top_k=2, scores="mixer", jitter=0.01)
    assert ids == [1, 4]  # 1.9 is further than 2 % below 2.0, so each stands alone
    np.testing.assert_allclose(weights, [1, 1])
    assert chosen(top_k=2, scores="mixer", jitter=0.1)[1][0] == pytest.approx(float(softmax(LOGITS[[1, 4]])[0]))


def test_more_experts_than_there_are_cannot_be_chosen():
    with pytest.raises(BadArgumentError):
        chosen(top_k=7)


def model(weights: dict[str, QTensor], nodes: tuple[Node, ...], inputs: tuple[str, ...], **attrs: Any) -> Model:
    experts = Node("Experts", ("x", "ids", "shares", *inputs), ("y",), {"count": EXPERTS, **attrs}, "moe")
    routed = Node("Route", ("logits",), ("ids", "shares"), {"top_k": TOP}, "route")
    values = (Value("x", "F32", ("b", "t", HIDDEN)), Value("logits", "F32", ("b", "t", EXPERTS)))
    graph = Graph(values, (Value("y", "F32", ("b", "t", HIDDEN)),), (routed, *nodes, experts))
    return Model("test", "test", weights, build_graph=lambda _: graph)


INPUTS = {
    "x": RANDOM.standard_normal((2, 3, HIDDEN)).astype(np.float32),
    "logits": RANDOM.standard_normal((2, 3, EXPERTS)).astype(np.float32),
}
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "gated": (True, {"activation": "silu"}),
    "plain": (False, {"activation": "relu2"}),
    "limited": (True, {"activation": "silu", "alpha": 1.7, "limit": 0.5}),
    "weighted inputs": (True, {"activation": "gelu_tanh", "weighted": "inputs"}),
}


@pytest.mark.parametrize("case", CASES)
def test_experts_their_expansion_and_their_matrices_give_the_same(case: str):
    gated, attrs = CASES[case]
    weights = {"up": floats(EXPERTS, INNER, HIDDEN), "down": floats(EXPERTS, HIDDEN, INNER)}
    weights |= {"gate": floats(EXPERTS, INNER, HIDDEN)} if gated else {}
    biases = {} if "weighted" in attrs else {"up_bias": floats(EXPERTS, INNER), "down_bias": floats(EXPERTS, HIDDEN)}
    whole = model(weights | biases, (), ("up", "down", "gate" if gated else "", *biases), **attrs)
    expected = run(whole.graph, INPUTS, None, Weights(whole))[0]["y"]
    apart = with_matrices(whole)
    assert next(n.inputs for n in apart.graph.nodes if n.op == "Stack") == tuple(f"up[{i}]" for i in range(EXPERTS))
    np.testing.assert_array_equal(run(apart.graph, INPUTS, None, Weights(apart))[0]["y"], expected)
    expanded = run(expand_graph(whole.graph), INPUTS, None, Weights(whole))[0]["y"]
    np.testing.assert_allclose(expanded, expected, rtol=2e-5, atol=1e-5)


def test_one_tensor_for_gate_and_up_stored_the_other_way_round_is_cut():
    weights = {"both": floats(EXPERTS, HIDDEN, 2 * INNER), "down": floats(EXPERTS, HIDDEN, INNER)}
    nodes = (
        Node("Transpose", ("both",), ("turned",), {"perm": [0, 2, 1]}),
        Node("Slice", ("turned",), ("gate",), {"starts": [0], "ends": [2 * INNER], "axes": [1], "steps": [2]}),
        Node("Slice", ("turned",), ("up",), {"starts": [INNER], "ends": [2 * INNER], "axes": [1]}),
    )
    whole = model(weights, nodes, ("up", "down", "gate"), activation="silu")
    expected = run(whole.graph, INPUTS, None, Weights(whole))[0]["y"]
    apart = with_matrices(whole)
    assert {n.op for n in apart.graph.nodes} == {"Route", "Stack", "Experts"}
    np.testing.assert_array_equal(run(apart.graph, INPUTS, None, Weights(apart))[0]["y"], expected)


@pytest.mark.parametrize("tall", [1, 3])
def test_an_expert_of_codes_decodes_to_its_part_of_the_whole(tall: int):
    tensor = quantized(EXPERTS, INNER, HIDDEN, tall)
    part = slices.entry(tensor, 3)
    np.testing.assert_array_equal(part.decode(), tensor.decode()[3])
    np.testing.assert_array_equal(part.decode(slice(2, 5)), tensor.decode()[3, 2:5])
    np.testing.assert_array_equal(slices.rows(part, 3, 6).decode(), tensor.decode()[3, 3:6])


def test_every_second_row_keeps_its_scales():
    part = slices.entry(quantized(EXPERTS, INNER, HIDDEN, 1), 0)
    np.testing.assert_array_equal(slices.rows(part, 1, INNER, 2).decode(), part.decode()[1::2])


def test_rows_whose_scale_reaches_over_others_are_refused():
    part = slices.entry(quantized(EXPERTS, INNER, HIDDEN, 3), 0)
    with pytest.raises(UnsupportedError, match="rows of several parts"):
        slices.rows(part, 0, INNER, 2)
