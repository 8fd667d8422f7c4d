"""The folder of Hugging Face: shards, indices, side files, and what does not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from packed_layers import assert_comes_back, open_
from safetensors.numpy import save_file

from qdeploy.errors import AmbiguousError, BadFileError, QdeployError, UnsupportedError
from qdeploy.formats.huggingface.checkpoint import INDEX, Checkpoint
from qdeploy.ir.element import as_value
from qdeploy.store.folder import Folder

ONE = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "scalar": np.array(7, np.float32)}
TWO = {
    "b.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "empty": np.zeros((0, 5), np.int64),
    "flags": np.array([True, False]),
}


def sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    save_file(ONE, folder / "one.safetensors")
    save_file(TWO, folder / "two.safetensors")
    full = dict.fromkeys(ONE, "one.safetensors") | dict.fromkeys(TWO, "two.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": full if weight_map is None else weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    model = open_(sharded(tmp_path / "c"))
    assert set(model.tensors) == set(ONE) | set(TWO)
    for name, array in (ONE | TWO).items():
        assert model.tensors[name].shape == array.shape
        assert np.array_equal(model.tensors[name].decode(), array.astype(np.float32)), name
    assert_comes_back(model, tmp_path / "c")


def test_every_other_file_is_carried(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "c")
    (folder / "sub").mkdir()
    (folder / "sub" / "words.txt").write_bytes(b"\x00\xff")
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".hidden").write_text("no")
    files = {f.path: (f.role, f.data.read().tobytes()) for f in open_(folder).files}
    assert files["sub/words.txt"] == ("side", b"\x00\xff")
    assert files["empty.txt"] == ("side", b"")
    assert set(files) == {"config.json", INDEX, "sub/words.txt", "empty.txt", "one.safetensors", "two.safetensors"}
    head = files["one.safetensors"][1]
    assert files["one.safetensors"][0] == "head"
    assert (folder / "one.safetensors").read_bytes().startswith(head)
    assert head[8:].rstrip().endswith(b"}")


def test_a_bare_file_is_a_checkpoint(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "some.safetensors")
    assert set(open_(tmp_path / "some.safetensors").tensors) == set(ONE)


def test_a_bare_file_of_packed_tensors_is_not_guessed(tmp_path: Path) -> None:
    save_file({"p.qweight": np.zeros((4, 8), np.int32)}, tmp_path / "some.safetensors")
    with pytest.raises(UnsupportedError, match="understand"):
        open_(tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a.weight": "three.safetensors"}, "three"),
        ({"a.weight": "two.safetensors", "b.weight": "two.safetensors"}, "a.weight"),
        ({"a.weight": "one.safetensors", "ghost": "one.safetensors"}, "ghost"),
        ({"a.weight": "../one.safetensors"}, "outside"),
        ({"a.weight": "/etc/passwd"}, "outside"),
        ({"a.weight": "sub/../../x"}, "outside"),
        ({"a.weight": "one.safetensors\0"}, "one"),
        ({"a.weight": "\ud800"}, "ud800"),
        ({"a.weight": ""}, "name"),
        ({"a.weight": "."}, "refused"),
        ({"a.weight": 3}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: dict[str, str], named: str) -> None:
    folder = sharded(tmp_path / "c", weight_map)
    with pytest.raises(BadFileError) as caught:
        open_(folder)
    assert named in str(caught.value)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "c")
    save_file(ONE | TWO, folder / "two.safetensors")
    with pytest.raises(AmbiguousError):
        open_(folder)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "c")
    (folder / INDEX).unlink()
    with pytest.raises(BadFileError, match="no index"):
        open_(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(QdeployError):
        open_(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"quantization_config": '])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "c")
    (folder / "config.json").write_text(text)
    with pytest.raises(BadFileError):
        open_(folder)


@pytest.mark.parametrize("shard", ["one.safetensors", "two.safetensors"])
def test_a_shard_that_ends_early(tmp_path: Path, shard: str) -> None:
    whole = (sharded(tmp_path / "c") / shard).read_bytes()
    for size in (*range(0, len(whole), 16), len(whole) - 1):
        (tmp_path / "c" / shard).write_bytes(whole[:size])
        with pytest.raises(BadFileError):
            open_(tmp_path / "c")
    (tmp_path / "c" / shard).write_bytes(whole + b"\0")
    with pytest.raises(BadFileError):
        open_(tmp_path / "c")


def test_integers_of_every_width_are_carried(tmp_path: Path) -> None:
    big = np.array([0, 1, 1 << 63], np.uint64)
    save_file({"big": big}, tmp_path / "model.safetensors")
    tensor = open_(tmp_path).tensors["big"]
    np.testing.assert_array_equal(tensor.decode(), big.astype(np.float32))
    np.testing.assert_array_equal(as_value(tensor), big)


def test_types_that_have_no_number_format(tmp_path: Path) -> None:
    header = json.dumps({"pair": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(QdeployError, match="type") as caught:
        open_(tmp_path).tensors["pair"].decode()
    assert "C64" in caught.value.found


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (None, ""),
        ({}, ""),
        ({"quant_method": "AWQ"}, "awq"),
        ({"bits": 4}, "gptq"),
        ({"w_bit": 4}, "awq"),
        ({"anything": 1}, "unnamed"),
    ],
)
def test_the_method_of_a_checkpoint(tmp_path: Path, settings: dict[str, object] | None, method: str) -> None:
    config = {} if settings is None else {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Checkpoint(Folder(tmp_path)).method == method
