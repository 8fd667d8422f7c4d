"""Small models that every test can rebuild: extents from a config, numbers from a rule."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from qdeploy.arch import build_graph
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer, QTensor, plain

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""The extents of all small models."""


def by_rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1/4, 1/4) from splitmix64 over the position, seeded by the name; norms lie around 1."""
    state = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    state = state * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = (state >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5
    base = 1.0 if name.lower().endswith("norm.weight") else 0.0
    return (base + 0.5 * unit).astype(np.float32).reshape(shape)


def tensor(array: np.ndarray) -> QTensor:
    return plain(Buffer.of("data", np.ascontiguousarray(array, np.float32), "F32"), "f32")


def decoder_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a decoder's parameters, as transformers' state_dict has them."""
    hidden, inner, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part, rows, columns in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            yield f"{layer}.self_attn.{part}_proj.weight", (rows, columns)
            if config.get("attention_bias") or (kind == "qwen2" and part != "o"):
                yield f"{layer}.self_attn.{part}_proj.bias", (rows,)
        if kind == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (size,)
            yield f"{layer}.self_attn.k_norm.weight", (size,)
        for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield f"{layer}.mlp.{part}_proj.weight", (rows, columns)
            if config.get("mlp_bias"):
                yield f"{layer}.mlp.{part}_proj.bias", (rows,)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], hidden)


def bert_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a BertModel's parameters, without pooler."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], hidden)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], hidden)
    yield "embeddings.token_type_embeddings.weight", (2, hidden)
    norms = ["embeddings.LayerNorm"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        linear = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linear |= {
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for part, shape in linear.items():
            yield f"{layer}.{part}.weight", shape
            yield f"{layer}.{part}.bias", shape[:1]
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
        yield f"{norm}.bias", (hidden,)


def _side_file(path: str, text: str) -> SourceFile:
    return SourceFile(path, Buffer.of(path, np.frombuffer(text.encode(), np.uint8), "U8"))


MakeModel = Callable[..., Model]


@pytest.fixture
def make_model() -> MakeModel:
    """make_model(model_type, files={path: text}, drop=(names,), arrays={name: array}, **fields of the config)."""

    def make(
        kind: str,
        files: Mapping[str, str] | None = None,
        drop: tuple[str, ...] = (),
        dialect: str = "hf",
        arrays: Mapping[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> Model:
        config = {**SMALL, "model_type": kind, **fields}
        if kind == "bert":
            del config["num_key_value_heads"]
        shapes = bert_shapes if kind == "bert" else decoder_shapes
        tensors = {name: tensor(by_rule(name, shape)) for name, shape in shapes(config) if name not in drop}
        tensors |= {name: tensor(array) for name, array in (arrays or {}).items()}
        side = tuple(_side_file(path, text) for path, text in (files or {}).items())
        return Model("safetensors", "small", tensors, config, dialect, side, build_graph=build_graph)

    return make
