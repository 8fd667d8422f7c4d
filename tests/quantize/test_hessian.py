"""Traces of the Hessian from forward passes: those that are known in closed form are found, and errors are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qdeploy.errors import BadArgumentError
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.run import run
from qdeploy.passes.fold import plain_tensor
from qdeploy.quantize.hessian import Trace, divergence, hessian_losses, hessian_traces, is_scores, step_size
from qdeploy.quantize.perturbed import Replaced, layer_nodes, suffixes

RNG = np.random.default_rng(5)
CLASSES, HIDDEN, INPUTS, SAMPLES = 4, 6, 5, 24
WEIGHTS = {
    "w1": (RNG.standard_normal((HIDDEN, INPUTS)) / 2).astype(np.float32),
    "w2": (RNG.standard_normal((CLASSES, HIDDEN)) / 2).astype(np.float32),
}
X = RNG.standard_normal((SAMPLES, INPUTS)).astype(np.float32)


def network(ending: str = "") -> Graph:
    nodes = [Node("Linear", ("x", "w1"), ("h",)), Node("Relu", ("h",), ("r",)), Node("Linear", ("r", "w2"), ("y",))]
    if ending:
        nodes.append(Node(ending, ("y",), ("z",), {"axis": -1}))
    out = Value("z" if ending else "y", "F32", ("batch", CLASSES))
    return Graph((Value("x", "F32", ("batch", INPUTS)),), (out,), tuple(nodes))


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, hidden values [S, H], Fisher matrix of the scores [S, C, C], d scores / d hidden before ReLU [S, C, H]."""
    x, w1, w2 = (a.astype(np.float64) for a in (X, WEIGHTS["w1"], WEIGHTS["w2"]))
    hidden = np.maximum(x @ w1.T, 0)
    scores = hidden @ w2.T
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    fisher = np.einsum("sc,cd->scd", p, np.eye(CLASSES)) - p[:, :, None] * p[:, None, :]
    return x, hidden, fisher, w2[None] * (hidden > 0)[:, None, :]


def exact() -> dict[str, float]:
    """Traces in closed form: of a matrix W with scores J W u it is mean of |u|^2 trace(J^T F J)."""
    x, hidden, fisher, inner = parts()
    first = np.einsum("sch,scd,sdh->s", inner, fisher, inner) * np.square(x).sum(axis=1)
    last = np.einsum("scc->s", fisher) * np.square(hidden).sum(axis=1)
    return {"w1": float(first.mean()), "w2": float(last.mean())}


