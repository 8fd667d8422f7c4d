"""Causal decoders that are stored without their output projection, and text models within larger ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model

IDS = np.array([[5, 9, 2, 31, 7], [1, 3, 8, 2, 2]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def bare(model: Model) -> Model:
    """The same model as its library saves it without a head."""
    model.tensors = {name.removeprefix("model."): tensor for name, tensor in model.tensors.items()}
    return model


@pytest.mark.parametrize("kind, name", [("llama", "LlamaModel"), ("qwen2", "Qwen2Model"), ("mistral", "MistralModel")])
def test_hidden_states_of_a_bare_decoder_give_the_logits_of_the_whole_one(make_model: Any, kind: str, name: str):
    whole = make_model(kind, tie_word_embeddings=True)
    hidden = bare(make_model(kind, tie_word_embeddings=True, architectures=[name])).run(input_ids=IDS)
    table = whole.tensors["model.embed_tokens.weight"].decode()
    logits = whole.run(input_ids=IDS)["logits"]
    assert set(hidden) == {"last_hidden_state"}
    np.testing.assert_allclose(hidden["last_hidden_state"] @ table.T, logits, rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen_by_a_bare_decoder(make_model: Any):
    model = make_model("qwen3", architectures=["Qwen3Model"], head_dim=8, drop=("lm_head.weight",))
    both = model.run(input_ids=IDS, attention_mask=MASK)["last_hidden_state"]
    alone = model.run(input_ids=IDS[1:, :3])["last_hidden_state"]
    np.testing.assert_allclose(both[1:, :3], alone, rtol=1e-5, atol=1e-6)


def test_a_sequence_is_scored_at_its_last_token(make_model: Any):
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    states = make_model("llama", architectures=["LlamaModel"], drop=("lm_head.weight",))
    hidden = states.run(input_ids=IDS, attention_mask=MASK)["last_hidden_state"]
    scored = make_model(
        "llama",
        architectures=["LlamaForSequenceClassification"],
        num_labels=3,
        drop=("lm_head.weight",),
        arrays={"score.weight": weight},
    )
    logits = scored.run(input_ids=IDS, attention_mask=MASK)["logits"]
    np.testing.assert_allclose(logits, hidden[[0, 1], [4, 2]] @ weight.T, rtol=1e-4, atol=1e-5)


def test_a_bare_decoder_of_recurrent_layers_is_refused_by_its_name(make_model: Any):
    fields = {"layer_types": ["conv", "full_attention"], "architectures": ["Lfm2Model"]}
    with pytest.raises(UnsupportedError) as caught:
        _ = make_model("lfm2", **fields).graph
    assert "Lfm2Model" in str(caught.value)


@pytest.mark.parametrize("prefix, head", [("language_model.", "language_model."), ("model.language_model.", "")])
def test_the_text_model_of_a_larger_one_is_found_by_its_configuration(make_model: Any, prefix: str, head: str):
    text = make_model("llama")
    outer = {"model_type": "llava", "architectures": ["Llava"], "text_config": dict(text.config), "vision_config": {}}
    tensors = {
        (head + name if name.startswith("lm_head") else prefix + (name if head else name.removeprefix("model."))): value
        for name, value in text.tensors.items()
    }
    tower = {"vision_tower.proj.weight": next(iter(text.tensors.values()))}
    larger = Model("safetensors", "small", {**tensors, **tower}, outer, build_graph=text.build_graph)
    np.testing.assert_array_equal(larger.run(input_ids=IDS)["logits"], text.run(input_ids=IDS)["logits"])
    assert any("vision_tower (1 tensors)" in note for note in larger.notes), json.dumps(larger.notes)
