"""Reading a model file in Python: what changes, ends or is no file is an error, never a signal or a wait."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from qdeploy.backends.native.checksum import crc32c
from qdeploy.backends.native.layout import HEADER, Feature, SectionId
from qdeploy.backends.native.reading import ModelFile
from qdeploy.errors import BadFileError, UnsupportedError

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "golden").glob("*.qd"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN[0], tmp_path / "model.qd"))


def with_features(path: Path, bits: int, names: bytes) -> None:
    """Sets feature bits, and their names in the metadata in the place of what it holds."""
    data = bytearray(path.read_bytes())
    header = np.frombuffer(data, HEADER, 1)[0].copy()
    at, count = (int(n) for n in header["sections"][SectionId.METADATA])
    entry = b"\x01\0\0\0" + np.array([28, 8], "<u4").tobytes() + np.array([36, len(names)], "<u8").tobytes()
    packed = entry + b"features" + names
    assert len(packed) <= count
    data[at : at + len(packed)] = packed
    header["features"] = bits
    header["front_crc"] = crc32c(np.frombuffer(bytes(data[HEADER.itemsize : int(header["front_end"])]), np.uint8))
    data[: HEADER.itemsize] = header.tobytes()
    data[508:512] = np.uint32(crc32c(np.frombuffer(bytes(data[:508]), np.uint8))).tobytes()
    path.write_bytes(data)


def test_a_fifo_and_a_folder_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(BadFileError, match="regular file"):
            ModelFile(path)


def test_a_file_that_is_cut_while_it_is_open_is_an_error(model: Path):
    file = ModelFile(model)
    os.truncate(model, int(file.header["stack_at"]) + 100)
    with pytest.raises(BadFileError, match="ends early"):
        for matrix in range(len(file.section(SectionId.MATRICES))):
            file.rows(matrix, 0, 1)
    with pytest.raises(BadFileError, match="ends early"):
        file.damaged_pages()


def test_no_descriptor_is_left_open(model: Path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ModelFile(model)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_feature_that_is_not_known_is_refused_by_its_name(model: Path):
    with_features(model, 1 << 41 | 1 << 63, b"41 tiles\n")
    with pytest.raises(UnsupportedError) as refused:
        ModelFile(model)
    assert refused.value.found == "41 (tiles), 63 (that the file does not name)"


def test_every_released_feature_has_a_golden_file_and_files_without_bits_are_valid():
    bits = [int(ModelFile(path).header["features"]) for path in GOLDEN]
    assert 0 in bits
    assert {1 << i for used in bits for i in range(64) if used >> i & 1} == {int(feature) for feature in Feature}


def test_every_bit_that_is_not_known_is_refused_by_both_readers(tmp_path: Path):
    pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)
    from qdeploy.native import Runtime

    for bit in range(64):
        if any(1 << bit == int(feature) for feature in Feature):
            continue
        path = Path(shutil.copy(GOLDEN[0], tmp_path / f"{bit}.qd"))
        with_features(path, 1 << bit, f"{bit} tiles\n".encode())
        for opened in (ModelFile, Runtime):
            with pytest.raises(UnsupportedError, match=rf"feature|{bit}") as refused:
                opened(path)
            assert f"{bit} (tiles)" in str(refused.value), opened
