"""One vector or score per sequence, whatever family and pooling: the runtime gives what the interpreter gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.backends.native import BACKEND
from qdeploy.backends.native.options import Options
from qdeploy.ir.model import Model
from tests.arch.conftest import bert_shapes, by_rule, decoder_shapes, tensor
from tests.arch.test_sentence import described, pooling

pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)

from qdeploy.arch import build_graph
from qdeploy.ir.model import SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.native import Runtime

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
IDS = [5, 9, 2, 31, 7, 1, 40]
"""One of them is the padding of the configurations below."""


def model(kind: str, shapes: dict[str, tuple[int, ...]], files: dict[str, str], **fields: Any) -> Model:
    tensors = {name: tensor(by_rule(name, shape)) for name, shape in shapes.items()}
    side = tuple(
        SourceFile(path, Buffer.of(path, np.frombuffer(text.encode(), np.uint8), "U8")) for path, text in files.items()
    )
    return Model("safetensors", kind, tensors, SIZES | {"model_type": kind} | fields, "hf", side, (), build_graph)


def encoder(kind: str, pool: str) -> Model:
    shapes = dict(bert_shapes(SIZES))
    return model(kind, shapes, described({"1_Pooling": pooling(pool)}), pad_token_id=2)


def causal(name: str, **fields: Any) -> Model:
    config = SIZES | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}
    shapes = {key.removeprefix("model."): shape for key, shape in decoder_shapes(config)}
    shapes |= {"score.weight": (3, 32)} if "Classification" in name else {}
    shapes |= {"score.bias": (3,)} if "Token" in name else {}
    files = {} if "Classification" in name else described({"1_Pooling": pooling("lasttoken")})
    return model("llama", shapes, files, num_key_value_heads=2, architectures=[name], num_labels=3, **fields)


CASES = {
    "positions that padding has none of": encoder("roberta", "mean_tokens"),
    "the last token": encoder("bert", "lasttoken"),
    "the greatest of each column": encoder("roberta", "max_tokens"),
    "a bare decoder": causal("LlamaModel"),
    "a decoder that scores sequences": causal("LlamaForSequenceClassification"),
    "a decoder that scores tokens": causal("LlamaForTokenClassification"),
    "an activation with a number of its own": causal("LlamaModel", hidden_act="quick_gelu"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_runtime_gives_what_the_interpreter_gives(tmp_path: Path, case: str):
    source = CASES[case]
    BACKEND.lower(source, tmp_path, Options())
    expected = source.run(input_ids=[IDS])
    with Runtime(tmp_path / "model.qd", threads=1, activations="exact") as runtime:
        outputs = runtime.run(IDS)
    assert set(outputs) == set(expected), json.dumps(sorted(outputs))
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name].reshape(array.shape), array, rtol=1e-3, atol=2e-5, err_msg=name)
