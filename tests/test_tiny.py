"""The promise on one page: a GPTQ checkpoint made of nothing, its numbers, bytes, package and ONNX model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import qdeploy
from qdeploy.ir.run import Weights, run

Array = npt.NDArray[Any]
HIDDEN, HEADS, KV_HEADS, HEAD, FFN, VOCAB, GROUP = 64, 4, 2, 16, 96, 32, 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "num_hidden_layers": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": False,
        "checkpoint_format": "gptq",
    },
}
LAYER = "model.layers.0."
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}


def words(codes: Array) -> Array:
    """Eight codes of four bits to a word along the first axis, the first code lowest: [n, m] -> int32 [n / 8, m]."""
    shifts = (4 * np.arange(8, dtype=np.uint32))[None, :, None]
    shifted = codes.reshape(-1, 8, codes.shape[1]).astype(np.uint32) << shifts  # [n / 8, 8, m]
    return np.bitwise_or.reduce(shifted, axis=1).view(np.int32)


def quantized(rng: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
    """The stored tensors of a GPTQ layer, and the weight that they stand for."""
    codes = rng.integers(0, 16, (rows, columns))
    zeros = rng.integers(1, 16, (rows, columns // GROUP))
    scales = rng.uniform(0.01, 0.03, zeros.shape).astype(np.float16)
    stored = {
        "qweight": words(codes.T),
        "qzeros": words(zeros - 1).T,  # version 1 stores one less; eight rows of the weight to a word
        "scales": scales.T.copy(),
        "g_idx": (np.arange(columns) // GROUP).astype(np.int32),
    }
    weight = (codes - np.repeat(zeros, GROUP, 1)) * np.repeat(scales, GROUP, 1).astype(np.float32)
    return stored, weight.astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """A checkpoint folder, and its quantized weights by name."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    stored: dict[str, Array] = {
        name: rng.normal(size=shape).astype(np.float16)
        for name, shape in (("model.embed_tokens.weight", (VOCAB, HIDDEN)), ("lm_head.weight", (VOCAB, HIDDEN)))
    }
    for norm in ("model.norm", LAYER + "input_layernorm", LAYER + "post_attention_layernorm"):
        stored[f"{norm}.weight"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float16)
    weights = {}
    for name, shape in LINEARS.items():
        tensors, weights[f"{LAYER}{name}.weight"] = quantized(rng, *shape)
        stored |= {f"{LAYER}{name}.{key}": np.ascontiguousarray(array) for key, array in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, weights


def test_the_numbers_are_the_numbers(checkpoint: tuple[Path, dict[str, Array]]) -> None:
    folder, weights = checkpoint
    model = qdeploy.load(folder)
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.tensors[name].decode(), weight)


def test_every_byte_comes_back(checkpoint: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    folder, _ = checkpoint
    report = qdeploy.convert(folder, tmp_path / "package", to="ir")
    assert all(level["proven"] == level["of"] > 0 for level in report["lossless"].values())
    qdeploy.convert(tmp_path / "package", tmp_path / "again", to="source")
    for name in ("model.safetensors", "config.json"):
        before, after = ((where / name).read_bytes() for where in (folder, tmp_path / "again"))
        assert hashlib.sha256(after).digest() == hashlib.sha256(before).digest()


def test_onnx_runtime_computes_what_the_tensors_mean(checkpoint: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, _ = checkpoint
    report = qdeploy.convert(folder, tmp_path / "onnx", to="onnx", check="nodes")
    assert report["summary"]["lossy tensors"] == []
    ids = np.array([[1, 5, 17, 3, 30]], np.int64)
    empty = np.zeros((1, KV_HEADS, 0, HEAD), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds = {i.name: inputs.get(i.name, empty) for i in session.get_inputs()}
    (logits,) = session.run(["logits"], feeds)
    model = qdeploy.load(folder)
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"]
    assert np.linalg.norm(logits - want) < 1e-5 * np.linalg.norm(want)
