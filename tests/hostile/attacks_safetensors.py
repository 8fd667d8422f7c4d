"""Attacks on safetensors files, on the files beside them, and on checkpoints of quantized layers."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GPTQ = ROOT / "examples/models/tiny-llama-gptq"
LAYER = "model.layers.0.mlp.down_proj"
Build = Callable[[Path], Path]
SAFETENSORS: dict[str, Build] = {}
GPTQ_LAYERS: dict[str, Build] = {}
INDEXES: dict[str, Build] = {}

SOUND = {"w": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}


def raw(folder: Path, header: Any, data: bytes = bytes(128), length: int | None = None) -> Path:
    """A file with a header as it is given: an object, or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _file(name: str, header: Any, data: bytes = bytes(128), length: int | None = None) -> None:
    SAFETENSORS[name] = lambda folder: raw(folder, header, data, length)


def _tensor(**fields: Any) -> dict[str, Any]:
    return {"w": {**SOUND["w"], **fields}}


_file("header length overflow", SOUND, length=(1 << 64) - 1)
_file("header length beyond the file", SOUND, length=1 << 40)
_file("header length zero", SOUND, length=0)
_file("header length beyond the limit", SOUND, length=101 << 20)
_file("JSON depth", b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
_file("JSON duplicate keys", json.dumps(SOUND).encode()[:-1] + b"," + json.dumps(SOUND).encode()[1:])
_file("JSON not UTF-8", b'{"\xff\xfe":' + json.dumps(SOUND["w"]).encode() + b"}")
_file("JSON huge integer", b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,128]}}')
_file("JSON float as a size", _tensor(shape=[4.0, 8]))
_file("JSON that is no object", [SOUND])
_file("offsets overlap", SOUND | {"v": {"dtype": "F32", "shape": [4, 8], "data_offsets": [64, 192]}}, bytes(192))
_file("offsets with a hole", SOUND | {"v": {"dtype": "F32", "shape": [8], "data_offsets": [160, 192]}}, bytes(192))
_file("offsets with trailing bytes", SOUND, bytes(144))
_file("offsets negative", _tensor(data_offsets=[-128, 0]))
_file(
    "offsets unaligned", {"b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}} | _tensor(data_offsets=[3, 130])
)
_file("offsets in the wrong order", _tensor(data_offsets=[128, 0]))
_file("shape product overflow", _tensor(shape=[1 << 40, 1 << 40]))
_file("shape negative", _tensor(shape=[-4, -8]))
_file("shape of another size", _tensor(shape=[4, 7]))
_file("shape with a zero dimension and bytes", _tensor(shape=[0, 8]))
_file("shape of rank 10^6", _tensor(shape=[1] * 1_000_000))
_file("type that nobody knows", _tensor(dtype="F4096"))
_file(
    "tensors 10^6 empty", {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}, b""
)
_file("truncated", SOUND, bytes(100))
_file("empty", b"", b"")

HARMLESS: dict[str, Build] = {}
"""Names that are only names, and numbers that are only numbers: read, and nothing comes of them."""
for _name, _key in {
    "tensor name traversal": "../../../etc/passwd",
    "tensor name absolute": "/etc/passwd",
    "tensor name NUL": "a\0b",
    "tensor name of 1 MB": "n" * (1 << 20),
    "tensor name of look-alikes": "ｗ.weіght",
    "tensor name with terminal codes": "\x1b]0;owned\x07\x1b[2J",
    "tensor name of another tensor's buffer": "w#codes",
}.items():
    HARMLESS[_name] = lambda folder, key=_key: raw(folder, {key: SOUND["w"]})  # type: ignore[misc]
HARMLESS["tensor names that clash after normalising"] = lambda folder: raw(
    folder,
    {
        n: {"dtype": "F32", "shape": [4, 8], "data_offsets": [128 * i, 128 * i + 128]}
        for i, n in enumerate(("\u00e9", "e\u0301"))
    },
    bytes(256),
)


# ---- layers that are quantized


def checkpoint(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of the small GPTQ checkpoint with changed tensors."""
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(GPTQ, folder / "source"))
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    return source


def _layer(name: str, part: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{LAYER}.{part}"] = np.ascontiguousarray(new(tensors[f"{LAYER}.{part}"].copy()))

    GPTQ_LAYERS[name] = lambda folder: checkpoint(folder, change)


def _first(array: np.ndarray, value: float) -> np.ndarray:
    array.reshape(-1)[0] = value
    return array


_layer("scale NaN", "scales", lambda a: _first(a, np.nan))
_layer("scale infinite", "scales", lambda a: _first(a, np.inf))
_layer("scales of another shape", "scales", lambda a: a[:-1])
_layer("codes of another shape", "qweight", lambda a: a[:, :-1])
_layer("codes of another type", "qweight", lambda a: a.astype(np.float32))
_layer("zero points of another shape", "qzeros", lambda a: a[:, :-1])
_layer("group index negative", "g_idx", lambda a: _first(a, -1))
_layer("group index beyond the groups", "g_idx", lambda a: _first(a, 1 << 30))

SCALES: dict[str, Build] = {}
"""Scales that a checkpoint may have: read as they are."""
for _label, _value in {"zero": 0.0, "negative": -0.5, "subnormal": 6e-8}.items():

    def _scaled(folder: Path, value: float = _value) -> Path:
        return checkpoint(folder, lambda t: t.update({f"{LAYER}.scales": _first(t[f"{LAYER}.scales"].copy(), value)}))

    SCALES[f"scale {_label}"] = _scaled


def configured(folder: Path, **fields: Any) -> Path:
    """A copy of the small GPTQ checkpoint whose quantization says something else."""
    source = Path(shutil.copytree(GPTQ, folder / "source"))
    for name in ("config.json", "quantize_config.json"):
        config = json.loads((source / name).read_text())
        config.get("quantization_config", config).update(fields)
        (source / name).write_text(json.dumps(config))
    return source


for _label, _fields in {
    "bits not in the set": {"bits": 5},
    "bits of 2^31": {"bits": 1 << 31},
    "bits that are text": {"bits": "four"},
    "group size 0": {"group_size": 0},
    "group size negative": {"group_size": -2},
    "group size that does not divide": {"group_size": 7},
    "group size of 2^62": {"group_size": 1 << 62},
}.items():
    GPTQ_LAYERS[_label] = lambda folder, fields=_fields: configured(folder, **fields)  # type: ignore[misc]


SCALES["regular expression that backtracks"] = lambda folder: configured(
    folder, dynamic={r"+:(a|aa|a?)+(.*.*.*)+$\d": {"bits": 8}}
)


# ---- indexes and the folder


def _sharded(folder: Path, shard: str, make: Callable[[Path], None] | None = None) -> Path:
    source = Path(shutil.copytree(GPTQ, folder / "source"))
    (source / "model.safetensors").rename(folder / "outside.safetensors")
    names = ["model.embed_tokens.weight"]
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    if make:
        make(source)
    return source


def _index(name: str, shard: str, make: Callable[[Path], None] | None = None) -> None:
    INDEXES[name] = lambda folder: _sharded(folder, shard, make)


_SHARD = "model-00001-of-00001.safetensors"
_index("index pointing outside", "../outside.safetensors")
_index("index pointing to an absolute path", "/etc/passwd")
_index("index pointing to itself", "model.safetensors.index.json")
_index("index pointing to a device", "/dev/zero")
_index("index pointing to a FIFO", _SHARD, lambda source: os.mkfifo(source / _SHARD))
_index("index pointing to a folder", _SHARD, lambda source: (source / _SHARD).mkdir())
_index("index with a NUL", "a\0b.safetensors")
_index("symlink to a file outside", _SHARD, lambda s: (s / _SHARD).symlink_to(s.parent / "outside.safetensors"))
_index("symlink in a circle", _SHARD, lambda source: (source / _SHARD).symlink_to(_SHARD))
_index("hardlink to a file outside", _SHARD, lambda s: os.link(s.parent / "outside.safetensors", s / _SHARD))
_index("shard missing", _SHARD)
_index(
    "Git-LFS pointer for a shard", _SHARD, lambda s: _put(s / _SHARD, b"version https://git-lfs.github.com/spec/v1\n")
)
_index("web page for a shard", _SHARD, lambda s: _put(s / _SHARD, b"<!DOCTYPE html><html></html>"))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _swapped(folder: Path) -> Path:
    """Two shards under each other's names: every tensor stands in another file than the index says."""
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(GPTQ, folder / "source"))
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    halves, table = (sorted(tensors)[::2], sorted(tensors)[1::2]), {}
    for place, names in enumerate(halves):
        save_file({n: tensors[n] for n in names}, source / f"model-0000{2 - place}-of-00002.safetensors")
        table |= dict.fromkeys(names, f"model-0000{place + 1}-of-00002.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return source


INDEXES["shards swapped"] = _swapped
