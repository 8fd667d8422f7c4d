"""Vision transformers that transformers saved become integers alone, and scores that stay close to its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.backends.tvm import BACKEND


def test_a_vision_transformer_runs_in_integers_alone(tvm: None, testdata: Path, tmp_path: Path):
    source, out = testdata / "architectures" / "arch-swin-a", tmp_path / "out"
    calibration = str(source / "oracle.npz")
    qdeploy.convert(source, out, to="tvm", calibrate=calibration, forms=("library",), axes={"batch": 2})
    assert BACKEND.integers.integer_only(out)["integer_only"]


@pytest.mark.parametrize("name", ["arch-vit-a", "arch-swin-a"])
def test_a_vision_transformer_runs_on_eight_bit_kernels(testdata: Path, tmp_path: Path, name: str):
    runtime = pytest.importorskip("onnxruntime")
    source, out = testdata / "architectures" / name, tmp_path / "out"
    qdeploy.convert(source, out, to="onnx", integer="fast", calibrate=str(source / "oracle.npz"))
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # weights become unsigned there
    session = runtime.InferenceSession(out / "model.onnx", options)
    with np.load(source / "oracle.npz") as oracle:
        result = session.run(None, {"pixel_values": oracle["pixel_values"]})[0].ravel()
        wanted = oracle[session.get_outputs()[0].name].ravel()
    assert result @ wanted / np.linalg.norm(result) / np.linalg.norm(wanted) > 0.99
