"""Nothing stored is left out in silence, and nothing missing is replaced in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qdeploy
from qdeploy.errors import BadFileError, UnsupportedError

TINY = Path("examples/models/tiny-llama")


def checkpoint(tmp_path: Path, add: dict[str, Any], drop: str = "", **config: Any) -> Path:
    path = tmp_path / "model"
    shutil.copytree(TINY, path)
    tensors = load_file(path / "model.safetensors")
    tensors.pop(drop, None)
    save_file({**tensors, **add}, path / "model.safetensors")
    loaded = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**loaded, **config}))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "base_model.model.lm_head.weight",
        "v_head.weight",
        "rope_freqs.weight",
    ],
)
def test_a_tensor_that_nothing_uses_is_refused_by_its_name(tmp_path: Path, name: str):
    path = checkpoint(tmp_path, {name: np.ones((4, 8), np.float32)})
    with pytest.raises(UnsupportedError, match="does not use") as caught:
        qdeploy.convert(path, tmp_path / "out")
    assert caught.value.where == name and not (tmp_path / "out").exists()


def test_tensors_alone_are_carried_with_a_note(tmp_path: Path):
    path = checkpoint(tmp_path, {"v_head.weight": np.ones((4, 8), np.float32)})
    report = qdeploy.convert(path, tmp_path / "package", to="ir")
    assert any("no graph" in note and "does not use" in note for note in report["notes"])
    assert "v_head.weight" in report["tensors"]


def test_buffers_that_the_configuration_implies_are_left_out(tmp_path: Path):
    inv = np.ones(16, np.float32)
    path = checkpoint(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": inv, "model.rotary_emb.inv_freq": inv})
    assert qdeploy.load(path).graph.nodes


def test_a_missing_head_is_an_error_where_the_configuration_says_untied(tmp_path: Path):
    path = checkpoint(tmp_path, {}, drop="lm_head.weight", tie_word_embeddings=False)
    with pytest.raises(BadFileError, match="missing") as caught:
        qdeploy.convert(path, tmp_path / "out")
    assert "lm_head" in caught.value.where and "tie_word_embeddings" in caught.value.found


def test_a_missing_head_is_the_embedding_where_the_configuration_says_tied(tmp_path: Path):
    model = qdeploy.load(checkpoint(tmp_path, {}, drop="lm_head.weight", tie_word_embeddings=True))
    assert model.graph.nodes[-1].inputs[1] == "model.embed_tokens.weight" and not model.notes


def test_the_head_of_pre_training_is_named_when_it_is_left_out(testdata: Path):
    model = qdeploy.load(testdata / "architectures/arch-bert-a")
    model.config["architectures"] = ["BertForPreTraining"]
    _ = model.graph
    assert any("cls.predictions.bias" in note for note in model.notes)
