"""Experts and states of fixed size in ONNX Runtime give what transformers gives, prompt and steps alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.backends.onnx.verify import logits

FAMILIES = (
    "mixtral",
    "qwen2_moe",
    "phimoe",
    "granitemoe",
    "glm4_moe",
    "ernie4_5_moe",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "llama4_text",
    "olmoe",
    "minimax_m2",
    "lfm2_moe",
    "qwen3_next",
    "granitemoehybrid",
    "mamba2",
    "falcon_h1",
    "kimi_linear",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_gives_the_logits_of_transformers(testdata: Path, tmp_path: Path, family: str):
    folder = testdata / "architectures" / f"arch-{family}-a"
    report = qdeploy.convert(folder, tmp_path / "out", to="onnx")  # its check runs a prompt and steps
    assert any(check["kind"] == "model" for check in report["checks"])
    with np.load(folder / "oracle.npz") as oracle:
        expected, ids = oracle["logits"][0], oracle["input_ids"]
    actual = logits(str(tmp_path / "out"), ids)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-4
