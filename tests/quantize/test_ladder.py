"""The plane ladder: compiled loops equal numpy's, a prefix beats a truncated grid, nothing is lost on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadArgumentError
from qdeploy.ir.decode import decode_codes, decode_tensor
from qdeploy.ir.run import Weights, run
from qdeploy.ir.views.ladder import ladder_of
from qdeploy.quantize import quantize_model
from qdeploy.quantize.contract import Grid, Statistics, Weight
from qdeploy.quantize.ladder import loops, oracle
from qdeploy.quantize.ladder.fit import PROFILES, _level_weights, _start
from qdeploy.quantize.ladder.loops import Loops
from qdeploy.quantize.ladder.metric import Metric, inverse_factor
from qdeploy.quantize.ladder.quantizer import Ladder
from qdeploy.quantize.ladder.tensor import SmallScales
from tests.quantize.test_bitstack import TINY, text_file

RANDOM = np.random.default_rng(7)


def inputs(columns: int, tokens: int = 600) -> np.ndarray:
    """Rows whose columns are of very different sizes, depend on each other, and have means."""
    wide = RANDOM.standard_normal((tokens, columns)) * np.exp(RANDOM.standard_normal(columns))
    return wide + 0.3 * RANDOM.standard_normal((tokens, 1)) + RANDOM.standard_normal(columns) * 0.2


def statistics(x: np.ndarray) -> Statistics:
    return Statistics(moments=x.T @ x / len(x), means=x.mean(axis=0))


def weight(shape: tuple[int, int], name: str = "w") -> Weight:
    from qdeploy.ir.tensor import Buffer, plain

    values = (RANDOM.standard_normal(shape) * 0.05).astype(np.float32)
    return Weight(name, plain(Buffer.of(name, values, "F32"), "f32"))


@pytest.mark.skipif(not loops.is_compiled(), reason="the loops were not built")
@pytest.mark.parametrize(
    ("rows", "columns", "group", "profile"),
    [(70, 128, 64, "low"), (40, 352, 64, "balanced"), (33, 172, 64, "low"), (17, 48, 32, "high"), (5, 64, 32, "deep")],
)
def test_compiled_loops_give_the_codes_of_numpy(rows: int, columns: int, group: int, profile: str):
    x = inputs(columns)
    metric, how = Metric.of(x.T @ x / len(x), group), PROFILES[profile]
    wanted = [metric.padded((RANDOM.standard_normal((rows, columns)) * 0.05).astype(np.float32))] * how.planes
    codes, scales = _start(wanted[0], metric, how)
    fast, own, real = Loops(metric), scales.copy(), -(-columns // group)
    fast.refit(wanted, own, codes)
    oracle.refit(wanted, scales, codes, metric, 1e-3)
    np.testing.assert_allclose(own[:, :real], scales[:, :real], rtol=1e-4)

    weights, slow = _level_weights(wanted, scales, codes, metric, how), codes.copy()
    fast.round_rows(wanted, scales, codes, weights)
    oracle.round_rows(wanted, scales, slow, metric, weights)
    assert (codes == slow)[:, :columns].mean() > 0.999

    slow, again = codes.copy(), scales.copy()
    fast.descend(wanted, scales, codes, weights, 2)
    oracle.descend(wanted, again, slow, metric, weights, 2)
    assert (codes == slow)[:, :columns].mean() > 0.999
    np.testing.assert_allclose(scales[:, :real], again[:, :real], rtol=1e-3)


def test_threads_do_not_change_a_ladder():
    x = inputs(96)
    metric, how = Metric.of(x.T @ x / len(x), 32), PROFILES["low"]
    wanted = [metric.padded((RANDOM.standard_normal((300, 96)) * 0.05).astype(np.float32))] * 4
    results = []
    for threads in (1, 3):
        codes, scales = _start(wanted[0], metric, how)
        Loops(metric, threads).round_rows(wanted, scales, codes, np.ones(4, np.float32))
        Loops(metric, threads).descend(wanted, scales, codes, np.ones(4, np.float32), 2)
        results.append((codes, scales))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("size", [3, 64, 300, 513])
def test_the_factor_is_that_of_the_inverse(size: int):
    x = inputs(size, 2 * size + 50)
    moment = x.T @ x / len(x) + np.eye(size)
    factor = inverse_factor(moment)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor @ moment @ factor.T, np.eye(size), atol=1e-8)


def test_the_best_code_is_the_best_of_all():
    targets, scales = RANDOM.standard_normal((3, 50)).astype(np.float32), np.full((3, 50), 0.4, np.float32)
    weights = np.array([0.5, 2, 1], np.float32)
    codes = oracle.best_codes(targets, scales, weights)
    every = np.arange(8, dtype=np.uint8)
    cost = sum(
        weights[level] * (0.4 * oracle.reading(every, 3, level + 1)[:, None] - targets[level]) ** 2
        for level in range(3)
    )
    np.testing.assert_allclose(cost[codes, np.arange(50)], cost.min(axis=0), rtol=1e-5)


def test_every_level_beats_a_truncated_grid_of_the_same_bits():
    """Output errors on the inputs that were measured, against round-to-nearest cut to its first planes."""
    x, own = inputs(256, 2000), weight((64, 256))
    values = own.tensor.decode()
    tensor = Ladder(group=32, profile="balanced").quantize(own, [statistics(x)], Grid())
    rtn = quantize_model_of(values, "rtn:int4,group=32")
    outputs, shift = x @ values.T, own.shifts["w"].decode()
    ratios = []
    for level in (2, 3, 4):
        bias = tensor.rungs[level - 1].bias
        added = shift + (decode_codes(bias) if bias is not None else 0)
        ladder = np.square(x @ decode_tensor(tensor, rung=level - 1).T + added - outputs).mean()
        cut = np.square(x @ truncated(rtn, 4 - level).T - outputs).mean()
        ratios.append(ladder / cut)
    assert ratios[0] < 0.9 and ratios[1] < 0.9 and ratios[2] < 1.2, ratios


def quantize_model_of(values: np.ndarray, spec: str):  # type: ignore[no-untyped-def]
    from qdeploy.ir.tensor import Buffer, plain
    from qdeploy.quantize import parse

    parsed = parse(spec)
    return parsed.quantizer.quantize(Weight("w", plain(Buffer.of("w", values, "F32"), "f32")), (), parsed.grid)


def truncated(tensor, missing: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Integer codes without their last planes, which read as the middle of what is left."""
    from qdeploy.ir.codes import read_codes

    codes = tensor.terms[0].values
    read = read_codes(codes, 0, codes.shape[0]).astype(np.int64)
    step = 1 << missing
    scale = np.repeat(decode_codes(codes.scale.values), codes.scale.tile[1], axis=1)
    return ((read // step * step + (step - 1) / 2) - 8) * scale


def test_scales_keep_their_size_in_eight_bits():
    scales = np.exp(RANDOM.standard_normal((50, 12)) * 0.5).astype(np.float32) * np.float32(1e-6)
    stored = SmallScales.of(scales)
    assert stored.small.max() <= 255 and (stored.factor.view(np.uint32) & 0xFFFF == 0).all()
    largest = scales.max(axis=1, keepdims=True)
    assert (np.abs(stored.values() - scales) <= 0.51 * largest / 250).all()


def test_a_quantized_model_runs_with_its_shifts(tmp_path: Path):
    """At the last level, layers add what keeps the means of their outputs, which are near those of the floats."""
    model = qdeploy.load(TINY)
    text = str(text_file(tmp_path))
    quantized = quantize_model(model, [f"ladder:group=32,calibrate={text}"])
    names = [name for name in quantized.tensors if ladder_of(quantized.tensors[name]) is not None]
    assert len(names) >= 7 and any(name.endswith("/bias") for name in quantized.graph.constants)
    ids = {"input_ids": np.arange(12)[None] % 30 + 3}
    wanted, near = (run(m.graph, ids, None, Weights(m))[0]["logits"] for m in (model, quantized))
    assert 0 < np.linalg.norm(near - wanted) < 0.25 * np.linalg.norm(wanted)


def test_best_follows_every_rung(tmp_path: Path):
    model, text = qdeploy.load(TINY), text_file(tmp_path)
    plain = quantize_model(model, [f"ladder:group=32,calibrate={text}"])
    best = quantize_model(model, [f"ladder:group=32,calibrate={text},effort=best"])
    changed = [n for n in plain.tensors if not np.array_equal(plain.tensors[n].decode(), best.tensors[n].decode())]
    assert any("down_proj" in name for name in changed)


def test_without_a_text_it_says_what_that_costs(tmp_path: Path):
    quantized = quantize_model(qdeploy.load(TINY), ["ladder"])
    assert any("far worse below four planes" in note for note in quantized.notes)
    assert not any(name.endswith("/bias") for name in quantized.graph.constants)


def test_statistics_are_as_good_as_the_text_itself(tmp_path: Path):
    from qdeploy.calibrate.layers import calibrate_layers

    model, text = qdeploy.load(TINY), str(text_file(tmp_path))
    calibrate_layers(model, text, tmp_path / "statistics")
    ways = [
        quantize_model(qdeploy.load(TINY), [f"ladder:group=32,calibrate={where}"])
        for where in (text, tmp_path / "statistics")
    ]
    for name in ways[0].tensors:
        one, two = (way.tensors[name].decode() for way in ways)
        assert np.linalg.norm(one - two) <= 5e-2 * np.linalg.norm(one)  # ties of codes
    with pytest.raises(BadArgumentError, match="followed on the text itself"):
        quantize_model(model, [f"ladder:calibrate={tmp_path / 'statistics'},effort=best"])


def test_a_package_keeps_levels_and_biases(tmp_path: Path):
    source, text = qdeploy.load(TINY), text_file(tmp_path)
    qdeploy.convert(TINY, tmp_path / "out", to="ir", quantize=f"ladder:group=32,calibrate={text}")
    back, again = qdeploy.load(tmp_path / "out"), quantize_model(source, [f"ladder:group=32,calibrate={text}"])
    name = next(n for n in again.tensors if n.endswith("down_proj.weight"))
    for rung in range(4):
        np.testing.assert_array_equal(
            decode_tensor(back.tensors[name], rung=rung), decode_tensor(again.tensors[name], rung=rung)
        )
    one, two = (model.tensors[name].rungs[1].bias for model in (back, again))
    assert one is not None and two is not None
    np.testing.assert_array_equal(decode_codes(one), decode_codes(two))
    assert replace(back.tensors[name].rungs[0], terms=None).error == again.tensors[name].rungs[0].error
