"""Attention in ONNX Runtime against its definition in numpy: head sizes, rotary kinds, windows, caches, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_forms import plain_codes, relative, session, tensor_of

from qdeploy.backends.onnx import BACKEND
from qdeploy.backends.onnx.attention import padded_head
from qdeploy.backends.onnx.options import Options
from qdeploy.ir.graph import Graph, Node, State, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run

VOCAB, HEADS, KV = 19, 4, 2


def floats(array: np.ndarray):
    return tensor_of(plain_codes(array.astype(np.float32), "F32", "f32"))


def attention_model(size: int, rope: dict[str, Any] | None = None, window: int = 0) -> Model:
    """Embedding, three projections, one Attention, and its output as the logits."""
    rng, hidden = np.random.default_rng(size), 16
    shapes = {"embed": (VOCAB, hidden), "q": (HEADS * size, hidden), "k": (KV * size, hidden), "v": (KV * size, hidden)}
    tensors = {name: floats(rng.standard_normal(shape)) for name, shape in shapes.items()}
    attrs: dict[str, Any] = {
        "heads": HEADS,
        "kv_heads": KV,
        "scale": size**-0.5,
        "causal": True,
        "window": window,
        "state": "kv.0",
    }
    constants = {}
    if rope is not None:
        inv_freq = 1 / 10000 ** (np.arange(0, rope["rotary_dim"], 2) / rope["rotary_dim"])
        constants["inv_freq"] = floats(inv_freq)
        attrs["rope"] = {"interleaved": False, "factor": 1.0, **rope, "inv_freq": "inv_freq"}
    nodes = (
        Node("Gather", ("embed", "input_ids"), ("x",), {"axis": 0}),
        *(Node("Linear", ("x", name), (f"{name}.out",)) for name in "qkv"),
        Node("Attention", ("q.out", "k.out", "v.out"), ("logits",), attrs),
    )
    graph = Graph(
        (Value("input_ids", "I64", ("batch", "sequence")),),
        (Value("logits", "F32", ("batch", "sequence", HEADS * size)),),
        nodes,
        (State("kv.0", KV, size),),
        constants,
        {"kind": "decoder", "model_type": "llama", "context": 64, "vocab": VOCAB},
    )
    return Model("test", "test", tensors, build_graph=lambda _: graph)


def steps_in_onnx(folder: Path, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Runs ids in pieces, carrying the caches."""
    running = session(folder / "model.onnx")
    names = [o.name for o in running.get_outputs()]
    shape = running.get_inputs()[2].shape
    caches = {i.name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32) for i in running.get_inputs()[2:]}
    parts, start = [], 0
    for stop in cuts:
        feed = {"input_ids": ids[:, start:stop], "attention_mask": np.ones((len(ids), stop), np.int64), **caches}
        result = dict(zip(names, running.run(names, feed), strict=True))
        parts.append(result["logits"])
        caches = {name: result[name.replace("past_key_values", "present")] for name in caches}
        start = stop
    return np.concatenate(parts, axis=1)


def compare(folder: Path, model: Model, cuts: list[int], batch: int = 1) -> None:
    BACKEND.lower(model, folder, Options())
    ids = np.random.default_rng(1).integers(0, VOCAB, (batch, cuts[-1]))
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"]
    assert relative(steps_in_onnx(folder, ids, cuts), want) < 1e-5


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [6, 8, 12, 16, 20, 24, 32, 40, 64, 80])
def test_every_head_size_with_rotary_positions(size, interleaved, tmp_path):
    compare(tmp_path, attention_model(size, {"rotary_dim": size, "interleaved": interleaved}), [7, 8, 11])


@pytest.mark.parametrize(("size", "rotary"), [(64, 32), (64, 24), (64, 16), (16, 8), (20, 10), (80, 32)])
def test_partial_rotary_positions(size, rotary, tmp_path):
    compare(tmp_path, attention_model(size, {"rotary_dim": rotary, "factor": 1.25}), [5, 6, 7])


@pytest.mark.parametrize("size", [12, 16])
@pytest.mark.parametrize("window", [1, 2, 4, 9, 50])
def test_a_window_counts_the_query_itself(window, size, tmp_path):
    compare(tmp_path, attention_model(size, {"rotary_dim": size}, window), [6, 7, 10])


@pytest.mark.parametrize("size", [12, 32])
def test_attention_without_positions_and_with_a_batch(size, tmp_path):
    compare(tmp_path, attention_model(size), [4, 5, 6], batch=3)


@pytest.mark.parametrize("size", [8, 16])
def test_prompts_of_different_lengths_are_padded_on_the_right(size, tmp_path):
    model = attention_model(size, {"rotary_dim": size})
    BACKEND.lower(model, tmp_path, Options())
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    running = session(tmp_path / "model.onnx")
    caches = {i.name: np.zeros((2, KV, 0, padded_head(size)), np.float32) for i in running.get_inputs()[2:]}
    result = running.run(["logits"], {"input_ids": ids, "attention_mask": mask, **caches})[0]
    for row, length in ((0, 9), (1, 5)):
        want = run(model.graph, {"input_ids": ids[row : row + 1, :length]}, {}, Weights(model))[0]["logits"]
        assert relative(result[row : row + 1, :length], want) < 1e-5


def test_head_sizes_that_the_kernel_takes_are_not_padded():
    assert [padded_head(n) for n in (8, 16, 64, 6, 12, 20)] == [8, 16, 64, 8, 16, 24]
