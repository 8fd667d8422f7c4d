"""Whatever is wrong with the input: one clear error, exit code 2, and nothing under the output's name."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qdeploy
from qdeploy.errors import QdeployError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples/models/tiny-llama-gptq"
LAYER = "model.layers.0.mlp.down_proj"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qdeploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the small GPTQ checkpoint that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "source"))


def refused(source: Path, tmp_path: Path, to: str = "ir", **options: object) -> QdeployError:
    """Converts, expects an error of the family, and that nothing is left under the output's name."""
    target = tmp_path / "out"
    with pytest.raises(QdeployError) as caught:
        qdeploy.convert(source, target, to=to, **options)
    assert not target.exists()
    assert caught.value.what
    assert len(caught.value.lines()) <= 3
    return caught.value


def edit_tensors(source: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")


def edit_config(source: Path, change: Callable[[dict], object], name: str = "config.json") -> None:
    config = json.loads((source / name).read_text())
    change(config)
    (source / name).write_text(json.dumps(config))


def test_truncated_at_every_64th_byte_of_the_head_and_sampled_beyond(source: Path, tmp_path: Path):
    whole = (source / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, head, 64), *range(head, len(whole), 64 * 331), len(whole) - 1]
    for place in places:
        (source / "model.safetensors").write_bytes(whole[:place])
        error = refused(source, tmp_path)
        assert "model.safetensors" in str(error), place


def test_trailing_bytes_are_refused(source: Path, tmp_path: Path):
    with open(source / "model.safetensors", "ab") as file:
        file.write(b"\0" * 16)
    refused(source, tmp_path)


def test_every_flipped_bit_of_the_header_is_refused_or_harmless(source: Path, tmp_path: Path):
    whole = (source / "model.safetensors").read_bytes()
    for place in range(0, 8 + int.from_bytes(whole[:8], "little"), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (source / "model.safetensors").write_bytes(damaged)
        try:
            model = qdeploy.load(source)
            for tensor in model.tensors.values():
                tensor.decode()
        except QdeployError:
            pass


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 40, (1 << 63) + 5])
def test_a_header_length_that_lies_is_refused_before_anything_is_allocated(source: Path, tmp_path: Path, length: int):
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", length) + whole[8:])
    refused(source, tmp_path)


@pytest.mark.parametrize("suffix", [".qweight", ".scales", ".qzeros", ".g_idx"])
def test_a_tensor_of_the_wrong_size_is_named(source: Path, tmp_path: Path, suffix: str):
    def shrink(tensors: dict[str, np.ndarray]) -> None:
        tensors[LAYER + suffix] = np.ascontiguousarray(tensors[LAYER + suffix][:-1])

    edit_tensors(source, shrink)
    assert LAYER in str(refused(source, tmp_path))


