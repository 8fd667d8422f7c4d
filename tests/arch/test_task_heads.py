"""Heads decide what a graph gives: each is held against the same arithmetic, written out behind the hidden states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError

IDS = [[5, 9, 2, 31, 7], [1, 3, 8, 2, 2]]
LABELS = {"0": "no", "1": "yes", "2": "perhaps"}
Array = npt.NDArray[np.float32]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2, np.float32)


def norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * weight + bias, np.float32)


def states(make_model: Any) -> tuple[Array, dict[str, Any]]:
    model = make_model("bert")
    return model.run(input_ids=IDS)["last_hidden_state"], dict(model.tensors)


def with_head(make_model: Any, name: str, parameters: dict[str, Array], **fields: Any) -> Any:
    return make_model("bert", arrays=parameters, architectures=[name], **fields)


def test_a_masked_language_model_scores_the_vocabulary_through_the_tied_table(make_model: Any) -> None:
    hidden, tensors = states(make_model)
    size = hidden.shape[-1]
    table = tensors["embeddings.word_embeddings.weight"].decode()
    dense, bias, scale, shift, last = (
        random(0, size, size),
        *(random(i, size) for i in (1, 2, 3)),
        random(4, len(table)),
    )
    parameters = {
        "cls.predictions.transform.dense.weight": dense,
        "cls.predictions.transform.dense.bias": bias,
        "cls.predictions.transform.LayerNorm.weight": scale,
        "cls.predictions.transform.LayerNorm.bias": shift,
        "cls.predictions.bias": last,
    }
    logits = with_head(make_model, "BertForMaskedLM", parameters).run(input_ids=IDS)["logits"]
    expected = norm(gelu(hidden @ dense.T + bias), scale, shift) @ table.T + last
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_scores_the_first_token_through_its_pooler(make_model: Any) -> None:
    hidden, _ = states(make_model)
    size = hidden.shape[-1]
    dense, bias, last, shift = random(0, size, size), random(1, size), random(2, 3, size), random(3, 3)
    parameters = {
        "pooler.dense.weight": dense,
        "pooler.dense.bias": bias,
        "classifier.weight": last,
        "classifier.bias": shift,
    }
    model = with_head(make_model, "BertForSequenceClassification", parameters, id2label=LABELS)
    expected = np.tanh(hidden[:, 0] @ dense.T + bias) @ last.T + shift
    assert np.allclose(model.run(input_ids=IDS)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_tags_and_answers_are_scores_per_token(make_model: Any) -> None:
    hidden, _ = states(make_model)
    last, shift = random(2, 3, hidden.shape[-1]), random(3, 3)
    parameters = {"classifier.weight": last, "classifier.bias": shift}
    tags = with_head(make_model, "BertForTokenClassification", parameters, id2label=LABELS)
    assert np.allclose(tags.run(input_ids=IDS)["logits"], hidden @ last.T + shift, rtol=1e-4, atol=1e-5)
    parameters = {"qa_outputs.weight": last[:2], "qa_outputs.bias": shift[:2]}
    spans = with_head(make_model, "BertForQuestionAnswering", parameters).run(input_ids=IDS)
    expected = hidden @ last[:2].T + shift[:2]
    assert np.allclose(spans["start_logits"], expected[..., 0], rtol=1e-4, atol=1e-5)
    assert np.allclose(spans["end_logits"], expected[..., 1], rtol=1e-4, atol=1e-5)


def test_a_head_of_another_size_than_the_labels_is_refused(make_model: Any) -> None:
    size = states(make_model)[0].shape[-1]
    parameters = {"classifier.weight": random(2, 4, size), "classifier.bias": random(3, 4)}
    with pytest.raises(BadFileError, match="id2label"):
        _ = with_head(make_model, "BertForTokenClassification", parameters, id2label=LABELS).graph


def test_a_head_that_is_stored_and_not_built_is_an_error(make_model: Any) -> None:
    size = states(make_model)[0].shape[-1]
    parameters = {"classifier.weight": random(2, 3, size), "classifier.bias": random(3, 3)}
    with pytest.raises(UnsupportedError, match="classifier"):
        _ = make_model("bert", arrays=parameters).graph
    with pytest.raises(UnsupportedError, match="BertForMultipleChoice"):
        _ = with_head(make_model, "BertForMultipleChoice", parameters).graph


def test_a_table_that_is_stored_twice_must_be_one(make_model: Any) -> None:
    hidden, tensors = states(make_model)
    size, table = hidden.shape[-1], tensors["embeddings.word_embeddings.weight"].decode()
    parameters = {
        "cls.predictions.transform.dense.weight": random(0, size, size),
        "cls.predictions.transform.dense.bias": random(1, size),
        "cls.predictions.transform.LayerNorm.weight": random(2, size),
        "cls.predictions.transform.LayerNorm.bias": random(3, size),
        "cls.predictions.bias": random(4, len(table)),
        "cls.predictions.decoder.weight": table + 1,
    }
    with pytest.raises(BadFileError, match="stored twice"):
        _ = with_head(make_model, "BertForMaskedLM", parameters).graph


def test_an_input_that_the_graph_does_not_have_is_refused(make_model: Any) -> None:
    with pytest.raises(BadArgumentError, match="pixel_values"):
        make_model("bert").run(pixel_values=[[1]])
