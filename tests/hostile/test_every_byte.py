"""Small files cut at every byte, and with every bit flipped: one of our errors, or a model that can be read whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.calibrate.calibrate import read_data
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.store.folder import Folder
from qdeploy.store.pickled import read_torch
from tests.hostile import attacks_files, attacks_graphs, attacks_safetensors, test_gguf

Read = Callable[[Path], object]


def load(path: Path) -> None:
    """Everything that a conversion would read."""
    model = qdeploy.load(path)
    with contextlib.suppress(UnsupportedError):  # tensors alone have none
        _ = model.graph
    for tensor in model.tensors.values():
        tensor.decode()


def _npz(folder: Path) -> bytes:
    np.savez(folder / "a.npz", x=np.arange(3, dtype=np.float32))
    return (folder / "a.npz").read_bytes()


def _torch(folder: Path) -> bytes:
    return attacks_files._torch(folder, b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x07s.").read_bytes()


def _qd(_: Path) -> bytes:
    return (attacks_safetensors.ROOT / "tests/golden/decoder-elastic.qd").read_bytes()


def _open_qd(path: Path) -> None:
    from qdeploy.backends.native.reading import ModelFile

    ModelFile(path)


FILES: dict[str, tuple[str, Callable[[Path], bytes], Read, int]] = {
    "safetensors": (
        "m.safetensors",
        lambda f: attacks_safetensors.raw(f, attacks_safetensors.SOUND).read_bytes(),
        load,
        1,
    ),
    "gguf": ("m.gguf", lambda _: test_gguf.file(), load, 1),
    "onnx": ("m.onnx", lambda _: attacks_graphs.product().SerializeToString(), load, 1),
    "tflite": ("m.tflite", lambda f: attacks_graphs._tflite(f, lambda data: None).read_bytes(), load, 29),
    "npz": ("m.npz", _npz, lambda path: read_data(str(path)), 1),
    "pickle": ("m.pt", _torch, lambda path: read_torch(Folder(path), path.name), 1),
    "native": ("m.qd", _qd, _open_qd, 4999),
}
"""By reader: a name, a sound file, what reads it, and of how many places one is tried."""


def _damaged(whole: bytes, step: int) -> Iterator[bytes]:
    for place in range(0, len(whole), step):
        yield whole[:place]
    for place in range(0, 8 * len(whole), step):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        yield bytes(damaged)


@pytest.mark.parametrize("reader", FILES)
def test_a_file_cut_at_any_byte_or_with_any_bit_flipped_is_an_error_or_a_model(reader: str, tmp_path: Path):
    name, make, read, step = FILES[reader]
    whole = make(tmp_path)
    path = tmp_path / name
    path.write_bytes(whole)
    read(path)
    refused = 0
    for damaged in _damaged(whole, step):
        path.write_bytes(damaged)
        try:
            read(path)
        except QdeployError as error:
            refused += 1
            assert error.what and len(error.lines()) <= 3
    assert refused > 50


@pytest.mark.parametrize("reader", ["safetensors", "gguf", "onnx"])
def test_an_error_of_the_disk_is_a_clear_error(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """EIO at every read, one after the other."""
    import errno

    name, make, read, _ = FILES[reader]
    (tmp_path / name).write_bytes(make(tmp_path))
    real, calls, fail_at = (os.pread, os.preadv), [0], [0]

    def failing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls[0] += 1
            if calls[0] == fail_at[0]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "pread", failing(real[0]))
    monkeypatch.setattr(os, "preadv", failing(real[1]))
    read(tmp_path / name)
    every = calls[0]
    assert every >= 3
    refused = 0
    for place in range(1, every + 1):
        calls[0], fail_at[0] = 0, place
        try:
            read(tmp_path / name)  # what only recognises a format may pass over a failure: the reader reads again
        except QdeployError as error:
            refused += 1
            assert "Input/output error" in str(error)
    assert refused > every // 2


def test_a_file_that_is_swapped_for_a_link_while_it_is_opened_leads_nowhere(tmp_path: Path):
    """A race of the check and the opening: what is read is the file itself, or an error; never what a link names."""
    source = tmp_path / "source"
    shutil.copytree(attacks_safetensors.GPTQ, source)
    secret, target, stop = tmp_path / "secret.safetensors", source / "model.safetensors", threading.Event()
    honest = tmp_path / "honest"
    shutil.copy(target, honest)
    secret.write_bytes(b"\xff" * 64)

    def swap() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                os.symlink(secret, source / ".link")
                os.replace(source / ".link", target)
            with contextlib.suppress(OSError):
                shutil.copy(honest, source / ".copy")
                os.replace(source / ".copy", target)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    try:
        for _ in range(150):
            try:
                file = Folder(source).open("model.safetensors")
                outcomes.add("read")
                assert file.read(0, 64) != b"\xff" * 64
                file.close()
            except BadFileError as error:
                outcomes.add("refused")
                assert "\xff" not in str(error)
    finally:
        stop.set()
        thread.join()
    assert outcomes <= {"read", "refused"} and outcomes
