"""Stacked experts of compressed-tensors: every format from its layout, and networks of the library's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compressed import group, settings, spaced_words
from packed_layers import words
from published import Stored, assert_damage_is_named, assert_reads_as, bf16, e2m1, e8m0, fp8, low_first, write

import qdeploy
from qdeploy import registry
from qdeploy.errors import QdeployError
from qdeploy.formats.huggingface.checkpoint import Checkpoint
from qdeploy.store.folder import Folder

P = "model.layers.0.mlp.experts.gate_up_proj"
E, N, K = 3, 12, 48


def named(parts: dict[str, tuple[str, np.ndarray]], nested: bool) -> Stored:
    """The parts of an expert tensor under the names that it has in a module of its own, or without one."""
    return {f"{P}.{part}" if nested else P + part.removeprefix("weight"): value for part, value in parts.items()}


def integers(bits: int, legacy: bool, asymmetric: bool, how: str) -> tuple[dict[str, Any], np.ndarray]:
    random, pack = np.random.default_rng(bits), spaced_words if legacy else words
    codes, zeros = random.integers(0, 1 << bits, (E, N, K)), random.integers(0, 1 << bits, (E, N, K // 16))
    scales = bf16(random.random(zeros.shape) + 0.01)
    parts: dict[str, Any] = {
        "weight_packed": ("I32", np.array([[pack(row, bits) for row in each] for each in codes], np.uint32)),
        "weight_scale": ("BF16", scales),
    }
    if how == "whole":
        parts["weight_shape"] = ("I64", np.array([E, N, K], np.int64))
    if how == "each":
        parts["weight_shape"] = ("I64", np.array([[N, K]] * E, np.int64))
    if asymmetric:
        columns = [np.array([pack(column, bits) for column in each.T], np.uint32).T for each in zeros]
        parts["weight_zero_point"] = ("I32", np.stack(columns))
    zero = np.repeat(zeros, 16, 2) if asymmetric else 1 << (bits - 1)
    return parts, (codes - zero).astype(np.float32) * np.repeat(scales.astype(np.float32), 16, 2)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "legacy", "how"), [(4, False, "none"), (8, False, "each"), (3, True, "whole"), (5, False, "whole")]
)
def test_packed_integers(tmp_path: Path, bits: int, legacy: bool, how: str, asymmetric: bool, nested: bool) -> None:
    parts, expected = integers(bits, legacy, asymmetric, how)
    section = settings(group("pack-quantized", bits, symmetric=not asymmetric))
    section["version"] = "0.17.1" if legacy else "0.18.0"
    assert_reads_as(write(tmp_path / "c", named(parts, nested), section), P, expected)


def floats(kind: str) -> tuple[dict[str, Any], np.ndarray, Any]:
    random = np.random.default_rng(7)
    if kind in ("channel", "tensor", "block"):
        codes, shape = (
            fp8(random.standard_normal((E, N, K)) * 100),
            {"channel": (E, N), "tensor": (E,), "block": (E, 2, 3)},
        )
        scales = (random.random(shape[kind]) + 0.1).astype(np.float32)
        wide = scales.reshape(E, -1, 1)
        if kind == "block":
            wide = np.kron(scales, np.ones((1, 8, 16), np.float32))[:, :N]
        row = group("float-quantized", 8, "float", kind, None, block_structure=[8, 16])
        parts = {"weight": ("F8_E4M3", codes), "weight_scale": ("F32", scales)}
        return parts, codes.astype(np.float32) * wide, row
    codes = random.integers(0, 16, (E, N, 64))
    parts = {"weight_packed": ("U8", np.stack([low_first(each) for each in codes]))}
    if kind == "mxfp4":
        powers = random.integers(120, 130, (E, N, 2)).astype(np.uint8)
        parts["weight_scale"] = ("U8", powers)
        return parts, e2m1(codes) * np.repeat(e8m0(powers), 32, 2), group("mxfp4-pack-quantized", 4, "float", size=32)
    scales, whole = fp8(random.random((E, N, 4)) * 100 + 1), (random.random((E, 1)) + 3).astype(np.float32)
    parts |= {"weight_scale": ("F8_E4M3", scales), "weight_global_scale": ("F32", whole)}
    expected = e2m1(codes) * np.repeat(scales.astype(np.float32) / whole[..., None], 16, 2)
    return parts, expected, group("nvfp4-pack-quantized", 4, "float", "tensor_group", 16)


KINDS = ["channel", "tensor", "block", "mxfp4", "nvfp4"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_floats(tmp_path: Path, kind: str, nested: bool) -> None:
    parts, expected, row = floats(kind)
    assert_reads_as(write(tmp_path / "c", named(parts, nested), settings(row)), P, expected)


def test_bytes_with_zero_points(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes, zeros = random.integers(-128, 128, (E, N, K)), random.integers(-128, 128, (E, N, 1))
    scales = (random.random((E, N, 1)) + 0.1).astype(np.float32)
    parts = {
        "weight": ("I8", codes.astype(np.int8)),
        "weight_scale": ("F32", scales),
        "weight_zero_point": ("I8", zeros.astype(np.int8)),
    }
    row = group("int-quantized", 8, "int", "channel", None, symmetric=False)
    assert_reads_as(write(tmp_path / "c", named(parts, False), settings(row)), P, (codes - zeros) * scales)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("case", ["packed", "asymmetric", *KINDS])
def test_damage_is_named(tmp_path: Path, case: str, nested: bool) -> None:
    if case in ("packed", "asymmetric"):
        parts, _ = integers(4, False, case != "packed", "each")
        row = group("pack-quantized", 4, symmetric=case == "packed")
    else:
        parts, _, row = floats(case)
    name = f"{P}{'.weight' if nested else ''}"
    free = [f"{name}_shape is missing"]  # words hold whole codes
    free += [f"{name} is narrow"] if case in ("channel", "tensor") else []
    assert_damage_is_named(tmp_path, named(parts, nested), P, tuple(free), settings=settings(row))


@pytest.mark.parametrize("shape", [[E, N, K + 16], [E + 1, N, K], [E, N, -1]])
def test_a_shape_that_denies_the_codes_is_refused(tmp_path: Path, shape: list[int]) -> None:
    parts, _ = integers(4, False, False, "whole")
    parts["weight_shape"] = ("I64", np.array(shape, np.int64))
    with pytest.raises(QdeployError, match="gate_up_proj"):
        qdeploy.load(write(tmp_path / "c", named(parts, False), settings(group("pack-quantized", 4))))


# ---- the library's own files, their experts stacked as `repack_moe` stacks them


def stacked(source: Path, out: Path, nested: bool, targets: list[str]) -> Path:
    config = json.loads((source / "config.json").read_text())
    (row,) = config["quantization_config"]["config_groups"].values()
    row["targets"] = targets
    entries = Checkpoint(Folder(source)).entries
    tensors = {name: (entry.dtype, entry.slab(0, 0, entry.shape[0])) for name, entry in entries.items()}
    result: Stored = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in range(config["num_hidden_layers"]):
        module = f"model.layers.{layer}.mlp.experts"
        parts = {name.rpartition(".")[2] for name in tensors if name.startswith(f"{module}.0.")}
        for part in sorted(parts):
            for stem, sides in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
                each = [
                    [tensors[f"{module}.{e}.{side}.{part}"] for side in sides] for e in range(config["num_experts"])
                ]
                one = part.endswith(("global_scale", "shape"))
                arrays = [x[0][1] if one else np.concatenate([y for _, y in x]) for x in each]
                if part.endswith("shape") and len(sides) > 1:
                    arrays = [array * np.array([2, 1]) for array in arrays]
                name = f"{module}.{stem}.{part}" if nested else f"{module}.{stem}{part.removeprefix('weight')}"
                name = name if part.startswith("weight") or nested else f"{module}.{stem}_{part}"
                result[name] = (each[0][0][0], np.stack(arrays))
    settings = config.pop("quantization_config")
    return write(out, result, settings, config)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["ct-w4a16-g32-asym-tinymoe", "ct-nvfp4-tinymoe"])
def test_the_network_is_that_of_the_experts_one_by_one(testdata: Path, tmp_path: Path, name: str, nested: bool) -> None:
    source = testdata / "formats" / name
    targets = ["re:.*self_attn.*_proj$", r"re:.*experts\.\d+\..*_proj$"] if nested else ["Linear"]
    folder = stacked(source, tmp_path / "stacked", nested, targets)
    ids = np.array([[3, 14, 15, 9, 26, 53]])
    wanted = qdeploy.load(source).run(input_ids=ids)["logits"]
    np.testing.assert_array_equal(qdeploy.load(folder).run(input_ids=ids)["logits"], wanted)
    for target in ("onnx", "native"):
        out = tmp_path / ("m.qd" if target == "native" else target)
        report = qdeploy.convert(folder, out, to=target)
        proven = report["lossless"]["tensor bytes"]
        assert proven["proven"] == proven["of"] > 0
        text = registry.backend(target).text
        assert text is not None
        logits = text.logits(str(out), ids).reshape(wanted.shape)
        assert np.linalg.norm(logits - wanted) <= (1e-4 if target == "onnx" else 5e-2) * np.linalg.norm(wanted)
