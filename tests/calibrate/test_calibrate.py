"""Ranges from data, against what the data is known to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.calibrate.calibrate import calibrate, read_data
from qdeploy.calibrate.histogram import BINS, Histogram
from qdeploy.calibrate.methods import METHODS
from qdeploy.errors import BadArgumentError
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model

RNG = np.random.default_rng(2)


def model(*nodes: Node) -> Model:
    graph = Graph((Value("x", "F32", ("batch", 4)),), (Value("y", "F32", ("batch", 4)),), nodes)
    return Model("test", "memory", {}, build_graph=lambda _: graph)


def seen(*parts: np.ndarray) -> Histogram:
    result = Histogram()
    for part in parts:
        result.add(part.astype(np.float32))
    return result


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 8))
def test_a_histogram_is_the_same_however_its_data_is_cut(numbers: list[float], step: int):
    array = np.array(numbers, np.float32)
    one, many = seen(array), seen(*(array[i : i + step] for i in range(0, len(array), step)))
    assert (many.least, many.greatest, many.top) == (array.min(), array.max(), one.top)
    assert one.counts.sum() == many.counts.sum() == len(array)
    width = one.top / (BINS // 2)
    for histogram in (one, many):
        places = np.repeat(histogram.centres(), histogram.counts)
        assert np.abs(np.sort(array) - places).max() <= width * 0.5001


def test_minmax_is_exact_and_a_percentile_leaves_the_tails():
    x = RNG.standard_normal(100_000)
    assert METHODS["minmax"](seen(x), 8, 99.0) == (np.float32(x.min()), np.float32(x.max()))
    low, high = METHODS["percentile"](seen(x), 8, 99.0)
    np.testing.assert_allclose([low, high], np.percentile(x, [0.5, 99.5]), atol=0.01)
    low, high = METHODS["percentile"](seen(np.abs(x)), 8, 99.0)
    assert low == np.float32(np.abs(x).min()) and abs(high - np.percentile(np.abs(x), 99)) < 0.01


@pytest.mark.parametrize("method", ["entropy", "mse"])
@pytest.mark.parametrize("signed", [True, False])
def test_outliers_are_clipped_and_even_data_is_not(method: str, signed: bool):
    normal = RNG.standard_normal(50_000)
    normal = normal if signed else np.abs(normal)
    _, high = METHODS[method](seen(np.append(normal, 40.0)), 8 if method == "entropy" else 4, 100.0)
    assert 2 < high < 20
    even = RNG.uniform(-1 if signed else 0, 1, 50_000)
    _, high = METHODS[method](seen(even), 8, 100.0)
    assert high > 0.95


def test_mse_clips_more_for_fewer_bits_and_is_near_the_known_optimum():
    x = RNG.standard_normal(200_000)
    results = [METHODS["mse"](seen(x), bits, 100.0)[1] for bits in (2, 4, 8)]
    assert results[0] < results[1] < results[2]
    assert abs(results[1] - 2.55) < 0.3  # Banner et al., arXiv 1810.05723: 2.55 sigma for 4 bits


def test_every_float_value_has_its_range():
    result = calibrate(
        model(Node("Relu", ("x",), ("r",)), Node("Add", ("r", "r"), ("y",))),
        {"images": np.arange(-4, 8, dtype=np.float32).reshape(3, 4)},
        batch=2,
    )
    assert result.values == {"x": (-4, 7), "r": (0, 7), "y": (0, 14)} and result.samples == 3


def test_a_network_of_a_fixed_batch_is_run_in_such_batches():
    fixed = Graph((Value("x", "F32", (2, 4)),), (Value("y", "F32", (2, 4)),), (Node("Relu", ("x",), ("y",)),))
    x = np.arange(28, dtype=np.float32).reshape(7, 4)
    assert calibrate(Model("test", "memory", {}, build_graph=lambda _: fixed), {"x": x}).values["x"] == (0.0, 23.0)
    with pytest.raises(BadArgumentError, match="another shape"):
        calibrate(Model("test", "memory", {}, build_graph=lambda _: fixed), {"x": x[:1]})


def test_what_cannot_be_calibrated_is_said(tmp_path: Path):
    network, x = model(Node("Relu", ("x",), ("y",))), np.ones((2, 4), np.float32)
    for data, method in (
        ({}, "minmax"),
        ({"x": x}, "best"),
        ({"x": x[:0]}, "mse"),
        ({"x": x * np.inf}, "mse"),
        ({"a": x, "b": x}, "minmax"),
    ):
        with pytest.raises(BadArgumentError):
            calibrate(network, data, method)
    np.savez(tmp_path / "data.npz", x=x)
    assert read_data(str(tmp_path / "data.npz"))["x"].shape == (2, 4)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.save(tmp_path / "one.npy", x)
    for name in ("bad.npz", "none.npz", "one.npy"):
        with pytest.raises(BadArgumentError, match="calibration data"):
            read_data(str(tmp_path / name))
