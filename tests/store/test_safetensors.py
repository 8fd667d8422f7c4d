"""safetensors: any range of any tensor, and files that are not what they say."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.store.folder import Folder
from qdeploy.store.safetensors import SafetensorsFile

RNG = np.random.default_rng(0)
TENSORS = {
    "f32": RNG.random((5, 7)).astype(np.float32),
    "f16": RNG.random((3, 4, 2)).astype(np.float16),
    "i64": np.arange(3),
    "bool": np.array([[True, False]]),
    "scalar": np.array(3, np.uint8),
    "none": np.zeros((2, 0), np.int32),
    "bf16": RNG.random((4, 3)).astype(ml_dtypes.bfloat16),
    "e4m3": RNG.random(9).astype(ml_dtypes.float8_e4m3fn),
}


def written(folder: Path, header: object, data: bytes) -> SafetensorsFile:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return SafetensorsFile(Folder(folder), "x.safetensors")


def test_every_type_and_shape(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(Folder(tmp_path), "x.safetensors")
    assert file.metadata == {"format": "np"}
    for name, array in TENSORS.items():
        entry = file.entries[name]
        assert entry.shape == array.shape
        assert entry.slab(0, 0, array.shape[0] if array.shape else 1).tobytes() == array.tobytes(), name
    begins = [e.begin for e in file.entries.values()]
    assert begins == sorted(begins)
    assert begins[0] == len(file.head)


@settings(deadline=None, max_examples=40)
@given(axis=st.sampled_from([0, 1]), a=st.integers(0, 5), b=st.integers(0, 5))
def test_slabs_along_both_axes(tmp_path_factory: pytest.TempPathFactory, axis: int, a: int, b: int) -> None:
    folder, array = tmp_path_factory.mktemp("slabs"), TENSORS["f32"]
    save_file({"t": array}, folder / "x.safetensors")
    entry = SafetensorsFile(Folder(folder), "x.safetensors").entries["t"]
    low, high = sorted((a, b))
    cut = array[low:high] if axis == 0 else array[:, low:high]
    assert np.array_equal(entry.slab(axis, low, high), cut)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_of_three_axes(tmp_path: Path, axis: int) -> None:
    array = RNG.random((3, 4, 5)).astype(np.float16)
    save_file({"t": array}, tmp_path / "x.safetensors")
    entry = SafetensorsFile(Folder(tmp_path), "x.safetensors").entries["t"]
    for low, high in ((0, array.shape[axis]), (1, 3), (2, 2)):
        assert np.array_equal(entry.slab(axis, low, high), array.take(range(low, high), axis))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 5),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 3),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        ({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"t": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}, b""),
        ({"t": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}, b""),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        ({"t": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"t": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"t": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"t": 3}, b""),
        ({"__metadata__": {"a": 1}}, b""),
        ([], b""),
        (3, b""),
        (b"{", b""),
        (b"", b""),
        (b'{"t": {}, "t": {}}', b""),
        (b"\xff\xfe", b""),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, data: bytes) -> None:
    with pytest.raises(BadFileError):
        written(tmp_path, header, data)


@pytest.mark.parametrize("length", [0, 7, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_lengths_that_lie(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(BadFileError):
        SafetensorsFile(Folder(tmp_path), "x.safetensors")


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(QdeployError, match="C64") as caught:
        written(tmp_path, {"t": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8)
    assert isinstance(caught.value, UnsupportedError)


def test_a_file_that_gets_shorter_while_it_is_open(tmp_path: Path) -> None:
    save_file({"t": TENSORS["f32"]}, tmp_path / "x.safetensors")
    entry = SafetensorsFile(Folder(tmp_path), "x.safetensors").entries["t"]
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(entry.begin + 10)
    with pytest.raises(BadFileError, match="shorter"):
        entry.slab(0, 0, 5)
    with pytest.raises(BadFileError, match="shorter"):
        entry.slab(1, 0, 2)
