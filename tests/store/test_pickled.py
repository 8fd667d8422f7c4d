"""Checkpoints of torch.save are read, and nothing that they ask for is run."""

import pickle
import resource
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.store.folder import Folder
from qdeploy.store.pickled import PickledTensor, read_torch

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from torch_files import save_legacy, save_zip

VALUE = {
    "state_dict": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.arange(3, dtype=np.int8)),
    "epoch": 7,
    "best": 0.5,
    "names": ["x", ("y", None, True)],
    "scalar": np.array(2, np.int64),
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_tensors_are_found_where_they_lie(tmp_path: Path, save: Callable[[Path, Any], None]):
    path = tmp_path / "c.pt"
    save(path, VALUE)
    result, data = read_torch(Folder(path), "c.pt"), path.read_bytes()
    assert (result["epoch"], result["best"], result["names"]) == (7, 0.5, ["x", ["y", None, True]])
    for name, array in VALUE["state_dict"].items():
        tensor = result["state_dict"][name]
        assert isinstance(tensor, PickledTensor) and tensor.shape == array.shape
        content = np.frombuffer(data, array.dtype, array.size, tensor.begin)
        np.testing.assert_array_equal(content.reshape(array.shape), array)
    assert result["scalar"].shape == ()


class Attack:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize("value", [Attack(), {"a": Attack()}, print, Path("x")])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(
    tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str]
):
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as output:
        output.writestr("a/data.pkl", pickle.dumps(value, protocol=2))
    with pytest.raises(UnsupportedError, match="something else than tensors"):
        read_torch(Folder(tmp_path / "c.pt"), "c.pt")
    assert not capsys.readouterr().out


def test_parts_that_hold_each_other_are_no_work(tmp_path: Path):
    value: Any = ()
    for _ in range(60):
        value = (value, value)
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as output:
        output.writestr("a/data.pkl", pickle.dumps(value, protocol=2))
    with pytest.raises(QdeployError):
        read_torch(Folder(tmp_path / "c.pt"), "c.pt")


def test_a_view_that_is_turned_is_refused(tmp_path: Path):
    save_zip(tmp_path / "c.pt", {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T})
    with pytest.raises(UnsupportedError, match="contiguous"):
        read_torch(Folder(tmp_path / "c.pt"), "c.pt")


@pytest.mark.parametrize("opcode", [b"\x8b", b"B", b"X", b"T", b"\x8d", b"\x8e"], ids=repr)
def test_a_damaged_opcode_that_asks_for_a_huge_length_takes_no_memory(tmp_path: Path, opcode: bytes):
    """LONG4, BINBYTES, BINUNICODE, BINSTRING, BINUNICODE8, BINBYTES8."""
    width = 8 if opcode in (b"\x8d", b"\x8e") else 4
    path = tmp_path / "c.pt"
    save_legacy(path, VALUE)
    start = path.read_bytes()[:14]
    path.write_bytes(start + b"." + b"\x80\x02" + opcode + b"\xff" * (width - 1) + b"\x7f" + b"end")
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (current_address_space() + (256 << 20), limit[1]))
    try:
        with pytest.raises(BadFileError):
            read_torch(Folder(path), "c.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def current_address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_damaged_files_are_an_error_or_another_value(tmp_path: Path, save: Callable[[Path, Any], None]):
    path = tmp_path / "c.pt"
    save(path, VALUE)
    whole = path.read_bytes()

    @settings(deadline=None, max_examples=250)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=5), st.integers(0, len(whole))
    )
    def damaged(changes: list[tuple[int, int]], size: int) -> None:
        data = bytearray(whole)
        for place, byte in changes:
            data[place] = byte
        path.write_bytes(bytes(data if changes else data[:size]))
        try:
            read_torch(Folder(path), "c.pt")
        except QdeployError as error:
            assert error.what

    damaged()
