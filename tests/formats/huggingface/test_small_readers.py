"""Block FP8, MLX, gpt-oss and ModelOpt: the libraries' numbers, layouts from their text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

from qdeploy.errors import QdeployError, UnsupportedError

P = "model.layers.0.mlp.up_proj"
BLOCK = {"quant_method": "fp8", "weight_block_size": [8, 16], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("prefix", ["fp8-", "mxfp4-", "gptoss-", "modelopt-", "mlx-"])
def test_library_weights_and_bytes(testdata: Path, prefix: str) -> None:
    for folder in oracles(testdata, prefix):
        # MLX rounds the product to the stored type before it adds the bias.
        assert_matches_oracle(
            folder, transposed="gptoss" in prefix + folder.name[:12], limit=2**-7 * (prefix == "mlx-")
        )


def blocks_of_fp8(powers: bool) -> tuple[Stored, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = fp8(rng.standard_normal((20, 40)) * 100)
    scales = (
        (rng.integers(110, 130, (3, 3)).astype(np.uint8)) if powers else (rng.random((3, 3)) + 0.1).astype(np.float32)
    )
    wide = np.kron(e8m0(scales) if powers else scales, np.ones((8, 16)))[:20, :40].astype(np.float32)
    scale = ("F8_E8M0" if powers else "F32", scales)
    tensors: Stored = {f"{P}.weight": ("F8_E4M3", codes), f"{P}.weight_scale_inv": scale}
    return tensors, codes.astype(np.float32) * wide


@pytest.mark.parametrize("powers", [False, True])
def test_blocks_of_fp8_with_short_ones_at_the_edges(tmp_path: Path, powers: bool) -> None:
    tensors, expected = blocks_of_fp8(powers)
    assert_reads_as(write(tmp_path / "c", tensors, BLOCK), f"{P}.weight", expected)
    assert_damage_is_named(tmp_path, tensors, P, settings=BLOCK)


@pytest.mark.parametrize("block", [[0, 16], [8], "128", [8.0, 16], [16, 16]])
def test_a_block_size_that_contradicts_the_scales(tmp_path: Path, block: Any) -> None:
    with pytest.raises(QdeployError, match="weight_block_size"):
        open_(write(tmp_path / "c", blocks_of_fp8(False)[0], {**BLOCK, "weight_block_size": block}))


def affine(bits: int, stacked: bool = False) -> tuple[Stored, np.ndarray]:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (6, 64))
    scales, biases = (bf16(rng.standard_normal((6, 2))) for _ in "sb")
    packed = np.array([words(row, bits) for row in codes], np.uint32)
    wide = [np.repeat(a.astype(np.float32), 32, 1) for a in (scales, biases)]
    tensors = {"weight": ("U32", packed), "scales": ("BF16", scales), "biases": ("BF16", biases)}
    expected = codes.astype(np.float32) * wide[0] + wide[1]
    if stacked:
        tensors = {k: (d, a.reshape(2, 3, -1)) for k, (d, a) in tensors.items()}
        expected = expected.reshape(2, 3, -1)
    return {f"{P}.{k}": v for k, v in tensors.items()}, expected


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_affine_codes_of_mlx(tmp_path: Path, bits: int, stacked: bool) -> None:
    tensors, expected = affine(bits, stacked)
    default = {"group_size": 64, "bits": 4, "mode": "mxfp4"}
    config = {"quantization": {**default, P: {"group_size": 32, "bits": bits}}}
    assert_reads_as(write(tmp_path / "c", tensors, config=config), f"{P}.weight", expected)
    both = {"quantization": {"group_size": 32, "bits": bits}, "quantization_config": {"group_size": 32, "bits": bits}}
    assert_reads_as(write(tmp_path / "d", tensors, config=both), f"{P}.weight", expected)
    assert_damage_is_named(tmp_path, tensors, P, config=both)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_floats_of_mlx(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    size, bits = (16, 4) if mode == "nvfp4" else (32, 8 if mode == "mxfp8" else 4)
    codes = fp8(rng.standard_normal((4, 64))).view(np.uint8) if bits == 8 else rng.integers(0, 16, (4, 64))
    values = fp8(np.zeros(0)) if bits == 4 else codes.view(fp8(np.zeros(1)).dtype)
    scales = rng.integers(50, 60, (4, 64 // size)).astype(np.uint8)
    small = scales.view(fp8(np.zeros(1)).dtype).astype(np.float32) if mode == "nvfp4" else e8m0(scales)
    expected = (e2m1(codes) if bits == 4 else values.astype(np.float32)) * np.repeat(small, size, 1)
    tensors: Stored = {
        f"{P}.weight": ("U32", np.array([words(row, bits) for row in codes], np.uint32)),
        f"{P}.scales": ("U8", scales),
    }
    config = {"quantization": {"group_size": size, "bits": bits, "mode": mode}}
    assert_reads_as(write(tmp_path / "c", tensors, config=config), f"{P}.weight", expected)
    assert_damage_is_named(tmp_path, tensors, P, config=config)


@pytest.mark.parametrize("stacked", [False, True])
def test_nvfp4_of_mlx_with_a_scale_of_whole_matrices(tmp_path: Path, stacked: bool) -> None:
    rng, shape = np.random.default_rng(0), (3, 4, 64) if stacked else (4, 64)
    codes, small = rng.integers(0, 16, shape), fp8(rng.random((*shape[:-1], 4)) * 100 + 1)
    whole = np.array(rng.random((3,) if stacked else ()) + 0.1, np.float32)
    factors = small.astype(np.float32) * (whole / np.float32(2688)).reshape((3, 1, 1) if stacked else ())
    packed = np.array([words(row, 4) for row in codes.reshape(-1, 64)], np.uint32).reshape(*shape[:-1], -1)
    tensors: Stored = {
        f"{P}.weight": ("U32", packed),
        f"{P}.scales": ("U8", small.view(np.uint8)),
        f"{P}.global_scale": ("F32", whole),
    }
    config = {"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}}
    expected = e2m1(codes) * np.repeat(factors, 16, -1)
    assert_reads_as(write(tmp_path / "c", tensors, config=config), f"{P}.weight", expected)
    free = (f"{P}.global_scale is missing",)
    assert_damage_is_named(tmp_path, tensors, P, free, config=config)
    wrong = {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    with pytest.raises(QdeployError, match="scale"):
        open_(write(tmp_path / "w", tensors, config=wrong))


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"group_size": 32, "bits": 7}, "7 bits"),
        ({"group_size": 32, "bits": 4, "mode": "trellis"}, "trellis"),
        ({"group_size": 0, "bits": 4}, "group_size"),
        ({"bits": 4}, "group_size"),
        ({"group_size": 16, "bits": 4}, P),
        ({"group_size": 32, "bits": 4, P: False}, P),
        ({"group_size": 32, "bits": 4, P: 3}, P),
        ({"scheme": "unheard of"}, "scheme"),
    ],
)
def test_a_section_quantization_is_never_passed_over(tmp_path: Path, section: dict[str, Any], named: str) -> None:
    with pytest.raises(QdeployError) as caught:
        open_(write(tmp_path / "c", affine(4)[0], config={"quantization": section}))
    assert named in str(caught.value)


def test_stacked_experts_of_gpt_oss(tmp_path: Path) -> None:
    rng, name = np.random.default_rng(0), "model.layers.0.mlp.experts.gate_up_proj"
    codes, powers = rng.integers(0, 16, (3, 6, 64)), rng.integers(120, 130, (3, 6, 2)).astype(np.uint8)
    tensors: Stored = {
        f"{name}_blocks": ("U8", low_first(codes).reshape(3, 6, 2, 16)),
        f"{name}_scales": ("U8", powers),
    }
    expected, section = e2m1(codes) * np.repeat(e8m0(powers), 32, 2), {"quant_method": "mxfp4"}
    assert_reads_as(write(tmp_path / "c", tensors, section), name, expected)
    assert_damage_is_named(tmp_path, tensors, name, settings=section)


def nvfp4() -> tuple[Stored, np.ndarray]:
    rng = np.random.default_rng(0)
    codes, scales, whole = rng.integers(0, 16, (6, 64)), fp8(rng.random((6, 4)) * 100 + 1), np.array(0.03, np.float32)
    tensors: Stored = {
        f"{P}.weight": ("U8", low_first(codes)),
        f"{P}.weight_scale": ("F8_E4M3", scales),
        f"{P}.weight_scale_2": ("F32", whole),
    }
    return tensors, e2m1(codes) * np.repeat(scales.astype(np.float32) * whole, 16, 1)


def test_nvfp4_of_modelopt_multiplies_by_its_second_scale(tmp_path: Path) -> None:
    tensors, expected = nvfp4()
    section = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert_reads_as(write(tmp_path / "c", tensors, section), f"{P}.weight", expected)
    assert_damage_is_named(tmp_path, tensors, P, settings=section)
    old = write(tmp_path / "old", tensors)
    (old / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert_reads_as(old, f"{P}.weight", expected)


def test_two_rows_to_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-8, 8, (6, 64)), (rng.random((6, 2)) + 0.1).astype(np.float32)
    nibbles = (codes & 15).astype(np.uint8)
    tensors: Stored = {
        f"{P}.weight": ("U8", nibbles[::2] | nibbles[1::2] << 4),
        f"{P}.weight_scale": ("F32", scales),
    }
    section = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}
    folder = write(tmp_path / "c", tensors, section)
    assert_reads_as(folder, f"{P}.weight", codes.astype(np.float32) * np.repeat(scales, 32, 1))


def test_a_method_that_is_spelled_otherwise_is_shown_its_nearest(tmp_path: Path) -> None:
    tensors: Stored = {f"{P}.weight": ("F32", np.ones((2, 2), np.float32))}
    with pytest.raises(UnsupportedError, match="resembles compressed-tensors"):
        open_(write(tmp_path / "c", tensors, {"quant_method": "compressed_tensors"}))


@pytest.mark.parametrize("method", ["marlin24", "no-such-method"])
def test_an_unknown_method_is_refused_by_its_name(tmp_path: Path, method: str) -> None:
    with pytest.raises(UnsupportedError, match=method):
        open_(write(tmp_path / "c", {f"{P}.weight": ("F32", np.ones((2, 2), np.float32))}, {"quant_method": method}))


@pytest.mark.parametrize(
    ("part", "named"), [("Qidxs", "QuIP#"), ("tlut", "QTIP"), ("weight_scaling_rotate_1", "PTQ1.61")]
)
def test_codes_without_a_declared_method_are_refused_by_name(tmp_path: Path, part: str, named: str) -> None:
    tensors: Stored = {f"{P}.{part}": ("I64", np.zeros((4, 2), np.int64)), f"{P}.SU": ("F16", np.ones(64, np.float16))}
    with pytest.raises(UnsupportedError, match=named):
        open_(write(tmp_path / "c", tensors))