@pytest.mark.parametrize("suffix", [".qweight", ".scales", ".qzeros"])
def test_a_tensor_that_is_missing_is_named(source: Path, tmp_path: Path, suffix: str):
    edit_tensors(source, lambda t: t.pop(LAYER + suffix))
    assert LAYER in str(refused(source, tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("to", ["ir", "onnx"])
def test_a_scale_that_is_no_number_is_refused(source: Path, tmp_path: Path, value: float, to: str):
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[LAYER + ".scales"][0, 3] = value

    edit_tensors(source, spoil)
    error = refused(source, tmp_path, to)
    assert LAYER in str(error)
    assert "finite" in str(error)


@pytest.mark.parametrize("value", [-1, 1 << 20, -(1 << 31)])
@pytest.mark.parametrize("to", ["ir", "onnx"])
def test_a_group_map_that_points_outside_is_refused(source: Path, tmp_path: Path, value: int, to: str):
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[LAYER + ".g_idx"] = np.array(tensors[LAYER + ".g_idx"])
        tensors[LAYER + ".g_idx"][7] = value

    def declare(config: dict) -> None:
        config["quantization_config"]["desc_act"] = True

    edit_tensors(source, spoil)
    edit_config(source, declare)
    assert LAYER in str(refused(source, tmp_path, to))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group_size", 0),
        ("group_size", -7),
        ("group_size", "many"),
        ("bits", 3),
        ("bits", 5),
        ("bits", 0),
        ("bits", None),
    ],
)
def test_a_quantization_field_that_makes_no_sense_is_named(source: Path, tmp_path: Path, field: str, value: object):
    for name in ("config.json", "quantize_config.json", "quantization_config.json"):
        if (source / name).exists():
            edit_config(source, lambda c: (c.get("quantization_config") or c).update({field: value}), name)
    assert field in str(refused(source, tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 100),
        ("num_attention_heads", 3),
        ("num_hidden_layers", 50),
        ("num_hidden_layers", 2),
        ("intermediate_size", 7),
        ("vocab_size", 513),
        ("num_key_value_heads", 4),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(source: Path, tmp_path: Path, field: str, value: int):
    edit_config(source, lambda c: c.update({field: value}))
    refused(source, tmp_path, "onnx")


def test_an_unknown_method_is_refused_by_its_name(source: Path, tmp_path: Path):
    edit_config(source, lambda c: c["quantization_config"].update(quant_method="sorcery"))
    assert "sorcery" in str(refused(source, tmp_path))


def shard(source: Path) -> None:
    """Splits the checkpoint in two shards with an index."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({n: tensors[n] for n in members}, source / file)
    table = {n: file for file, members in parts.items() for n in members}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def test_a_sharded_checkpoint_is_read_like_a_single_file(source: Path):
    shard(source)
    whole, split = qdeploy.load(TINY), qdeploy.load(source)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), split.tensors[name].decode())


def test_a_missing_shard_is_named(source: Path, tmp_path: Path):
    shard(source)
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002" in str(refused(source, tmp_path))


def test_swapped_shards_are_noticed(source: Path, tmp_path: Path):
    shard(source)
    one, two = source / "model-00001-of-00002.safetensors", source / "model-00002-of-00002.safetensors"
    one.rename(source / "aside")
    two.rename(one)
    (source / "aside").rename(two)
    refused(source, tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "a\0b", "..\\x"]
)
def test_an_index_that_points_outside_is_refused(source: Path, tmp_path: Path, name: str):
    shutil.copy(source / "model.safetensors", tmp_path / "secret.safetensors")
    shard(source)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(source, tmp_path)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hardlink"])
def test_a_link_out_of_the_folder_is_refused_unless_trusted(source: Path, tmp_path: Path, link: Callable[..., None]):
    outside = tmp_path / "outside.safetensors"
    (source / "model.safetensors").rename(outside)
    link(outside, source / "model.safetensors")
    assert "--trust-links" in str(refused(source, tmp_path))
    assert qdeploy.load(source, trust_links=True).tensors


def test_a_pipe_in_the_folder_does_not_hang(source: Path, tmp_path: Path):
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model.safetensors")
    refused(source, tmp_path)


def test_the_links_of_a_hub_cache_are_followed(source: Path, tmp_path: Path):
    snapshot = tmp_path / "models--x--y/snapshots/abc"
    blobs = tmp_path / "models--x--y/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, blobs / f"{i:040x}")
        os.symlink(f"../../blobs/{i:040x}", snapshot / path.name)
    assert qdeploy.load(snapshot).tensors.keys() == qdeploy.load(TINY).tensors.keys()


def test_a_pickle_is_refused_with_advice(tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "source/pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tmp_path / "source", tmp_path)


def test_an_existing_output_is_refused_without_force(source: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(QdeployError, match="exists"):
        qdeploy.convert(source, tmp_path / "out", to="ir")
    assert os.listdir(tmp_path / "out") == ["precious"]
    (tmp_path / "out/report.json").write_text("{}")
    with pytest.raises(QdeployError, match="not written by a conversion"):
        qdeploy.convert(source, tmp_path / "out", to="ir", force=True)
    assert (tmp_path / "out/precious").exists()


@pytest.mark.parametrize("where", ["source/out", "source"])
def test_an_output_inside_the_source_is_refused(source: Path, tmp_path: Path, where: str):
    with pytest.raises(QdeployError, match="overlap"):
        qdeploy.convert(source, tmp_path / where, to="ir", force=True)
    assert (source / "config.json").exists()


@pytest.mark.parametrize("to", ["ir", "onnx"])
def test_a_full_disk_leaves_nothing_under_the_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    import errno

    written, real = [0], {"write": os.write, "pwrite": os.pwrite}

    def limited(name: str) -> Callable[..., int]:
        def call(descriptor: int, data: bytes, *rest: int) -> int:
            written[0] += len(data)
            if written[0] > 300_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](descriptor, data, *rest)

        return call

    for name in real:
        monkeypatch.setattr(os, name, limited(name))
    assert "No space left" in str(refused(source, tmp_path, to))


def test_the_command_line_prints_three_lines_and_exits_with_2(source: Path, tmp_path: Path):
    (source / "model.safetensors").write_bytes(b"short")
    done = run("convert", source, tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert "Traceback" in run("--debug", "convert", source, tmp_path / "out").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["convert", "a"],
        ["conver", "a", "b"],
        ["convert", "a", "b", "--jobs", "0"],
        ["inspect", "/nowhere"],
        ["convert", "/nowhere", "b"],
        ["convert", str(TINY), "b", "--to", "nowhere"],
        ["verify", "/nowhere", "/nowhere"],
    ],
)
def test_bad_arguments_exit_with_2(arguments: list[str], tmp_path: Path):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
