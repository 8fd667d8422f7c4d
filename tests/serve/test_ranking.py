"""A cross-encoder behind the API: documents in the order of their scores, which are those of the interpreter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import qdeploy
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.native import Runtime, rank
from tests.serve.conftest import Client, serving

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cats", "purr", "dogs", "bark", "stocks", "fall"]
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "num_labels": 1,
    "id2label": {"0": "LABEL_0"},
}
DOCUMENTS = ["dogs bark", "cats purr", "stocks fall"]


def _tensors() -> dict[str, np.ndarray]:
    random, hidden, inner = np.random.default_rng(3), 32, 48
    tables = {"word": len(WORDS), "position": 16, "token_type": 2}
    shapes = {f"bert.embeddings.{name}_embeddings.weight": (rows, hidden) for name, rows in tables.items()}
    layer = "bert.encoder.layer.0"
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        shapes |= {f"{layer}.{name}.weight": (hidden, hidden), f"{layer}.{name}.bias": (hidden,)}
    shapes |= {f"{layer}.intermediate.dense.weight": (inner, hidden), f"{layer}.intermediate.dense.bias": (inner,)}
    shapes |= {f"{layer}.output.dense.weight": (hidden, inner), f"{layer}.output.dense.bias": (hidden,)}
    for name in ("bert.embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{name}.LayerNorm.weight": (hidden,), f"{name}.LayerNorm.bias": (hidden,)}
    shapes |= {"bert.pooler.dense.weight": (hidden, hidden), "bert.pooler.dense.bias": (hidden,)}
    shapes |= {"classifier.weight": (1, hidden), "classifier.bias": (1,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("reranker")
    save_file(_tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def reranker(source: Path) -> Path:
    file = source.parent / "reranker.qd"
    qdeploy.convert(source, file, to="native")
    return file


@pytest.fixture(scope="module")
def client(reranker: Path) -> Iterator[Client]:
    with serving(reranker) as served:
        yield served


def test_scores_are_those_of_the_interpreter_with_the_types_of_both_texts(source: Path, reranker: Path):
    model, wanted = qdeploy.load(source), []
    for document in DOCUMENTS:
        ids = [2, *(WORDS.index(w) for w in ["cats", "bark"]), 3, *(WORDS.index(w) for w in document.split()), 3]
        types = [0] * 4 + [1] * 3
        feeds = {"input_ids": [ids], "attention_mask": [[1] * 7], "token_type_ids": [types]}
        wanted.append(float(model.run(**{name: np.array(rows) for name, rows in feeds.items()})["logits"][0, 0]))
    with Runtime(reranker, threads=1, activations="exact") as runtime:
        np.testing.assert_allclose(rank(runtime, "cats bark", DOCUMENTS), wanted, rtol=1e-4, atol=1e-5)
        with pytest.raises(BadArgumentError, match="too long"):
            rank(runtime, "cats " * 20, DOCUMENTS)


def test_documents_come_in_the_order_of_their_scores(client: Client):
    answer = client.post("/v1/rerank", query="cats bark", documents=DOCUMENTS, return_documents=True).json
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    assert [result["document"]["text"] for result in answer["results"]] == [
        DOCUMENTS[result["index"]] for result in answer["results"]
    ]
    assert answer["usage"]["total_tokens"] == 21 and "memory" in answer["qdeploy"]
    documents = [{"text": document} for document in DOCUMENTS]
    raw = client.post("/v1/rerank", query="cats bark", documents=documents, raw_scores=True, top_n=1).json["results"]
    assert [result["index"] for result in raw] == [answer["results"][0]["index"]]
    assert math.isclose(1 / (1 + math.exp(-raw[0]["relevance_score"])), scores[0])


@pytest.mark.parametrize(
    "body",
    [
        {"query": "", "documents": DOCUMENTS},
        {"query": "cats", "documents": []},
        {"query": "cats", "documents": ["x"] * 999},
        {"query": "cats", "documents": [{"title": "x"}]},
        {"query": "cats", "documents": DOCUMENTS, "top_n": 0},
        {"query": "cats", "documents": ["cats " * 40]},
    ],
)
def test_what_cannot_be_ranked_is_refused(client: Client, body: dict[str, object]):
    assert client.post("/v1/rerank", **body).status == 400


def test_other_models_do_not_rank(tiny: Path, source: Path, tmp_path: Path):
    with serving(tiny) as served:
        assert served.post("/v1/rerank", query="a", documents=["b"]).status == 400
    plain = json.loads((source / "config.json").read_text()) | {"num_labels": 2, "id2label": {"0": "a", "1": "b"}}
    folder = tmp_path / "two"
    folder.mkdir()
    tensors = _tensors()
    save_file(
        tensors | {"classifier.weight": np.ones((2, 32), np.float32), "classifier.bias": np.ones(2, np.float32)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(plain))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    qdeploy.convert(folder, tmp_path / "two.qd", to="native")
    with Runtime(tmp_path / "two.qd", threads=1) as runtime, pytest.raises(UnsupportedError, match="score pairs"):
        rank(runtime, "cats", DOCUMENTS)
