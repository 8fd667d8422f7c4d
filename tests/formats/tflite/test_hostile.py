"""TFLite files that are damaged or made to harm: one clear error each, and no memory beyond the file's size."""

import contextlib
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_files import Network

from qdeploy.errors import BadFileError, QdeployError
from qdeploy.formats.tflite import reader as tflite
from qdeploy.store.folder import Folder


def small() -> bytes:
    """A network with options of both kinds, constants, scales and names."""
    random, n = np.random.default_rng(0), Network()
    x = n.value("x", (1, 5, 6, 4), scale=0.05, zero=3)
    w = n.constant("w", random.integers(-9, 9, (8, 3, 3, 4)).astype(np.int8), scale=np.full(8, 0.01), axis=0)
    b = n.constant("b", random.integers(-9, 9, 8).astype(np.int32), scale=np.full(8, 0.0005), axis=0)
    y = n.value("y", (1, 5, 6, 8), scale=0.1)
    n.add("CONV_2D", [x, w, b], [y], Padding=0, StrideW=1, StrideH=1, FusedActivationFunction=1)
    axes = n.constant("axes", np.array([1, 2], np.int32))
    m = n.value("m", (1, 8), scale=0.1)
    n.add("MEAN", [y, axes], [m], KeepDims=False)
    v = n.constant("v", random.integers(-9, 9, (4, 8)).astype(np.int8), scale=0.02)
    z = n.value("z", (1, 4), scale=0.2)
    n.add("FULLY_CONNECTED", [m, v], [z], FusedActivationFunction=0)
    return n.write([x], [z])


WHOLE = small()


def opened(path: Path, data: bytes) -> None:
    """Reads all that there is to read."""
    path.write_bytes(data)
    model = tflite.read(Folder(path))
    _ = model.graph
    for tensor in model.tensors.values():
        tensor.decode()


def survives(path: Path, data: bytes) -> None:
    with contextlib.suppress(QdeployError):
        opened(path, data)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "n.tflite"


def test_the_whole_file_is_read(path: Path):
    opened(path, WHOLE)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_an_error_or_another_network(path: Path, changes: list[tuple[int, int]]):
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    survives(path, bytes(data))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(WHOLE) // 4 - 1), st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000000]))
def test_changed_words_are_an_error_or_another_network(path: Path, word: int, value: int):
    data = bytearray(WHOLE)
    struct.pack_into("<I", data, 4 * word, value)
    survives(path, bytes(data))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_off_is_an_error_or_another_network(path: Path, size: int):
    survives(path, WHOLE[:size])


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 7, b"\0\0\0\0TFL3", b"\xff\xff\xff\xffTFL3" + b"\0" * 64])
def test_what_is_no_tflite_file_is_an_error(path: Path, data: bytes):
    with pytest.raises(BadFileError):
        opened(path, data)


def test_a_table_that_is_its_own_description_is_an_error(path: Path):
    with pytest.raises(BadFileError):
        opened(path, struct.pack("<I4sIIIIII", 8, b"TFL3", 0, 0, 0, 0, 0, 0))


def test_a_vector_that_names_one_table_again_and_again_is_no_work(path: Path):
    data = bytearray(WHOLE)
    where = struct.unpack_from("<I", data, 0)[0]
    vtable = where - struct.unpack_from("<i", data, where)[0]
    slot = struct.unpack_from("<H", data, vtable + 4 + 2 * 2)[0]  # the subgraphs
    vector = where + slot + struct.unpack_from("<I", data, where + slot)[0]
    struct.pack_into("<I", data, vector, 0x3FFFFFFF)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    survives(path, bytes(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
