"""Calibration on a text: each distinct input once, the numbers of the inputs themselves, continued where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.calibrate import layers
from qdeploy.calibrate.layers import calibrate_layers
from qdeploy.errors import BadArgumentError
from qdeploy.quantize.activations import observe
from qdeploy.quantize.samples import read_samples
from qdeploy.quantize.statistics import StatisticsFolder, save_arrays

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


@pytest.fixture
def stories(tmp_path: Path) -> str:
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>".join(f"Once there was a dog number {n}. " * (3 + n) for n in range(5)))
    return str(path)


def test_documents_begin_with_the_token_that_begins_a_text(stories: str):
    model = qdeploy.load(TINY)
    samples = read_samples(model, stories)
    assert len(samples.ids) == 5 and (samples.ids[:, 0] == model.graph.meta["bos_token_id"]).all()
    assert (np.diff(samples.lengths) > 0).all() and samples.tokens == samples.lengths.sum()
    assert read_samples(model, stories, tokens=40).tokens == 40


def test_ids_are_read_from_arrays(tmp_path: Path):
    ids, mask = np.arange(12).reshape(2, 6), np.array([[1] * 6, [1, 1, 1, 0, 0, 0]])
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=mask)
    samples = read_samples(qdeploy.load(TINY), str(tmp_path / "ids.npz"))
    assert samples.lengths.tolist() == [6, 3] and samples.ids[1, :3].tolist() == [6, 7, 8]
    np.savez(tmp_path / "floats.npz", input_ids=ids.astype(float))
    with pytest.raises(BadArgumentError, match="no token ids"):
        read_samples(qdeploy.load(TINY), str(tmp_path / "floats.npz"))


def test_statistics_are_those_of_the_inputs(stories: str, tmp_path: Path):
    model = qdeploy.load(TINY)
    described = calibrate_layers(model, stories, tmp_path / "out")
    rows: dict[str, list[np.ndarray]] = {}
    samples = read_samples(model, stories)
    for ids, length in zip(samples.ids, samples.lengths, strict=True):
        observe(
            model.graph,
            {"input_ids": ids[None, :length]},
            model.tensors,
            lambda name, x: rows.setdefault(name, []).append(x[0]),
        )
    known = StatisticsFolder(tmp_path / "out").inputs()
    assert set(known) == set(rows) and len(described["inputs"]) < len(known)
    for name, parts in rows.items():
        x = np.concatenate(parts).astype(np.float64)
        statistics = known[name].read()
        np.testing.assert_allclose(statistics.moments, x.T @ x / len(x), rtol=1e-3, atol=1e-4 * np.square(x).mean())
        np.testing.assert_allclose(statistics.means, x.mean(axis=0), atol=1e-4)


def test_a_run_that_was_stopped_goes_on(stories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, whole = qdeploy.load(TINY), tmp_path / "whole"
    calibrate_layers(model, stories, whole)
    monkeypatch.setattr(layers, "_EVERY", 0.0)
    written = []

    def stopping(path: Path, arrays: object) -> None:
        written.append(path.name)
        if written.count("6.npz"):
            raise KeyboardInterrupt
        save_arrays(path, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(layers, "save_arrays", stopping)
    with pytest.raises(KeyboardInterrupt):
        calibrate_layers(model, stories, tmp_path / "parts")
    monkeypatch.setattr(
        layers, "save_arrays", lambda path, arrays: written.append(path.name) or save_arrays(path, arrays)
    )
    written.clear()
    calibrate_layers(model, stories, tmp_path / "parts")
    assert "5.npz" not in written and "6.npz" in written and not (tmp_path / "parts/checkpoint.npz").exists()
    for file in whole.glob("*.npz"):
        with np.load(file) as one, np.load(tmp_path / "parts" / file.name) as two:
            for name in one.files:
                np.testing.assert_array_equal(one[name], two[name])


def test_statistics_of_something_else_are_not_overwritten(stories: str, tmp_path: Path):
    model = qdeploy.load(TINY)
    calibrate_layers(model, stories, tmp_path / "out", tokens=60)
    with pytest.raises(BadArgumentError, match="another model or other samples"):
        calibrate_layers(model, stories, tmp_path / "out", tokens=80)
    assert calibrate_layers(model, stories, tmp_path / "out", tokens=80, force=True)["tokens"] == 80
