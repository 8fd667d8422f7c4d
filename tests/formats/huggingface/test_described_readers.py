"""bitsandbytes, HQQ, quanto and torchao: described layouts, the libraries' numbers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_layers import open_
from published import (
    Stored,
    assert_damage_is_named,
    assert_matches_oracle,
    assert_reads_as,
    bf16,
    e2m1,
    e8m0,
    fp8,
    low_first,
    oracles,
    write,
)

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.ir.rules import check_values

P = "model.layers.0.mlp.up_proj"
W = f"{P}.weight"
BNB = {"quant_method": "bitsandbytes", "llm_int8_threshold": 6.0}


@pytest.mark.parametrize("prefix", ["bnb-", "hqq", "quanto-", "torchao-"])
def test_library_weights_and_bytes(testdata: Path, prefix: str) -> None:
    for folder in oracles(testdata, prefix):
        rounded = bf16(np.zeros(1)).dtype if folder.parent.name == "formats" else None
        assert_matches_oracle(folder, rounded)


# bitsandbytes


def as_text(text: str) -> tuple[str, np.ndarray]:
    return ("U8", np.frombuffer(text.encode(), np.uint8))


def nibbles(nested: bool, shape: tuple[int, int] = (12, 96), block: int = 64) -> tuple[Stored, np.ndarray]:
    rng = np.random.default_rng(0)
    codes, table = rng.integers(0, 16, shape), np.sort(rng.standard_normal(16)).astype(np.float32)
    blocks = codes.size // block
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    flat = codes.reshape(-1, 2)
    tensors: Stored = {W: ("U8", (flat[:, :1] << 4 | flat[:, 1:]).astype(np.uint8))}
    if nested:
        small, book = rng.integers(0, 256, blocks).astype(np.uint8), np.sort(rng.random(256)).astype(np.float32)
        above = (rng.random(-(-blocks // 4)) + 0.5).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.125}
        absmax = book[small] * np.repeat(above, 4)[:blocks] + np.float32(0.125)
        tensors[f"{W}.absmax"] = ("U8", small)
        tensors[f"{W}.nested_absmax"] = ("F32", above)
        tensors[f"{W}.nested_quant_map"] = ("F32", book)
    else:
        absmax = (rng.random(blocks) + 0.1).astype(np.float32)
        tensors[f"{W}.absmax"] = ("F32", absmax)
    tensors[f"{W}.quant_map"] = ("F32", table)
    tensors[f"{W}.quant_state.bitsandbytes__nf4"] = as_text(json.dumps(state))
    return tensors, (table[codes].reshape(-1, block) * absmax[:, None]).reshape(shape)


@pytest.mark.parametrize("shape", [(12, 96), (8, 128), (2, 32), (64, 6)])
@pytest.mark.parametrize("nested", [False, True])
def test_blocks_of_four_bits_even_across_rows(tmp_path: Path, nested: bool, shape: tuple[int, int]) -> None:
    tensors, expected = nibbles(nested, shape)
    assert_reads_as(write(tmp_path / "c", tensors, BNB), W, expected)


@pytest.mark.parametrize("nested", [False, True])
def test_damage_to_blocks_of_four_bits_is_named(tmp_path: Path, nested: bool) -> None:
    assert_damage_is_named(tmp_path, nibbles(nested)[0], P, settings=BNB)


def test_files_saved_after_a_forward_pass_on_a_cpu_are_refused(tmp_path: Path) -> None:
    tensors, _ = nibbles(False, (8, 128))
    tensors[f"{W}.absmax"] = ("BF16", bf16(np.ones((2, 8))))
    with pytest.raises(BadFileError, match="forward pass") as caught:
        open_(write(tmp_path / "c", tensors, BNB))
    assert f"{W}.absmax" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"shape": [12]}', '{"shape": [12, 96], "blocksize": -64}'])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    tensors, _ = nibbles(False)
    tensors[f"{W}.quant_state.bitsandbytes__nf4"] = as_text(text)
    with pytest.raises(QdeployError, match="quant_state"):
        open_(write(tmp_path / "c", tensors, BNB))


def test_rows_of_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, most = rng.integers(-127, 128, (6, 32)).astype(np.int8), (rng.random(6) + 0.1).astype(np.float32)
    tensors: Stored = {
        W: ("I8", codes),
        f"{P}.SCB": ("F32", most),
        f"{P}.weight_format": ("U8", np.zeros((), np.uint8)),
    }
    assert_reads_as(write(tmp_path / "c", tensors, BNB), W, codes * (most / np.float32(127))[:, None])
    most[3] = np.nan
    with pytest.raises(BadFileError, match="not finite"):
        check_values(open_(write(tmp_path / "d", tensors, BNB)).tensors[W], W)
    tensors[f"{P}.weight_format"] = ("U8", np.ones((), np.uint8))
    with pytest.raises(UnsupportedError, match="weight_format"):
        _ = open_(write(tmp_path / "e", tensors, BNB)).tensors[W]


# HQQ

PACKINGS = {1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 8: "8bit_u8"}


def strips(matrix: np.ndarray, shifts: list[int], dtype: type, padded: int = 1) -> np.ndarray:
    """Rows in strips that share words; what is missing is zero."""
    height = -(-len(matrix) // len(shifts))
    whole = np.zeros((height * len(shifts), matrix.shape[1]), np.int64)
    whole[: len(matrix)] = matrix
    return sum(part << shift for part, shift in zip(np.split(whole, len(shifts)), shifts, strict=True)).astype(dtype)


def hqq(bits: int, axis: int) -> tuple[Stored, np.ndarray]:
    rng = np.random.default_rng(bits)
    shape, size = (24, 32), 16
    grid = (48, 16) if axis else (16, 48)
    params = (48, 1) if axis else (1, 48)
    codes = rng.integers(0, 1 << bits, grid)
    scale, zero = (rng.random(params).astype(np.float32) + np.float32(0.1) for _ in "sz")
    shifts = list(range(27, -1, -3)) if bits == 3 else list(range(8 - bits, -1, -bits))
    packed = strips(codes, shifts, np.int32 if bits == 3 else np.uint8)
    numbers = {"nbits": bits, "axis": axis, "group_size": size}
    small = {name: ("I32", np.array(value, np.int32)) for name, value in numbers.items()}
    flags = {name: ("U8", np.array(0, np.uint8)) for name in ("quant_scale", "quant_zero", "view_as_float", "optimize")}
    tensors = {
        "W_q": ("I32" if bits == 3 else "U8", packed),
        "scale": ("F32", scale),
        "zero": ("F32", zero),
        "shape": ("I64", np.array(shape, np.int64)),
        "packing": as_text(PACKINGS[bits]),
        **small,
        **flags,
    }
    return {f"{P}.{k}": v for k, v in tensors.items()}, ((codes.astype(np.float32) - zero) * scale).astype(
        np.float32
    ).reshape(shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq_of_every_width_along_both_axes(tmp_path: Path, bits: int, axis: int) -> None:
    tensors, expected = hqq(bits, axis)
    assert_reads_as(write(tmp_path / "c", tensors, {"quant_method": "hqq"}), W, expected)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("quant_zero", ("U8", np.array(1, np.uint8)), "quant_zero"),
        ("view_as_float", ("U8", np.array(1, np.uint8)), "view_as_float"),
        ("packing", as_text("5bit_odd"), "5bit_odd"),
        ("axis", ("I32", np.array(2, np.int32)), "axis"),
        ("group_size", ("I32", np.array(0, np.int32)), "group_size"),
        ("group_size", ("I32", np.array(32, np.int32)), P),
        ("nbits", ("I32", np.array(8, np.int32)), "nbits"),
        ("shape", ("I64", np.array([-24, 32])), "shape"),
        ("shape", ("I64", np.array([24, 64])), P),
        ("W_q", ("U8", np.zeros((12, 16), np.uint8)), "W_q"),
        ("scale", ("F32", np.zeros((1, 48), np.float32)), "scale"),
        ("zero", ("I8", np.zeros((48, 1), np.int8)), "zero"),
    ],
)
def test_what_hqq_refuses(tmp_path: Path, part: str, value: Any, named: str) -> None:
    tensors, _ = hqq(4, 1)
    with pytest.raises(QdeployError, match=named):
        open_(write(tmp_path / "c", {**tensors, f"{P}.{part}": value}, {"quant_method": "hqq"}))


# quanto


def quanto(folder: Path, tensors: Stored, kind: str, **config: Any) -> Path:
    write(folder, tensors, config={"hidden_size": 32, **config})
    (folder / "quanto_qmap.json").write_text(json.dumps({P: {"weights": kind, "activations": "none"}}))
    return folder


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_of_quanto_subtract_a_shift(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (44, 16))
    scale, shift = (rng.random((44, 1)).astype(np.float32) + np.float32(0.1) for _ in "sz")
    tensors: Stored = {
        f"{W}._data._data": ("U8", strips(codes, list(range(0, 8, bits)), np.uint8)),
        f"{W}._scale": ("F32", scale),
        f"{W}._shift": ("F32", shift),
    }
    expected = (codes.astype(np.float32) * scale - shift).astype(np.float32).reshape(22, 32)
    assert_reads_as(quanto(tmp_path / "c", tensors, f"qint{bits}"), W, expected)
    with pytest.raises(UnsupportedError, match="shape of a packed weight"):
        open_(quanto(tmp_path / "d", tensors, f"qint{bits}", hidden_size=None))
    with pytest.raises(UnsupportedError, match="qint5"):
        open_(quanto(tmp_path / "e", tensors, "qint5"))
    for name in tensors:
        with pytest.raises(QdeployError, match=P):
            open_(quanto(tmp_path / "f", {k: v for k, v in tensors.items() if k != name}, f"qint{bits}"))


def test_bytes_of_quanto(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-127, 128, (6, 32)).astype(np.int8), rng.random((6, 1)).astype(np.float32)
    tensors: Stored = {f"{W}._data": ("I8", codes), f"{W}._scale": ("F32", scale)}
    assert_reads_as(quanto(tmp_path / "c", tensors, "qint8"), W, codes * scale)
    with pytest.raises(QdeployError, match=P):
        open_(quanto(tmp_path / "d", tensors, "qfloat8"))


# torchao


def described(kind: str, **fields: Any) -> dict[str, str]:
    return {"format": "pt", W: json.dumps({"_type": kind, "_data": fields, "_tensor_data_names": ["qdata", "scale"]})}


def torchao(folder: Path, parts: dict[str, Any], metadata: dict[str, str]) -> Path:
    tensors = {f"{P}._weight_{k}": v for k, v in parts.items()}
    return write(folder, tensors, {"quant_method": "torchao"}, metadata=metadata)


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_of_torchao(tmp_path: Path, bits: int) -> None:
    rng, half = np.random.default_rng(0), 1 << (bits - 1)
    codes, zeros = rng.integers(-half, half, (6, 36)), rng.integers(-half, half, (6, 3))
    scale = bf16(rng.random((6, 3)) + 0.1)
    parts = {
        "qdata": ("I8", codes.astype(np.int8)),
        "scale": ("BF16", scale),
        "zero_point": ("I8", zeros.astype(np.int8)),
    }
    metadata = described("IntxUnpackedToInt8Tensor", target_dtype={"_data": f"int{bits}"}, block_size=[1, 12])
    wide = [np.repeat(a.astype(np.float32), 12, 1) for a in (zeros, scale)]
    assert_reads_as(torchao(tmp_path / "c", parts, metadata), W, (codes.astype(np.float32) - wide[0]) * wide[1])
    if bits < 8:
        parts["qdata"][1][3, 3] = half
        with pytest.raises(BadFileError, match="out of range") as caught:
            open_(torchao(tmp_path / "d", parts, metadata)).tensors[W].decode()
        assert f"{P}._weight_qdata" in str(caught.value)


def swizzled(scales: np.ndarray) -> np.ndarray:
    """cuBLAS's order of scale factors, from its text: 128 by 4 tiles, 32 rows of four groups of four."""
    rows, groups = scales.shape
    high, wide = -(-rows // 128), -(-groups // 4)
    out = np.zeros(high * wide * 512, scales.dtype)
    for r in range(rows):
        for c in range(groups):
            tile = (r // 128) * wide + c // 4
            out[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] = scales[r, c]
    return out.reshape(32 * high, 16 * wide)


@pytest.mark.parametrize("kind", ["NVFP4Tensor", "MXTensor"])
@pytest.mark.parametrize("is_swizzled", [False, True])
def test_small_floats_of_torchao(tmp_path: Path, kind: str, is_swizzled: bool) -> None:
    rng, size = np.random.default_rng(0), 16 if kind == "NVFP4Tensor" else 32
    codes = rng.integers(0, 16, (140, 160))
    if size == 16:
        scales, whole = fp8(rng.random((140, 10)) * 100 + 1), np.array(0.3, np.float32)
        small, dtype, more = scales.astype(np.float32) * whole, "F8_E4M3", {"per_tensor_scale": ("F32", whole)}
    else:
        scales, more = rng.integers(120, 130, (140, 5)).astype(np.uint8), {}
        small, dtype = e8m0(scales), "F8_E8M0"
    stored = swizzled(scales) if is_swizzled else scales
    parts = {"qdata": ("U8", low_first(codes)), "scale": (dtype, stored), **more}
    metadata = described(kind, block_size=size, is_swizzled_scales=is_swizzled)
    assert_reads_as(torchao(tmp_path / "c", parts, metadata), W, e2m1(codes) * np.repeat(small, size, 1))
    parts["scale"] = (dtype, stored[:-1])
    with pytest.raises(QdeployError, match="_weight_scale"):
        open_(torchao(tmp_path / "d", parts, metadata))


def test_what_torchao_refuses(tmp_path: Path) -> None:
    parts = {"qdata": ("I8", np.zeros((4, 8), np.int8)), "scale": ("F32", np.ones((4, 1), np.float32))}
    for kind, fields, named in [
        ("Int4TilePackedTo4dTensor", {}, "Int4TilePackedTo4dTensor"),
        ("Int8Tensor", {"block_size": [1, 0]}, "block_size"),
        ("Int8Tensor", {"block_size": [1, 4]}, "_weight_scale"),
        ("IntxUnpackedToInt8Tensor", {"block_size": [1, 8], "target_dtype": {"_data": "int9"}}, "int9"),
        ("Float8Tensor", {"block_size": [1, 8]}, "_weight_qdata"),
    ]:
        with pytest.raises(QdeployError, match=named):
            open_(torchao(tmp_path / "c", parts, described(kind, **fields)))
