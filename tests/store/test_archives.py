"""Archives and tables of contents that would unfold, hang or count for ever are refused at once."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qdeploy.errors import BadFileError
from qdeploy.store.archives import ENTRIES, read_arrays
from qdeploy.store.folder import Folder
from qdeploy.store.limits import FEWEST, MOST, most_tensors
from qdeploy.store.pickled import read_torch
from qdeploy.store.safetensors import SafetensorsFile


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as output:
        for name, data in entries.items():
            output.writestr(f"{name}.npy", data)
    return path


def test_arrays_come_back(tmp_path: Path):
    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.asfortranarray(np.ones((3, 4), np.float16))}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        result = read_arrays(str(tmp_path / "a.npz"))
        for name, array in arrays.items():
            np.testing.assert_array_equal(result[name], array)


def test_an_archive_that_unfolds_to_far_more_than_its_size_is_refused(tmp_path: Path):
    path = archive(tmp_path / "a.npz", x=header((1 << 27,)) + bytes(1 << 29))
    assert path.stat().st_size < 1 << 20
    start = time.process_time()
    with pytest.raises(BadFileError, match="unfolds"):
        read_arrays(str(path))
    assert time.process_time() - start < 1


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (5,)])
def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path, shape: tuple[int, ...]):
    with pytest.raises(BadFileError):
        read_arrays(str(archive(tmp_path / "a.npz", x=header(shape) + bytes(16))))


@pytest.mark.parametrize("descr", ["|O", "<c8", "<U4", "<M8[s]"])
def test_arrays_that_are_no_numbers_are_refused_by_their_type(tmp_path: Path, descr: str):
    with pytest.raises(BadFileError):
        read_arrays(str(archive(tmp_path / "a.npz", x=header((1,), descr) + bytes(64))))


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(BadFileError, match="not a regular file"):
        read_arrays(str(tmp_path / "a.npz"))


def test_an_archive_of_many_entries_is_refused_before_they_are_read(tmp_path: Path):
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w") as output:
        for i in range(ENTRIES + 1):
            output.writestr(f"{i}", b"")
    start = time.process_time()
    for read in (lambda: read_arrays(str(path)), lambda: read_torch(Folder(path), "c.pt")):
        with pytest.raises(BadFileError, match="too many entries"):
            read()
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_a_header_of_many_tensors_is_refused_before_it_is_parsed(tmp_path: Path, count: int):
    row = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    text = ("{" + ",".join(f'"t{i}":{row}' for i in range(count)) + "}").encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    start = time.process_time()
    with pytest.raises(BadFileError, match=r"too many tensors|longer than the file|a JSON file is too large"):
        SafetensorsFile(Folder(tmp_path), "model.safetensors")
    assert time.process_time() - start < 0.5


def test_a_file_may_hold_as_many_tensors_as_its_size_is_worth():
    assert most_tensors(0) == FEWEST
    assert most_tensors(5 << 30) == MOST
    assert FEWEST < most_tensors(64 << 20) < MOST
