"""Folders as they are found: in the hub's cache, half fetched, with stale indexes and numbers that are none."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qdeploy
from qdeploy.errors import AmbiguousError, BadFileError, QdeployError
from qdeploy.patterns import Pattern

TINY = Path("examples/models/tiny-llama")
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4988072\n"
PAGE = "<!DOCTYPE html><html><body>Access denied</body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def cached(folder: Path, under: str = "", name: str = "models--acme--tiny") -> Path:
    """The layout of the hub's cache: links in a snapshot lead to blobs."""
    repository = folder.parent / name
    snapshot = repository / "snapshots/0123abcd" / under
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        blob = repository / "blobs" / f"sha-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path(*[".."] * (3 if under else 2), "blobs", blob.name))
    return repository


@pytest.mark.parametrize("under", ["", "onnx"])
def test_a_snapshot_of_the_hubs_cache_and_a_folder_in_it_are_read(folder: Path, under: str):
    repository = cached(folder, under)
    assert qdeploy.load(repository / "snapshots/0123abcd" / under).graph.nodes


def test_the_repository_folder_itself_is_its_main_revision(folder: Path):
    repository = cached(folder)
    assert qdeploy.load(repository).graph.nodes
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abcd\n")
    (repository / "snapshots/other").mkdir()
    assert qdeploy.load(repository).graph.nodes
    (repository / "refs/main").write_text("../../../etc")
    with pytest.raises(BadFileError, match="main revision"):
        qdeploy.load(repository)


def test_a_link_out_of_the_repository_is_still_refused(folder: Path):
    repository = cached(folder)
    secret = folder.parent / "secret"
    secret.write_text("{}")
    link = repository / "snapshots/0123abcd/config.json"
    link.unlink()
    link.symlink_to(secret)
    with pytest.raises(BadFileError, match="leads outside"):
        qdeploy.load(repository)


@pytest.mark.parametrize(("text", "match"), [(POINTER, "Git-LFS"), (PAGE, "web page")])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_what_stands_in_the_place_of_a_file_is_recognised(
    folder: Path, tmp_path: Path, name: str, text: str, match: str
):
    (folder / name).write_text(text)
    with pytest.raises(BadFileError, match=match) as caught:
        qdeploy.convert(folder, tmp_path / "out")
    assert caught.value.where == name


@pytest.mark.parametrize("name", ["m.gguf", "m.onnx", "m.tflite"])
def test_a_pointer_in_the_place_of_a_single_file_is_recognised(tmp_path: Path, name: str):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(BadFileError, match="Git-LFS"):
        qdeploy.load(tmp_path / name)


def test_a_tied_head_that_an_index_lists_and_nobody_stores_is_the_embedding(folder: Path):
    content = tensors(folder)
    content.pop("lm_head.weight", None)
    save_file(content, folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors").unlink()
    names = [*content, "lm_head.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert qdeploy.load(folder).graph.nodes[-1].inputs[1] == "model.embed_tokens.weight"
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(BadFileError, match="index and the shards disagree"):
        qdeploy.load(folder)


def test_a_stale_index_beside_a_whole_file_is_noted_and_two_sets_of_weights_are_ambiguous(folder: Path):
    content = tensors(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(content, "model-00001-of-00002.safetensors")}))
    model = qdeploy.load(folder)
    assert set(model.tensors) == set(content) and any(INDEX in note for note in model.notes)
    save_file(content, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(AmbiguousError, match="whole model"):
        qdeploy.load(folder)


def test_numbers_that_json_does_not_have_and_keys_that_occur_twice_are_taken_as_transformers_does(
    folder: Path, tmp_path: Path
):
    text = (folder / "config.json").read_text().strip().removesuffix("}")
    (folder / "config.json").write_text(text + ', "time": Infinity, "x": NaN, "x": 1, "y": NaN}')
    for to in ("ir", "onnx", "native"):
        qdeploy.convert(folder, tmp_path / to, to=to, check="none")
    assert qdeploy.load(tmp_path / "ir").config["y"] == "NaN"
    (folder / "config.json").write_text(text + ', "rms_norm_eps": NaN}')
    with pytest.raises(BadFileError) as caught:
        _ = qdeploy.load(folder).graph
    assert "rms_norm_eps" in caught.value.where


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("to", ["ir", "onnx", "native"])
def test_a_weight_that_is_no_number_is_named_and_refused_or_carried(
    folder: Path, tmp_path: Path, value: float, to: str
):
    name = "model.layers.0.mlp.up_proj.weight"
    content = tensors(folder)
    content[name] = content[name].copy()
    content[name][5, 0] = value
    save_file(content, folder / "model.safetensors")
    with pytest.raises(BadFileError, match="a weight is") as caught:
        qdeploy.convert(folder, tmp_path / "out", to=to)
    assert caught.value.where == f"{name}, row 5" and "--allow-nonfinite" in caught.value.todo
    report = qdeploy.convert(folder, tmp_path / "out", to=to, allow_nonfinite=True)
    assert any(name in note for note in report["notes"])


@pytest.mark.parametrize(
    "expression",
    ["(a|aa)+$" + "(x+x+)+y", "((a{1000}){1000}){1000}", "a" * 5000, "(?:a?){999}a{999}", "((((((a|a)*)*)*)*)*)*c"],
)
def test_a_hostile_expression_costs_a_moment(expression: str):
    start = time.process_time()
    try:
        assert Pattern(expression, "dynamic").search("x" * 60 + "a" * 60) in (True, False)
    except QdeployError as error:
        assert error.where == "dynamic"
    assert time.process_time() - start < 1.5


def split(folder: Path) -> None:
    """The weights in two files that are numbered, as converters without an index write them."""
    every = tensors(folder)
    for number, names in enumerate((list(every)[::2], list(every)[1::2]), 1):
        save_file({name: every[name] for name in names}, folder / f"output-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()


def test_shards_that_number_themselves_need_no_index(folder: Path):
    wanted = qdeploy.load(folder).tensors
    wanted = {name: wanted[name].decode() for name in wanted}
    split(folder)
    model = qdeploy.load(folder)
    assert set(model.tensors) == set(wanted)
    np.testing.assert_array_equal(model.tensors["lm_head.weight"].decode(), wanted["lm_head.weight"])
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00007.safetensors"}}))
    model = qdeploy.load(folder)
    assert set(model.tensors) == set(wanted) and any("was left out" in note for note in model.notes)


def test_a_shard_that_is_missing_among_numbered_ones_is_refused(folder: Path):
    split(folder)
    (folder / "output-00001-of-00002.safetensors").rename(folder / "output-00003-of-00002.safetensors")
    with pytest.raises(BadFileError, match="no index"):
        qdeploy.load(folder)
    (folder / "output-00003-of-00002.safetensors").rename(folder / "output-00001-of-00003.safetensors")
    with pytest.raises(BadFileError, match="no index"):
        qdeploy.load(folder)
