"""The interpreter and the rules of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir.graph import Graph, Node, State, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, generate_greedy, run
from qdeploy.ir.tensor import Buffer, QTensor, plain

ROPE = {"inv_freq": "freq", "rotary_dim": 4, "interleaved": False, "factor": 1.0}
ATTENTION = {"heads": 2, "kv_heads": 1, "scale": 0.5, "causal": True, "state": "kv.0", "rope": ROPE}
WEIGHTS = {"embed": np.random.default_rng(3).standard_normal((11, 8)).astype(np.float32)}


def tensor(array: np.ndarray) -> QTensor:
    return plain(Buffer.of("data", array, "F32"), "f32")


def tiny(**changes: Any) -> Graph:
    """A decoder of one attention: ids -> embed -> attend -> tied head."""
    nodes = (
        Node("Gather", ("embed", "input_ids"), ("x",), {"axis": 0}),
        Node("Slice", ("x",), ("kv",), {"starts": [0], "ends": [4], "axes": [2]}),
        Node("Attention", ("x", "kv", "kv"), ("a",), ATTENTION, "attend"),
        Node("SkipNorm", ("a", "x", "ones"), ("n", "s"), {"kind": "rms", "epsilon": 1e-5}),
        Node("Linear", ("n", "embed"), ("logits",)),
    )
    constants = {"freq": tensor(np.array([1.0, 0.1], np.float32)), "ones": tensor(np.ones(8, np.float32))}
    ids = Value("input_ids", "I64", ("batch", "sequence"))
    logits = Value("logits", "F32", ("batch", "sequence", 11))
    return replace(Graph((ids,), (logits,), nodes, (State("kv.0", 1, 4),), constants), **changes)


def test_states_go_in_and_new_ones_come_out() -> None:
    ids, graph = np.array([[1, 5, 2, 9, 3]]), tiny()
    whole, after = run(graph, {"input_ids": ids}, None, WEIGHTS)
    states: dict[str, Any] = {}
    for t in range(5):
        before = dict(states)
        step, states = run(graph, {"input_ids": ids[:, t : t + 1]}, states, WEIGHTS)
        np.testing.assert_allclose(step["logits"][:, 0], whole["logits"][:, t], atol=1e-5)
        assert all(before[k][0].shape[2] == t for k in before)  # what was given is as it was
    np.testing.assert_allclose(states["kv.0"][0], after["kv.0"][0], atol=1e-6)
    assert whole["logits"].dtype == np.float32 and after["kv.0"][1].shape == (1, 1, 5, 4)


def test_greedy_takes_the_most_likely_token_each_time() -> None:
    graph, ids = tiny(), [1, 5]
    for token in generate_greedy(graph, ids, 6, WEIGHTS):
        logits = run(graph, {"input_ids": np.array([ids])}, None, WEIGHTS)[0]["logits"]
        assert token == int(np.argmax(logits[0, -1]))
        ids.append(token)
    model = Model("made", "nowhere", {"embed": tensor(WEIGHTS["embed"])}, build_graph=lambda _: graph)
    assert generate_greedy(model, [1, 5], 6) == ids[2:]
    with pytest.raises(BadArgumentError):
        generate_greedy(graph, [1], 1)


def test_weights_are_decoded_once_and_only_when_asked_for() -> None:
    model = Model("made", "nowhere", {"a": tensor(np.ones((2, 3), np.float32)), "b": tensor(np.ones(1, np.float32))})
    weights = Weights(model)
    assert weights["a"] is weights["a"] and list(weights) == ["a", "b"] and len(weights) == 2 and "c" not in weights


@pytest.mark.parametrize(
    "inputs", [{}, {"ids": np.zeros((1, 2))}, {"input_ids": np.zeros(3)}, {"input_ids": np.zeros((1, 2, 3))}]
)
def test_a_missing_or_misshapen_input_is_an_error(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadArgumentError, match="input"):
        run(tiny(), inputs, None, WEIGHTS)


def test_an_id_outside_of_the_vocabulary_is_an_error() -> None:
    with pytest.raises(BadArgumentError, match="11"):
        run(tiny(), {"input_ids": np.array([[11]])}, None, WEIGHTS)


def test_shapes_that_do_not_fit_name_the_node() -> None:
    with pytest.raises(BadFileError, match=r"attend \(Attention\)"):
        run(tiny(), {"input_ids": np.array([[1]])}, None, {"embed": np.ones((11, 7), np.float32)})
    with pytest.raises(BadFileError, match="nothing defines"):
        run(tiny(), {"input_ids": np.array([[1]])}, None, {})


def test_a_legal_graph_passes() -> None:
    check_graph(tiny(), {"embed"})


def edited(place: int, **changes: Any) -> Graph:
    nodes = list(tiny().nodes)
    nodes[place] = replace(nodes[place], **changes)
    return tiny(nodes=tuple(nodes))


NODES = tiny().nodes
BROKEN = {
    "taken before it is made": tiny(nodes=(NODES[1], NODES[0], *NODES[2:])),
    "made twice": edited(1, outputs=("x",)),
    "made over an input": edited(0, outputs=("input_ids",)),
    "made over a weight": edited(0, outputs=("embed",)),
    "a constant over an input": tiny(constants={**tiny().constants, "input_ids": tensor(np.ones(1, np.float32))}),
    "a weight that is not there": edited(4, inputs=("n", "head")),
    "output never made": tiny(outputs=(Value("missing", "F32", ()),)),
    "too few inputs": edited(4, inputs=("n",)),
    "an empty input": edited(4, inputs=("", "embed")),
    "too many inputs": edited(0, inputs=("embed", "input_ids", "input_ids")),
    "no output": edited(4, outputs=()),
    "unknown attribute": edited(0, attrs={"axis": 0, "mode": "clip"}),
    "missing attribute": edited(1, attrs={"starts": [0], "axes": [0]}),
    "state not declared": tiny(states=()),
    "state not kept": tiny(states=(State("kv.0", 1, 4), State("kv.1", 1, 4))),
    "state declared twice": tiny(states=(State("kv.0", 1, 4), State("kv.0", 1, 4))),
    "state with other heads": tiny(states=(State("kv.0", 2, 4),)),
    "rope without frequencies": edited(2, attrs={**ATTENTION, "rope": {**ROPE, "inv_freq": "none"}}),
    "rope of another extent": edited(2, attrs={**ATTENTION, "rope": {**ROPE, "rotary_dim": 8}}),
    "rope with a field too many": edited(2, attrs={**ATTENTION, "rope": {**ROPE, "theta": 1.0}}),
    "rope with a text for an extent": edited(2, attrs={**ATTENTION, "rope": {**ROPE, "rotary_dim": "4"}}),
    "rope with a list for a name": edited(2, attrs={**ATTENTION, "rope": {**ROPE, "inv_freq": ["freq"]}}),
    "unknown kind of norm": edited(3, attrs={"kind": "batch", "epsilon": 1e-5}),
    "rope that is a number": edited(2, attrs={**ATTENTION, "rope": 4}),
}


@pytest.mark.parametrize("graph", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_is_an_error(graph: Graph) -> None:
    with pytest.raises(BadFileError):
        check_graph(graph, {"embed"})


def test_two_nodes_cannot_keep_one_state() -> None:
    second = replace(NODES[2], inputs=("x", "kv", "x"), outputs=("b",))
    with pytest.raises(BadFileError, match="two nodes"):
        check_graph(tiny(nodes=(*NODES[:3], second, *NODES[3:])), {"embed"})


def test_attention_of_the_same_keys_and_values_may_share_a_state() -> None:
    second = replace(NODES[2], outputs=("b",))
    graph = tiny(nodes=(*NODES[:3], second, *NODES[3:]), outputs=(Value("b", "F32", ("batch", "sequence", 8)),))
    check_graph(graph, {"embed"})
    first, states = run(graph, {"input_ids": np.array([[1, 2]])}, None, WEIGHTS)
    last, states = run(graph, {"input_ids": np.array([[3]])}, states, WEIGHTS)
    whole, _ = run(graph, {"input_ids": np.array([[1, 2, 3]])}, None, WEIGHTS)
    assert states["kv.0"][0].shape[2] == 3
    np.testing.assert_allclose(np.concatenate((first["b"], last["b"]), axis=1), whole["b"], atol=1e-6)


def test_an_unknown_op_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedError, match="Mystery"):
        check_graph(edited(0, op="Mystery"), {"embed"})
