"""AutoRound: what packing_format decides, settings per layer, and packings that are not read yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_layers import Linear, assert_comes_back, assert_rows_agree, awq_gemm, gptq, open_, save

from qdeploy.errors import BadFileError, UnsupportedError

P = "model.layers.0.mlp.up_proj"
BASE = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
}


def read_here(folder: Path) -> bool:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    return str(settings.get("packing_format", "")) in ("", "auto_round", "auto_round:auto_gptq", "auto_round:auto_awq")


def test_library_weights_and_bytes(testdata: Path) -> None:
    folders = [f for f in sorted((testdata / "checkpoints").glob("autoround*")) if read_here(f)]
    assert len(folders) >= 3
    for folder in folders:
        model, oracle = open_(folder), np.load(folder / "oracle.npz")
        for key in (k for k in oracle.files if k.startswith("w:")):
            ours = model.tensors[key[2:]].decode().astype(oracle[key].dtype)
            np.testing.assert_array_max_ulp(ours, oracle[key], maxulp=1)
        assert_comes_back(model, folder)
        assert_rows_agree(model)


def test_packings_of_small_floats_come_back_and_name_what_they_do_to_inputs(testdata: Path) -> None:
    for name in ("autoround-fp8static-tinyllama", "autoround-mxfp4-tinyllama"):
        model = open_(testdata / "checkpoints" / name)
        assert_comes_back(model, testdata / "checkpoints" / name)
        assert any("inputs" in note for note in model.notes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("packing", "minus_one"),
    [("auto_round:auto_gptq", True), ("auto_round:gptq", True), ("auto_round", False), ("auto_round:gptqmodel", False)],
)
def test_packing_format_decides_about_the_zero_points(tmp_path: Path, bits: int, packing: str, minus_one: bool) -> None:
    layer = Linear.random(bits, 64, 96, bits, 32, low=1)
    tensors = gptq(P, layer, v1=minus_one, g_idx=False)
    folder = save(tmp_path / "c", tensors, {**BASE, "bits": bits, "sym": False, "packing_format": packing})
    model = open_(folder)
    assert model.format == "autoround"
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert_comes_back(model, folder)


@pytest.mark.parametrize("packing", ["auto_round:auto_awq", "auto_round:awq"])
def test_the_packing_of_awq(tmp_path: Path, packing: str) -> None:
    layer = Linear.random(0, 64, 96, 4, 32)
    folder = save(tmp_path / "c", awq_gemm(P, layer), {**BASE, "packing_format": packing})
    model = open_(folder)
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert_comes_back(model, folder)


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_the_default_packing_is_that_of_gptq(tmp_path: Path, method: str) -> None:
    layer = Linear.random(0, 64, 96, 4, 32, low=1)
    settings = {k: v for k, v in BASE.items() if k != "packing_format"}
    model = open_(save(tmp_path / "c", gptq(P, layer, g_idx=False), {**settings, "quant_method": method}))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_exports_under_the_names_of_other_methods(tmp_path: Path, method: str) -> None:
    layer = Linear.random(0, 64, 96, 4, 32, low=1)
    settings = {
        "quant_method": method,
        "provider": "auto-round",
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "data_type": "int",
    }
    tensors = gptq(P, layer) if method == "gptq" else awq_gemm(P, layer)
    model = open_(save(tmp_path / "c", tensors, settings))
    assert model.format == method
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


def test_every_layer_may_have_its_own_width(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)] + ["lm_head"]
    extra: dict[str, Any] = {
        names[1]: {
            "bits": 2,
            "group_size": 16,
        },  # as a pattern it would be found in layer 11, too: names are no patterns
        names[2]: {"bits": 16, "data_type": "float"},
        r"layers\.(3|4)\..*up": {"bits": 8},
        r"layers\.4\.": {"bits": 3},
        r"layers\.5\.": {},
        "((": {"bits": 2},
        "lm_head": {"bits": 3, "group_size": 64},
    }
    bits = {1: (2, 16), 3: (8, 32), 4: (8, 32), 12: (3, 64)}
    tensors, expected = {}, {}
    for i, name in enumerate(names):
        layer = Linear.random(i, 64, 96, *bits.get(i, (4, 32)), low=1)
        expected[name] = layer.weight()
        tensors |= {f"{name}.weight": expected[name]} if i == 2 else gptq(name, layer, g_idx=False)
    folder = save(tmp_path / "c", tensors, {**BASE, "extra_config": extra})
    model = open_(folder)
    for name, weight in expected.items():
        assert np.array_equal(model.tensors[f"{name}.weight"].decode(), weight), name
    assert_comes_back(model, folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"packing_format": "auto_round:llm_compressor"}, "qweight"),
        ({"packing_format": "auto_round:fp8_static"}, "qweight"),
        ({"packing_format": "auto_round:gguf"}, "gguf"),
        ({"packing_format": "mlx"}, "mlx"),
        ({"packing_format": None, "backend": "autoround:exllamav2"}, "exllamav2"),
        ({"data_type": "mx_fp"}, "mx_fp"),
        ({"act_bits": 8}, "8"),
        ({"rotation_config": {"type": "hadamard"}}, "hadamard"),
        ({"bits": 5}, "5 bits"),
        ({"extra_config": {P: {"data_type": "nv_fp"}}}, "nv_fp"),
    ],
)
def test_what_changes_the_meaning_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    tensors = gptq(P, Linear.random(0, 64, 96, 4, 32), g_idx=False)
    with pytest.raises(UnsupportedError, match=named):
        open_(save(tmp_path / "c", tensors, {**BASE, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"extra_config": {P: {"bits": 16}}},
        {"extra_config": {P: {"bits": 8}}},
        {"extra_config": {P: 4}},
        {"extra_config": [P]},
        {"group_size": 64},
        {"group_size": 0},
        {"bits": 2},
    ],
)
def test_a_configuration_that_contradicts_the_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    tensors = gptq(P, Linear.random(0, 64, 96, 4, 32), g_idx=False)
    with pytest.raises(BadFileError) as caught:
        open_(save(tmp_path / "c", tensors, {**BASE, **changes}))
    assert caught.value.where
