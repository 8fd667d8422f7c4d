"""The networks of published checkpoints say what their own libraries say: in the numpy interpreter, and as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.ir.run import Weights, run

# Relative L2 distance, and how many of the 16 most likely tokens may differ: libraries that compute in float32; in
# float16; with activations of 8 bits.
FLOAT32, FLOAT16, INT8 = (1e-5, 0), (5e-3, 1), (5e-2, 2)
KINDS = {
    "base*": FLOAT32,
    "gguf-q*": FLOAT32,
    "gptq*": FLOAT16,
    "awq*": FLOAT16,
    "autoround-gptq*": FLOAT16,
    "autoround-w3*": FLOAT16,
    "gguf-llamacpp*": INT8,
}


def distance(found: np.ndarray, wanted: np.ndarray) -> tuple[float, int]:
    wanted = wanted.astype(np.float32)
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return error, int(np.sum(found.argmax(-1) != wanted.argmax(-1)))


def checkpoints(testdata: Path, kind: str) -> list[Path]:
    result = sorted((testdata / "checkpoints").glob(kind))
    assert result
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_interpreter_gives_the_logits_of_the_library(testdata: Path, kind: str):
    for source in checkpoints(testdata, kind):
        oracle = np.load(source / "oracle.npz")
        model = qdeploy.load(source)
        outputs, _ = run(model.graph, {"input_ids": oracle["input_ids"]}, {}, Weights(model))
        error, differing = distance(outputs["logits"], oracle["logits"])
        assert error <= KINDS[kind][0], source.name
        assert differing <= KINDS[kind][1], source.name


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_gives_the_logits_of_the_library(testdata: Path, tmp_path: Path, kind: str):
    from qdeploy.backends.onnx import BACKEND

    for source in checkpoints(testdata, kind):
        oracle = np.load(source / "oracle.npz")
        qdeploy.convert(source, tmp_path / source.name, activations="exact")
        result = BACKEND.text.logits(str(tmp_path / source.name), oracle["input_ids"])
        error, differing = distance(result, oracle["logits"][0])
        assert error <= KINDS[kind][0], source.name
        assert differing <= KINDS[kind][1], source.name
