"""I2_S of bitnet.cpp: files written from the text of its layout, and numbers that mean something else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from packed_layers import open_, read_all

import qdeploy
from qdeploy.errors import QdeployError, UnsupportedError
from qdeploy.ir.rules import check_values
from qdeploy.ir.views import Lookup, view


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def i2_s(ternary: np.ndarray, scale: float, tail: bytes = b"\0" * 28) -> bytes:
    """128 codes to 32 bytes; byte j holds codes j, j + 32, j + 64, j + 96, the first in the high bits."""
    flat, out = (ternary.reshape(-1) + 1).tolist(), bytearray()
    for start in range(0, len(flat), 128):
        block = flat[start : start + 128]
        out += bytes(block[j] << 6 | block[j + 32] << 4 | block[j + 64] << 2 | block[j + 96] for j in range(32))
    return bytes(out) + struct.pack("<f", scale) + tail


def file(
    path: Path, tensors: dict[str, tuple[tuple[int, ...], int, bytes]], architecture: str = "bitnet-b1.58"
) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + data)
    return path


def random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape)


def test_codes_and_scales_of_several_tensors(tmp_path: Path) -> None:
    first, second = random(0, (6, 256)), random(1, (5, 128))
    norm = np.arange(8, dtype=np.float32)
    tensors = {
        "blk.0.attn_q.weight": ((6, 256), 36, i2_s(first, 0.25)),
        "blk.0.attn_norm.weight": ((8,), 0, norm.tobytes()),
        "blk.0.ffn_up.weight": ((5, 128), 36, i2_s(second, 3.5, bytes(range(1, 29)))),
    }
    path = file(tmp_path / "m.gguf", tensors)
    model = open_(path)
    np.testing.assert_array_equal(model.tensors["blk.0.attn_q.weight"].decode(), first * np.float32(0.25))
    np.testing.assert_array_equal(model.tensors["blk.0.ffn_up.weight"].decode(), second * np.float32(3.5))
    np.testing.assert_array_equal(model.tensors["blk.0.attn_norm.weight"].decode(), norm)
    seen = view(model.tensors["blk.0.ffn_up.weight"])
    assert isinstance(seen, Lookup) and seen.is_ternary
    for name, tensor in model.tensors.items():
        check_values(tensor, name)
    read_all(model)
    assert all(origin.proven for origin in model.origins)


def test_the_file_comes_back_with_what_means_nothing(tmp_path: Path) -> None:
    raw = i2_s(random(2, (4, 384)), 1.5, bytes(range(1, 29)))
    path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((4, 384), 36, raw)})
    qdeploy.convert(path, tmp_path / "package", to="ir")
    qdeploy.convert(tmp_path / "package", tmp_path / "source", to="source")
    assert (tmp_path / "source/m.gguf").read_bytes() == path.read_bytes()


def test_a_third_code_and_a_scale_that_is_no_number_are_refused_by_name(tmp_path: Path) -> None:
    raw = bytearray(i2_s(random(3, (2, 128)), 1.0))
    for change in (b"\xff" + bytes(raw[1:]), bytes(raw[:64]) + struct.pack("<f", np.nan) + bytes(raw[68:])):
        path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((2, 128), 36, change)})
        with pytest.raises(QdeployError, match=r"blk\.0\.ffn_up\.weight"):
            qdeploy.convert(path, tmp_path / "out", to="ir")


def test_rows_that_are_no_whole_blocks_are_refused_by_name(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((4, 96), 36, i2_s(random(4, (4, 96)), 1.0))})
    with pytest.raises(QdeployError, match=r"blk\.0\.ffn_up\.weight"):
        open_(path)


def test_the_withdrawn_type_of_the_same_number_stays_refused(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf", {"w": ((4, 128), 36, b"\0" * (4 * 128 // 32 * 18))}, "llama")
    with pytest.raises(UnsupportedError, match="IQ4_NL_4_4"):
        open_(path).tensors["w"].decode()


@pytest.mark.parametrize(("kind", "name"), [(38, "TL1"), (39, "TL2")])
def test_tiles_that_the_file_does_not_say_are_refused_by_name(tmp_path: Path, kind: int, name: str) -> None:
    path = file(tmp_path / "m.gguf", {"w": ((4, 256), kind, b"\0" * 512)})
    with pytest.raises(UnsupportedError, match=name):
        open_(path).tensors["w"].decode()
