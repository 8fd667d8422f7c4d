"""Evaluation: the loss of the interpreter's own scores, the same in the runtime, and what a file says of its rungs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import qdeploy
from qdeploy.cli import cli
from qdeploy.errors import BadArgumentError
from qdeploy.evaluation import evaluate
from qdeploy.ir.run import Weights, run
from qdeploy.quantize.samples import read_samples

TINY = Path(__file__).resolve().parents[1] / "examples/models/tiny-llama"


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    lines = ("First Citizen: Before we proceed any further, hear me speak. ", "ROMEO: What light is this? ")
    path.write_text("<|endoftext|>".join(lines[n % 2] * (2 + n % 3) + str(n) for n in range(33)))
    return str(path)


@pytest.fixture(scope="module")
def file(stories: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)
    path = tmp_path_factory.mktemp("native") / "tiny.qd"
    qdeploy.convert(TINY, path, to="native", calibrate=stories)
    return str(path)


def test_perplexity_is_that_of_the_scores(stories: str):
    model = qdeploy.load(TINY)
    samples = read_samples(model, stories, tokens=300)
    weights, loss, places = Weights(model), 0.0, 0
    for ids, length in zip(samples.ids, samples.lengths, strict=True):
        logits = run(model.graph, {"input_ids": ids[None, :length]}, None, weights)[0]["logits"][0].astype(np.float64)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss -= log[np.arange(length - 1), ids[1:length]].sum()
        places += length - 1
    point = evaluate(TINY, stories, tokens=300, against=str(TINY))["points"][0]
    assert point["perplexity"] == pytest.approx(math.exp(loss / places), rel=1e-5)
    assert point["divergence"] == pytest.approx(0, abs=1e-9) and point["top1"] == 1


def test_a_calibration_text_makes_ladders_whose_losses_the_file_tells(file: str, stories: str, tmp_path: Path):
    held_back = Path(stories).read_text().split("<|endoftext|>")[15::16]
    (tmp_path / "held.txt").write_text("<|endoftext|>".join(held_back))
    points = evaluate(file, str(tmp_path / "held.txt"), budgets=10)["points"]
    assert len(points) >= 8 and sum("stored" in point for point in points) == len(points)
    for point in points:
        assert point["stored"] == pytest.approx(point["loss"], rel=0.02)
    losses = [point["loss"] for point in points]
    assert losses[-1] < losses[0] and points[0]["bytes"] < points[-1]["bytes"]
    plan = qdeploy.plan(file, threads=1)
    assert {rung["rung"] for rung in plan["rungs"] if "loss" in rung} == {point["rung"] for point in points}


def test_a_file_with_measured_losses_is_verified(file: str):
    assert qdeploy.verify(str(TINY), file)["equal"]


def test_the_verb_prints_what_was_measured(file: str, stories: str):
    result = CliRunner().invoke(cli, ["eval", file, "--text", stories, "--budgets", "2", "--tokens", "80", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert [point["rung"] for point in report["points"]] == sorted(point["rung"] for point in report["points"])
    shown = CliRunner().invoke(cli, ["eval", str(TINY), "--text", stories, "--tokens", "80", "-q"])
    assert shown.exit_code == 0 and "perplexity" in shown.output


def test_an_empty_text_is_a_clear_error(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("  ")
    with pytest.raises(BadArgumentError, match="no tokens"):
        evaluate(TINY, str(tmp_path / "empty.txt"))
