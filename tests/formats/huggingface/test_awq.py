"""AWQ: the library's numbers and bytes, both versions, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_layers import Linear, assert_comes_back, assert_rows_agree, awq_gemm, awq_gemv, open_, save

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError

P = "model.layers.0.mlp.up_proj"
BASE = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def gemv_words(groups: int, group: int) -> int:
    """Words of a row of zero-points, as AutoAWQ computes them."""
    multiplier = {64: 2, 32: 4}.get(group, 1)
    words = -(-groups // 8)
    return -(-words // multiplier) * multiplier


def test_library_weights_are_reproduced(testdata: Path) -> None:
    folders = sorted((testdata / "checkpoints").glob("awq*"))
    assert folders
    for folder in folders:
        model, oracle = open_(folder), np.load(folder / "oracle.npz")
        for key in (k for k in oracle.files if k.startswith("w:")):
            name, expected = key[2:], oracle[key]
            ours = model.tensors[name].decode().astype(expected.dtype)
            if name.replace(".weight", ".bias") in model.tensors:
                # The library was asked by sending the identity through the layer; its bias went on and off again.
                bias = model.tensors[name.replace(".weight", ".bias")].decode().astype(expected.dtype)[:, None]
                ours = (ours + bias) - bias
            np.testing.assert_array_max_ulp(ours, expected, maxulp=1)


def test_library_bytes_come_back(testdata: Path) -> None:
    for folder in sorted((testdata / "checkpoints").glob("awq*")):
        model = open_(folder)
        assert_comes_back(model, folder)
        assert_rows_agree(model)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 12),
    columns=st.integers(1, 20),
    group=st.sampled_from([-1, 1, 24, 32, 128]),
)
def test_gemm_of_every_shape(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, columns: int, group: int
) -> None:
    layer = Linear.random(seed, 8 * rows, columns * abs(group), 4, group)
    folder = save(tmp_path_factory.mktemp("awq"), awq_gemm(P, layer), {**BASE, "group_size": group})
    model = open_(folder)
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert_rows_agree(model)
    assert_comes_back(model, folder)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 20),
    group=st.sampled_from([-1, 32, 64, 128, 256]),
)
def test_gemv_of_every_shape(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, blocks: int, group: int
) -> None:
    columns = blocks * max(group, 8)
    layer = Linear.random(seed, rows, columns, 4, group)
    zero_words = gemv_words(layer.zeros.shape[1], group if group > 0 else columns)
    tensors = awq_gemv(P, layer, zero_words)
    folder = save(tmp_path_factory.mktemp("awq"), tensors, {**BASE, "version": "gemv", "group_size": group})
    model = open_(folder)
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert_rows_agree(model)
    assert_comes_back(model, folder)


def test_gemv_padding_that_is_not_zero_is_kept(tmp_path: Path) -> None:
    layer = Linear.random(0, 16, 96, 4, 32)
    tensors = awq_gemv(P, layer, 4)
    tensors[f"{P}.qzeros"][3, 2] = 0x01000000
    tensors[f"{P}.scales"][5, 31] = 1.0
    model = open_(save(tmp_path / "c", tensors, {**BASE, "version": "GEMV"}))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    residue = {o.name.rpartition(".")[2]: o.residue().tolist() for o in model.origins}
    assert residue == {"qweight": [], "qzeros": [((3 * 4 + 2) * 4 + 3, 1)], "scales": [((5 * 32 + 31) * 2 + 1, 0x3C)]}


def test_symmetric_layers_hold_their_zero_points_too(tmp_path: Path) -> None:
    layer = Linear.random(0, 16, 64, 4, 32)
    layer.zeros[:] = 8
    model = open_(save(tmp_path / "c", awq_gemm(P, layer), {**BASE, "zero_point": False, "sym": True}))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


def test_layers_that_are_not_converted_stay_as_they_are(tmp_path: Path) -> None:
    layer, gate = Linear.random(0, 16, 64, 4, 32), np.ones((4, 64), np.float16)
    tensors = awq_gemm(P, layer) | {"model.layers.0.mlp.gate.weight": gate, f"{P}.bias": np.ones(16, np.float16)}
    model = open_(save(tmp_path / "c", tensors, {**BASE, "modules_to_not_convert": ["gate"]}))
    assert np.array_equal(model.tensors["model.layers.0.mlp.gate.weight"].decode(), gate)
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert_comes_back(model, tmp_path / "c")


def test_settings_in_the_old_file_and_spelling(tmp_path: Path) -> None:
    layer = Linear.random(0, 16, 64, 4, 32)
    old = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    model = open_(save(tmp_path / "c", awq_gemm(P, layer), old, beside="quant_config.json"))
    assert model.format == "awq"
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


def test_settings_as_gptqmodel_writes_them(tmp_path: Path) -> None:
    layer = Linear.random(0, 16, 64, 4, 32)
    theirs = {
        "quant_method": "awq",
        "method": "awq",
        "bits": 4,
        "group_size": 32,
        "format": "gemm",
        "checkpoint_format": "gemm",
    }
    model = open_(save(tmp_path / "c", awq_gemm(P, layer), theirs))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": "gemv_fast"}, "gemv_fast"),
        ({"version": "marlin"}, "marlin"),
        ({"version": "exllama"}, "exllama"),
        ({"version": "llm-awq"}, "llm-awq"),
        ({"backend": "llm-awq"}, "llm-awq"),
        ({"bits": 3}, "3 bits"),
        ({"bits": 8}, "8 bits"),
    ],
)
def test_other_variants_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        open_(save(tmp_path / "c", awq_gemm(P, Linear.random(0, 16, 64, 4, 32)), {**BASE, **changes}))


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"group_size": 128}, "group_size = 128"),
        ({"group_size": -1}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": None}, "group_size"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(
    tmp_path: Path, version: str, changes: dict[str, Any], named: str
) -> None:
    layer = Linear.random(0, 16, 256, 4, 32)
    tensors = awq_gemm(P, layer) if version == "gemm" else awq_gemv(P, layer, 4)
    with pytest.raises(BadFileError) as caught:
        open_(save(tmp_path / "c", tensors, {**BASE, "version": version, **changes}))
    assert named in caught.value.where


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("damage", ["missing", "short", "narrow", "dtype", "rank", "empty"])
def test_a_damaged_part_is_named(tmp_path: Path, version: str, part: str, damage: str) -> None:
    layer = Linear.random(0, 16, 64, 4, 32)
    tensors = awq_gemm(P, layer) if version == "gemm" else awq_gemv(P, layer, 4)
    whole = tensors.pop(f"{P}.{part}")
    if damage != "missing":
        tensors[f"{P}.{part}"] = {
            "short": whole[:-1],
            "narrow": np.ascontiguousarray(whole[:, :-1]),
            "dtype": whole.astype(np.float64),
            "rank": whole.reshape(1, *whole.shape),
            "empty": whole[:0],
        }[damage]
    with pytest.raises(QdeployError) as caught:
        open_(save(tmp_path / "c", tensors, {**BASE, "version": version}))
    assert P in str(caught.value)


def test_a_version_that_the_tensors_are_not(tmp_path: Path) -> None:
    tensors = awq_gemv(P, Linear.random(0, 48, 256, 4, 32), 4)
    with pytest.raises(BadFileError, match="contradicts"):
        open_(save(tmp_path / "c", tensors, BASE))
