"""Token ids, sampling and chat template come from one place, the same for every target."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qdeploy
from qdeploy.arch.generation import chat_templates
from qdeploy.errors import BadFileError
from qdeploy.native import Runtime

TINY = Path("examples/models/tiny-llama")


def checkpoint(tmp_path: Path, generation: Any, **config: Any) -> Path:
    path = tmp_path / "model"
    shutil.copytree(TINY, path)
    (path / "generation_config.json").write_text(json.dumps(generation))
    loaded = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**loaded, **config}))
    return path


def test_every_target_stops_at_every_stop_token_of_the_generation_config(tmp_path: Path):
    path = checkpoint(tmp_path, {"eos_token_id": [0, 13]}, eos_token_id=2)
    qdeploy.convert(path, tmp_path / "out", check="none")
    qdeploy.convert(path, tmp_path / "m.qd", to="native", check="none")
    qdeploy.convert(path, tmp_path / "package", to="ir")
    assert json.loads((tmp_path / "out/genai_config.json").read_text())["model"]["eos_token_id"] == [0, 13]
    with Runtime(tmp_path / "m.qd") as runtime:
        assert runtime.meta["eos_token_id"] == [0, 13]
    assert qdeploy.load(tmp_path / "package").graph.meta["eos_token_id"] == [0, 13]


def test_config_json_is_the_default(tmp_path: Path):
    meta = qdeploy.load(checkpoint(tmp_path, {}, bos_token_id=4, eos_token_id=[5, 6], pad_token_id=7)).graph.meta
    assert [meta[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [4, [5, 6], 7]


@pytest.mark.parametrize("bad", [-1, 10_000_000, "</s>", 1.5, True])
def test_ids_outside_of_the_vocabulary_are_left_out_with_a_note(tmp_path: Path, bad: Any):
    model = qdeploy.load(checkpoint(tmp_path, {"pad_token_id": bad, "eos_token_id": [1, bad]}, pad_token_id=None))
    assert "pad_token_id" not in model.graph.meta
    assert model.graph.meta["eos_token_id"] == [1]
    assert sum("is no token" in note for note in model.notes) == 2


def test_a_generation_config_that_is_no_json_is_an_error(tmp_path: Path):
    path = checkpoint(tmp_path, {})
    (path / "generation_config.json").write_text("{")
    with pytest.raises(BadFileError, match="JSON"):
        _ = qdeploy.load(path).graph


def test_the_chat_template_stands_in_a_file_or_in_the_tokenizers_configuration():
    inside = json.dumps({"chat_template": "a"}).encode()
    named = json.dumps({"chat_template": [{"name": "default", "template": "b"}, {"name": "tools", "template": "c"}]})
    assert chat_templates({"tokenizer_config.json": inside, "chat_template.jinja": b"own"}) == {"default": "own"}
    assert chat_templates({"tokenizer_config.json": inside}) == {"default": "a"}
    assert chat_templates({"tokenizer_config.json": named.encode()}) == {"default": "b", "tools": "c"}
    assert chat_templates({"tokenizer_config.json": b"{}", "chat_template.json": inside}) == {"default": "a"}
    assert chat_templates({}) == {}


def test_settings_that_cannot_be_meant_are_left_out_with_a_note(tmp_path: Path):
    wrong = {"temperature": "hot", "top_p": 7, "top_k": -3, "min_p": [1], "repetition_penalty": -1, "do_sample": "yes"}
    path = checkpoint(tmp_path, wrong | {"eos_token_id": 1})
    qdeploy.convert(path, tmp_path / "out", check="none")
    search = json.loads((tmp_path / "out/genai_config.json").read_text())["search"]
    notes = json.loads((tmp_path / "out/report.json").read_text())["notes"]
    for name, value in wrong.items():
        assert search.get(name) != value
        assert any(f"{name} {value!r}" in note for note in notes), name


@pytest.mark.parametrize("loaded", [[1, 2], "text", 3])
def test_a_generation_config_that_is_no_object_is_an_error(tmp_path: Path, loaded: Any):
    with pytest.raises(BadFileError, match="no object"):
        _ = qdeploy.load(checkpoint(tmp_path, loaded)).graph
