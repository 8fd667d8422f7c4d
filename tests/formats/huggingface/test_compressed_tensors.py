"""compressed-tensors: the library's numbers and bytes, every format from its layout, groups, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compressed import group, settings, spaced_words
from packed_layers import open_, words
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

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError

P = "model.layers.0.mlp.up_proj"


def packed(bits: int, legacy: bool = False, asymmetric: bool = False, rows: int = 12, columns: int = 48) -> Any:
    rng, pack = np.random.default_rng(bits), spaced_words if legacy else words
    codes, zeros = rng.integers(0, 1 << bits, (rows, columns)), rng.integers(0, 1 << bits, (rows, columns // 16))
    scales = bf16(rng.random((rows, columns // 16)) + 0.01)
    tensors: Stored = {
        f"{P}.weight_packed": ("I32", np.array([pack(row, bits) for row in codes], np.uint32)),
        f"{P}.weight_scale": ("BF16", scales),
        f"{P}.weight_shape": ("I64", np.array([rows, columns], np.int64)),
    }
    if asymmetric:
        tensors[f"{P}.weight_zero_point"] = ("I32", np.array([pack(col, bits) for col in zeros.T], np.uint32).T)
    zero = np.repeat(zeros, 16, 1) if asymmetric else 1 << (bits - 1)
    return tensors, (codes - zero).astype(np.float32) * np.repeat(scales.astype(np.float32), 16, 1)


def test_library_weights_and_bytes(testdata: Path) -> None:
    for folder in oracles(testdata, "ct-"):
        assert_matches_oracle(folder, ml_dtypes.bfloat16)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers_of_every_width(tmp_path: Path, bits: int, legacy: bool, asymmetric: bool) -> None:
    tensors, expected = packed(bits, legacy, asymmetric)
    section = settings(group("pack-quantized", bits, symmetric=not asymmetric))
    section["version"] = "0.17.1" if legacy else "0.18.0"
    assert_reads_as(write(tmp_path / "c", tensors, section), f"{P}.weight", expected)


def test_two_packings_of_one_length_need_the_version(tmp_path: Path) -> None:
    tensors, _ = packed(3)  # five words either way
    with pytest.raises(AmbiguousError, match="version"):
        _ = open_(write(tmp_path / "c", tensors, settings(group("pack-quantized", 3)))).tensors[f"{P}.weight"]


def test_columns_in_the_order_of_their_activations(tmp_path: Path) -> None:
    tensors, _ = packed(4)
    index = np.random.default_rng(1).permutation(np.arange(48) // 16).astype(np.int32)
    tensors[f"{P}.weight_g_idx"] = ("I32", index)
    codes = np.array(
        [[int(w) >> (4 * j) & 15 for w in row for j in range(8)] for row in tensors[f"{P}.weight_packed"][1]]
    )
    expected = (codes - 8) * tensors[f"{P}.weight_scale"][1].astype(np.float32)[:, index]
    assert_reads_as(write(tmp_path / "c", tensors, settings(group("pack-quantized", 4))), f"{P}.weight", expected)


def plain_case(strategy: str) -> tuple[Stored, np.ndarray, Any]:
    rng = np.random.default_rng(0)
    codes, shape = (
        fp8(rng.standard_normal((20, 48)) * 100),
        {"tensor": (1,), "channel": (20, 1), "block": (3, 3)}[strategy],
    )
    scales = (rng.random(shape) + 0.1).astype(np.float32)
    wide = {"tensor": scales, "channel": scales, "block": np.kron(scales, np.ones((8, 16)))[:20]}[strategy]
    row = group("float-quantized", 8, "float", strategy, None, block_structure=[8, 16])
    tensors = {f"{P}.weight": ("F8_E4M3", codes), f"{P}.weight_scale": ("F32", scales)}
    return tensors, codes.astype(np.float32) * wide.astype(np.float32), row


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_fp8_with_scales_shared_in_every_way(tmp_path: Path, strategy: str) -> None:
    tensors, expected, row = plain_case(strategy)
    assert_reads_as(write(tmp_path / "c", tensors, settings(row)), f"{P}.weight", expected)


def test_bytes_with_zero_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, zeros = rng.integers(-128, 128, (6, 32)), rng.integers(-128, 128, (6, 1))
    scales = (rng.random((6, 1)) + 0.1).astype(np.float32)
    tensors: Stored = {
        f"{P}.weight": ("I8", codes.astype(np.int8)),
        f"{P}.weight_scale": ("F32", scales),
        f"{P}.weight_zero_point": ("I8", zeros.astype(np.int8)),
    }
    row = group("int-quantized", 8, "int", "channel", None, symmetric=False)
    assert_reads_as(write(tmp_path / "c", tensors, settings(row)), f"{P}.weight", (codes - zeros) * scales)


def small_case(form: str) -> tuple[Stored, np.ndarray, Any]:
    rng = np.random.default_rng(0)
    codes, size = rng.integers(0, 16, (6, 64)), 16 if form.startswith("nv") else 32
    tensors: Stored = {f"{P}.weight_packed": ("U8", low_first(codes))}
    if size == 32:
        powers = rng.integers(120, 130, (6, 2)).astype(np.uint8)
        tensors[f"{P}.weight_scale"] = ("U8", powers)
        return tensors, e2m1(codes) * np.repeat(e8m0(powers), 32, 1), group(form, 4, "float", "group", 32)
    scales, whole = fp8(rng.random((6, 4)) * 100 + 1), np.array([3.7], np.float32)
    tensors[f"{P}.weight_scale"] = ("F8_E4M3", scales)
    tensors[f"{P}.weight_global_scale"] = ("F32", whole)
    expected = e2m1(codes) * np.repeat(scales.astype(np.float32) / whole, 16, 1)
    return tensors, expected, group(form, 4, "float", "tensor_group", 16)


@pytest.mark.parametrize("form", ["mxfp4-pack-quantized", "nvfp4-pack-quantized"])
def test_floats_of_four_bits(tmp_path: Path, form: str) -> None:
    tensors, expected, row = small_case(form)
    assert_reads_as(write(tmp_path / "c", tensors, settings(row)), f"{P}.weight", expected)


def test_floats_of_six_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, powers = rng.integers(0, 64, (4, 64)).astype(np.uint8), rng.integers(120, 130, (4, 2)).astype(np.uint8)
    stream = np.array([words(row, 6) for row in codes], np.uint32).view(np.uint8)
    expected = codes.view(ml_dtypes.float6_e2m3fn).astype(np.float32) * np.repeat(e8m0(powers), 32, 1)
    tensors: Stored = {f"{P}.weight_packed": ("U8", stream), f"{P}.weight_scale": ("U8", powers)}
    row = group("mxfp6-pack-quantized", 6, "float", "group", 32)
    assert_reads_as(write(tmp_path / "c", tensors, settings(row)), f"{P}.weight", expected)


@pytest.mark.parametrize("case", ["packed", "asymmetric", "block", "mxfp4", "nvfp4"])
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    if case in ("packed", "asymmetric"):
        (tensors, _), row = (
            packed(4, asymmetric=case != "packed"),
            group("pack-quantized", 4, symmetric=case == "packed"),
        )
    else:
        tensors, _, row = plain_case("block") if case == "block" else small_case(f"{case}-pack-quantized")
    assert_damage_is_named(tmp_path, tensors, P, settings=settings(row))


def test_a_global_scale_of_zero_divides_nothing(tmp_path: Path) -> None:
    from qdeploy.ir.rules import check_values

    tensors, _, row = small_case("nvfp4-pack-quantized")
    tensors[f"{P}.weight_global_scale"] = ("F32", np.zeros(1, np.float32))
    model = open_(write(tmp_path / "c", tensors, settings(row)))
    with pytest.raises(BadFileError, match="not finite"):
        check_values(model.tensors[f"{P}.weight"], f"{P}.weight")


def test_a_layer_belongs_to_the_group_that_means_it_most_closely(tmp_path: Path) -> None:
    tensors, expected = packed(4)
    eight, by_pattern = group("pack-quantized", 8), group("pack-quantized", 3)
    four = {**group("pack-quantized", 4), "targets": [P]}
    by_pattern["targets"] = ["re:.*mlp.*"]
    for order in ((eight, by_pattern, four), (four, eight, by_pattern)):
        assert_reads_as(write(tmp_path / "c", tensors, settings(*order)), f"{P}.weight", expected)
    by_pattern["weights"]["num_bits"] = 4
    assert_reads_as(write(tmp_path / "c", tensors, settings(eight, by_pattern)), f"{P}.weight", expected)


def test_two_groups_that_mean_one_layer_are_ambiguous(tmp_path: Path) -> None:
    tensors, _ = packed(4)
    with pytest.raises(AmbiguousError, match="group_0, group_1"):
        open_(write(tmp_path / "c", tensors, settings(group("pack-quantized", 4), group("pack-quantized", 8))))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"ignore": [P]}, BadFileError, P),
        ({"ignore": ["re:.*up_proj"]}, BadFileError, P),
        ({"ignore": "lm_head"}, BadFileError, "ignore"),
        ({"ignore": ["re:("]}, BadFileError, "ignore"),
        ({"config_groups": {}}, BadFileError, "config_groups"),
        ({"config_groups": {"a": {**group("pack-quantized", 4), "targets": ["re:.*down_proj"]}}}, BadFileError, P),
        ({"config_groups": {"a": group("marlin-24", 4)}}, UnsupportedError, "marlin-24"),
        ({"config_groups": {"a": group("pack-quantized", 9)}}, UnsupportedError, "9 bits"),
        ({"config_groups": {"a": group("pack-quantized", 8)}}, BadFileError, P),
        ({"config_groups": {"a": group("pack-quantized", 4, size=48)}}, BadFileError, P),
        ({"config_groups": {"a": group("pack-quantized", 4, strategy="token")}}, UnsupportedError, "token"),
        ({"sparsity_config": {"format": "sparse-48"}}, UnsupportedError, "sparse-48"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, BadFileError, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"u": {}}}}, UnsupportedError, "transform_config"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], error: type[Exception], named: str) -> None:
    tensors, _ = packed(4)
    with pytest.raises(error) as caught:
        open_(write(tmp_path / "c", tensors, {**settings(group("pack-quantized", 4)), **changes}))
    assert named in str(caught.value)


def test_quantized_activations_are_named_in_a_note(tmp_path: Path) -> None:
    tensors, _, row = plain_case("channel")
    row["input_activations"] = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    tensors[f"{P}.input_scale"] = ("F32", np.ones(1, np.float32))
    model = open_(write(tmp_path / "c", tensors, {**settings(row), "kv_cache_scheme": {"num_bits": 8}}))
    assert any("inputs to 8-bit float per token, dynamic" in note for note in model.notes)
    assert any("cache" in note for note in model.notes)
    assert model.tensors[f"{P}.input_scale"].decode() == 1
