"""ONNX networks: published checkpoints and trained ones, decoded, interpreted, and back out as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_networks import converted, distance, interpreted, onnx_runtime

import qdeploy

KINDS = {"onnx-matmulnbits*": 1e-5, "onnx-qdq-int4*": 1e-5, "onnx-qdq-s8s8*": 1e-2, "onnx-qoperator*": 1e-2}
"""Relative L2 of logits; where activations are quantized the last bit of a sum can move a code by one."""


def checkpoints(testdata: Path, kind: str) -> list[Path]:
    result = sorted((testdata / "checkpoints").glob(kind))
    assert result
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_a_checkpoint_is_the_librarys(testdata: Path, kind: str):
    for source in checkpoints(testdata, kind):
        model, oracle = qdeploy.load(source), np.load(source / "oracle.npz")
        for key in oracle.files:
            if key.startswith("w:"):
                np.testing.assert_array_equal(model.tensors[key[2:]].decode(), oracle[key], err_msg=f"{source} {key}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_interpreter_gives_the_logits_of_onnx_runtime(testdata: Path, kind: str):
    for source in checkpoints(testdata, kind):
        oracle = np.load(source / "oracle.npz")
        (logits,) = interpreted(source, {"input_ids": oracle["input_ids"]})
        assert distance(logits, oracle["logits"]) <= KINDS[kind], source.name
        np.testing.assert_array_equal(logits.argmax(-1), oracle["logits"].argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_back_out_as_onnx(testdata: Path, tmp_path: Path, kind: str):
    for source in checkpoints(testdata, kind):
        oracle = np.load(source / "oracle.npz")
        ids = {"input_ids": oracle["input_ids"]}
        (logits,) = converted(source, tmp_path / source.name, ids)
        assert distance(logits, oracle["logits"]) <= 1e-5, source.name
        (fused,) = onnx_runtime(tmp_path / source.name, ids, optimized=True)
        assert distance(fused, oracle["logits"]) <= KINDS[kind], source.name


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_checkpoint_is_proven_and_kept_in_a_package(testdata: Path, tmp_path: Path, kind: str):
    for source in checkpoints(testdata, kind):
        report = qdeploy.convert(source, tmp_path / f"{source.name}-ir", to="ir")
        for level in ("values", "tensor bytes"):
            assert report["lossless"][level]["proven"] == report["lossless"][level]["of"] > 0
        for output, origin in (("direct", source), ("through", tmp_path / f"{source.name}-ir")):
            qdeploy.convert(origin, tmp_path / f"{source.name}-{output}", check="none")
        direct, through = (
            (tmp_path / f"{source.name}-{output}/model.onnx").read_bytes() for output in ("direct", "through")
        )
        assert direct == through
        assert qdeploy.verify(source, tmp_path / f"{source.name}-direct")["equal"]


def images(testdata: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.load(testdata / "vision/cifar10/test_249_lossless.npz")
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (data["x"].astype(np.float32) / 255 - mean) / std  # [N, 32, 32, 3]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32), data["y"]


@pytest.mark.parametrize(("name", "correct"), [("resnet20", 225), ("resnet56", 228)])
def test_a_trained_image_network(testdata: Path, tmp_path: Path, name: str, correct: int):
    source = testdata / f"vision/cifar10/{name}_fp32.onnx"
    x, y = images(testdata)
    few = {"x": x[:32]}
    (wanted,) = onnx_runtime(source, few)
    (result,) = interpreted(source, few)
    assert distance(result, wanted) <= 1e-5
    (back,) = converted(source, tmp_path / name, {"x": x})
    assert distance(back[:32], wanted) <= 1e-5
    assert int(np.sum(back.argmax(-1) == y)) == correct


def test_a_decoder_that_was_written_here_is_read_again(tmp_path: Path):
    root = Path(__file__).resolve().parents[3]
    qdeploy.convert(root / "examples/models/tiny-llama-gptq", tmp_path / "first", check="none")
    graph = qdeploy.load(tmp_path / "first").graph
    assert {n.attrs["type"] for n in graph.nodes if n.op == "Opaque"} >= {"GroupQueryAttention"}
    qdeploy.convert(tmp_path / "first", tmp_path / "second")
    caches = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in graph.inputs if len(v.shape) == 4}
    ids = {"input_ids": np.arange(5)[None], "attention_mask": np.ones((1, 5), np.int64)}
    first, second = (onnx_runtime(tmp_path / name, ids | caches) for name in ("first", "second"))
    for a, b in zip(first, second, strict=True):
        assert distance(b, a) <= 1e-6
