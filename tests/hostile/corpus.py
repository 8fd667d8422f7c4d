"""The corpus of the Python readers' fuzzer: small sound files of every kind, written by this project's own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.hostile import attacks_files, attacks_graphs, attacks_safetensors, test_gguf

TINY = ("config.json", "quantize_config.json")


def safetensors(folder: Path) -> Path:
    """One tensor."""
    return attacks_safetensors.raw(folder, attacks_safetensors.SOUND)


def checkpoint(folder: Path) -> Path:
    """A folder with a model of one layer, as GPTQ writes it."""
    from safetensors.numpy import load_file, save_file

    source = folder / "gptq"
    source.mkdir()
    for name in TINY:
        text = json.loads((attacks_safetensors.GPTQ / name).read_text())
        (source / name).write_text(json.dumps(text | ({"num_hidden_layers": 1} if name == "config.json" else {})))
    tensors = load_file(attacks_safetensors.GPTQ / "model.safetensors")
    kept = {n: array for n, array in tensors.items() if "layers." not in n or n.startswith("model.layers.0.")}
    save_file(kept, source / "model.safetensors")
    return source


def gguf(folder: Path) -> Path:
    """A few entries of every kind, and two tensors."""
    import struct

    texts = struct.pack("<IQ", test_gguf.STRING, 2) + test_gguf.text("a") + test_gguf.text("b")
    entries = (
        test_gguf.NAME,
        test_gguf.entry("general.alignment", test_gguf.U32, struct.pack("<I", 32)),
        test_gguf.entry("tokenizer.ggml.tokens", test_gguf.ARRAY, texts),
        test_gguf.entry("x", test_gguf.F32, struct.pack("<f", 0.5)),
    )
    infos = (test_gguf.ROWS, test_gguf.info("v", (32, 2), test_gguf.Q8_0, 96))
    (folder / "m.gguf").write_bytes(test_gguf.file(entries=entries, infos=infos, data=192))
    return folder / "m.gguf"


def onnx(folder: Path) -> Path:
    """A product, with its weight in the file."""
    return attacks_graphs._saved(folder, attacks_graphs.product())


def tflite(folder: Path) -> Path:
    """A network of integers."""
    return attacks_graphs._tflite(folder, lambda data: None)


def package(folder: Path) -> Path:
    """A package of the same network."""
    return Path(shutil.copytree(attacks_files._packages() / "network", folder / "package"))


def npz(folder: Path) -> Path:
    """Two arrays."""
    np.savez(folder / "data.npz", x=np.arange(3, dtype=np.float32), y=np.ones((2, 2), np.int8))
    return folder / "data.npz"


def pickle(folder: Path) -> Path:
    """A checkpoint of torch.save with a number."""
    return attacks_files._torch(folder, b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x07s.")


def native(folder: Path) -> Path:
    """A file of the native runtime."""
    shutil.copy(attacks_safetensors.ROOT / "tests/golden/decoder-elastic.qd", folder / "m.qd")
    return folder / "m.qd"


CORPUS: dict[str, Callable[[Path], Path]] = {
    known.__name__: known for known in (safetensors, checkpoint, gguf, onnx, tflite, package, npz, pickle, native)
}


def json_files(source: Path) -> Iterator[Path]:
    """The files of a sound source that hold JSON."""
    if source.is_dir():
        for path in sorted(source.rglob("*.json")):
            json.loads(path.read_text())
            yield path