@pytest.mark.parametrize("batch", [SAMPLES, 5])
def test_traces_are_those_in_closed_form(batch: int):
    result = hessian_traces(network(), WEIGHTS, {"x": X}, probes=400, batch=batch)
    for name, trace in exact().items():
        mean, error = result[name].mean * WEIGHTS[name].size, result[name].error * WEIGHTS[name].size
        assert result[name].probes == 400 * -(-SAMPLES // batch)
        if batch == SAMPLES:  # no other data: the error is that of the directions alone
            assert abs(mean - trace) <= 4 * error and error < 0.05 * trace
        assert mean == pytest.approx(trace, rel=0.1)


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_a_curvature_is_the_closed_form_and_the_central_difference(name: str):
    graph, feeds = network(), {"x": X}
    x, hidden, fisher, inner = parts()
    behind = next(s for s in suffixes(graph, WEIGHTS, feeds, layer_nodes(graph, WEIGHTS)) if s.layer == name)
    wanted = run(graph, feeds, None, WEIGHTS)[0]["y"]

    def loss(size: float) -> float:
        moved = (WEIGHTS[name] + size * direction).astype(np.float32)
        return divergence(wanted, behind.outputs(Replaced(WEIGHTS, {name: moved}))["y"])

    for _ in range(5):
        direction = RNG.choice([-1.0, 1.0], WEIGHTS[name].shape)
        change = (inner @ (x @ direction.T)[:, :, None])[..., 0] if name == "w1" else hidden @ direction.T  # [S, C]
        closed = float(np.einsum("sc,scd,sd->s", change, fisher, change).mean())
        step = step_size(WEIGHTS[name], 0.01)
        assert 2 * loss(step) / step**2 == pytest.approx(closed, rel=0.05)
        for size in (step / 4, step / 2, 2 * step):
            assert (loss(size) + loss(-size)) / size**2 == pytest.approx(closed, rel=0.02)


def test_traces_of_values_are_those_of_the_jacobian():
    result = hessian_traces(network(), WEIGHTS, {"x": X}, kind="values", probes=400, batch=SAMPLES)
    _, hidden, _, _ = parts()
    wanted = CLASSES * float(np.square(hidden).sum(axis=1).mean())
    assert result["w2"].mean * WEIGHTS["w2"].size == pytest.approx(wanted, rel=0.03)


def test_a_softmax_at_the_end_changes_nothing():
    assert hessian_traces(network("Softmax"), WEIGHTS, {"x": X}) == hessian_traces(network(), WEIGHTS, {"x": X})


def test_weights_that_folding_made_have_traces():
    inside = replace(network(), constants={name: plain_tensor(array) for name, array in WEIGHTS.items()})
    assert hessian_traces(inside, WEIGHTS, {"x": X}) == hessian_traces(network(), WEIGHTS, {"x": X})


def test_the_same_numbers_come_again_and_others_with_another_seed():
    first, again, other = (hessian_traces(network(), WEIGHTS, {"x": X}, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    only = hessian_traces(network(), WEIGHTS, {"x": X}, layers=["w2"])
    assert list(only) == ["w2"]


def test_what_the_outputs_are_is_seen():
    scores, wide = network(), replace(network(), outputs=(Value("h", "F32", ("batch", INPUTS)),))
    assert is_scores(scores) and is_scores(network("Softmax"))
    assert not is_scores(wide)  # as an auto-encoder: of the shape of its input
    assert not is_scores(replace(scores, meta={"kind": "encoder"}))
    assert not is_scores(replace(scores, outputs=(*scores.outputs, Value("r", "F32", ("batch", HIDDEN)))))
    assert not is_scores(replace(scores, outputs=(Value("r", "F32", ("batch", HIDDEN)),)))


def test_divergences_of_scores_that_are_almost_equal_are_exact():
    p = RNG.standard_normal((6, 10))
    change = RNG.standard_normal((6, 10))
    q = p + 0.3 * change
    logs = [a - np.log(np.exp(a).sum(axis=1, keepdims=True)) for a in (p, q)]
    weight = np.exp(logs[0])
    assert divergence(p, q) == pytest.approx(float((weight * (logs[0] - logs[1])).sum(axis=1).mean()), rel=1e-12)
    spread = (weight * np.square(change - (weight * change).sum(axis=1, keepdims=True))).sum(axis=1).mean()
    assert divergence(p, p + 1e-6 * change) == pytest.approx(5e-13 * float(spread), rel=1e-4)
    assert divergence(p + 900, p - 900) == pytest.approx(0, abs=1e-12)


def test_losses_are_the_trace_times_the_error_of_the_weights():
    traces = {"w1": Trace(0.5, 0.1, 8), "w2": Trace(-0.1, 0.1, 8)}
    result = hessian_losses(traces, WEIGHTS, [(8, 8), (4, 8)], lambda name, bits: WEIGHTS[name] + 1 / bits)
    assert result["w1"][4, 8] == pytest.approx(0.5 * WEIGHTS["w1"].size / 16, rel=1e-5)
    assert result["w2"] == {(8, 8): 0.0, (4, 8): 0.0}


@pytest.mark.parametrize("setting", [{"probes": -1}, {"step": 0.0}, {"step": 2.0}, {"batch": 0}])
def test_settings_that_mean_nothing_are_refused(setting: dict):
    with pytest.raises(BadArgumentError, match="out of range"):
        hessian_traces(network(), WEIGHTS, {"x": X}, **setting)


def test_outputs_that_are_not_finite_are_named():
    broken = WEIGHTS | {"w1": np.full((HIDDEN, INPUTS), np.inf, np.float32)}
    with pytest.raises(BadArgumentError, match="not finite"):
        hessian_traces(network(), broken, {"x": X})


def test_a_layer_of_zeros_has_a_trace():
    result = hessian_traces(network(), WEIGHTS | {"w2": np.zeros_like(WEIGHTS["w2"])}, {"x": X}, probes=50)
    assert np.isfinite(result["w2"].mean) and result["w2"].mean > 0
