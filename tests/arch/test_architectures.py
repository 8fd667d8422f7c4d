"""Every family gives the logits and the greedy continuation of transformers on checkpoints that it saved itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.arch.family import family_of
from qdeploy.conversion import load
from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, generate_greedy, run

ROOT = Path(os.environ.get("QDEPLOY_TESTDATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FOLDERS = sorted(path.name for path in (ROOT / "architectures").glob("arch-*"))
LOOSE = ("qwen3_5", "qwen3_next", "t5", "clip")
"""Families whose oracles are further from float64 themselves."""


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def limit_of(name: str) -> float:
    return 2e-5 if any(part in name for part in LOOSE) else 1e-5


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def outputs_equal(model: Model, oracle: dict[str, np.ndarray], limit: float) -> None:
    """Every output that the oracle has, at the tokens that are no padding; all that the oracle has is an output."""
    names = [value.name for value in model.graph.inputs]
    suffixes = [suffix for suffix in ("", "_2") if names[0] + suffix in oracle]
    results = {name for name in oracle if not name.endswith("_2")} - {*names, "greedy", "pooler_output"}
    for suffix in suffixes:
        inputs = {name: oracle[name + suffix] for name in names if name + suffix in oracle}
        mask = inputs.get("attention_mask", np.ones((0, 0))).astype(bool)
        outputs = model.run(**inputs)
        assert results <= set(outputs)
        for name in results | ({"pooler_output"} & set(outputs)):
            actual, expected = outputs[name], oracle[name + suffix]
            if actual.shape[:2] == mask.shape:
                actual, expected = actual[mask], expected[mask]
            assert distance(actual, expected) < limit, name + suffix


@pytest.mark.parametrize("name", FOLDERS)
def test_a_family_gives_what_transformers_gives_and_an_unknown_one_is_refused(testdata: Path, name: str):
    folder = testdata / "architectures" / name
    model = load(folder)
    with np.load(folder / "oracle.npz") as file:
        oracle = dict(file)
    config = config_of(folder)
    tower = config.get("text_config", {}).get("model_type")
    family = family_of(config["model_type"])
    heads = family.heads.get(config["model_type"], ()) if family else ()
    if config["architectures"][0] not in heads and family_of(tower) is None:
        with pytest.raises(UnsupportedError) as caught:
            _ = model.graph
        assert "model_type" in caught.value.where or "architectures" in caught.value.where
        return
    if model.graph.meta["kind"] != "decoder":
        outputs_equal(model, oracle, limit_of(name))
        return
    weights = Weights(model)
    for suffix in ("", "_2"):
        outputs, _ = run(model.graph, {"input_ids": oracle[f"input_ids{suffix}"]}, None, weights)
        assert distance(outputs["logits"], oracle[f"logits{suffix}"]) < limit_of(name)
    prompt, continuation = oracle["input_ids"][0].tolist(), oracle["greedy"][0].tolist()
    assert generate_greedy(model, prompt, len(continuation), weights) == continuation
