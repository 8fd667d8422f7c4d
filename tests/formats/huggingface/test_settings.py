"""Settings of quantization that no reader knows are refused by their name, on every level where they may stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import qdeploy
from qdeploy.errors import BadFileError, UnsupportedError

Settings = dict[str, Any]


def mlx(folder: Path, change: Callable[[Settings], object], **tensors: np.ndarray) -> Path:
    """A layer `a` [4, 64] of 4 bits."""
    settings: Settings = {"group_size": 64, "bits": 4}
    change(settings)
    ones = np.ones((4, 1), np.float32)
    layer = {"a.weight": np.ones((4, 8), np.uint32), "a.scales": ones, "a.biases": ones}
    return _written(folder, {"quantization": settings}, {**layer, **tensors})


def compressed(folder: Path, change: Callable[[Settings], object]) -> Path:
    """A layer `a` [4, 8] of 8 bits."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    settings: Settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    settings["config_groups"] = {"g": {"targets": ["Linear"], "weights": weights}}
    change(settings)
    layer = {"a.weight": np.ones((4, 8), np.int8), "a.weight_scale": np.ones((4, 1), np.float32)}
    return _written(folder, {"quantization_config": settings}, layer)


def _written(folder: Path, config: Settings, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CASES: dict[str, tuple[Callable[[Path, Callable[[Settings], object]], Path], Callable[[Settings], object]]] = {
    "mlx: for all layers": (mlx, lambda s: s.update(rotation="hadamard")),
    "mlx: for one layer": (mlx, lambda s: s.update(a={"group_size": 64, "bits": 4, "rotation": "hadamard"})),
    "compressed-tensors": (compressed, lambda s: s.update(rotation="hadamard")),
    "compressed-tensors: of a group": (compressed, lambda s: s["config_groups"]["g"].update(rotation="hadamard")),
    "compressed-tensors: of weights": (
        compressed,
        lambda s: s["config_groups"]["g"]["weights"].update(rotation="hadamard"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_setting_that_nobody_knows_is_refused_by_its_name(case: str, tmp_path: Path):
    make, change = CASES[case]
    assert qdeploy.load(make(tmp_path / "sound", lambda settings: None)).tensors["a.weight"].decode().any()
    with pytest.raises(UnsupportedError, match="not read changes") as caught:
        qdeploy.load(make(tmp_path / "other", change))
    assert caught.value.where.endswith("rotation")


def test_settings_of_layers_that_are_not_there_are_noted(tmp_path: Path):
    override = {"group_size": 32, "bits": 8}
    source = mlx(
        tmp_path / "m", lambda s: s.update(ghost=override, b=override, c=False), **{"b.weight": np.ones((4, 64))}
    )
    (note,) = qdeploy.load(source).notes
    assert "2 settings of layers without scales" in note and "ghost" in note


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "torchao", "hqq"])
def test_a_method_beside_floats_only_is_refused(method: str, tmp_path: Path):
    groups = {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int"}}}
    own = {"config_groups": groups} if method == "compressed-tensors" else {}
    section = {"quant_method": method, **own}
    source = _written(tmp_path / "m", {"quantization_config": section}, {"a.weight": np.ones((4, 8), np.float32)})
    with pytest.raises(BadFileError, match="none is stored so"):
        qdeploy.load(source)


def test_zero_points_beside_a_symmetric_scheme_are_refused_unless_they_are_zeros(tmp_path: Path):
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    section = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    section |= {"config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}  # type: ignore[dict-item]
    layer = {"a.weight": np.ones((4, 8), np.int8), "a.weight_scale": np.ones((4, 1), np.float32)}
    zeros = {"a.weight_zero_point": np.zeros((4, 1), np.int8)}
    sound = _written(tmp_path / "m", {"quantization_config": section}, {**layer, **zeros})
    assert (qdeploy.load(sound).tensors["a.weight"].decode() == 1).all()
    ones = {name: array + 1 for name, array in zeros.items()}
    other = _written(tmp_path / "n", {"quantization_config": section}, {**layer, **ones})
    with pytest.raises(BadFileError, match="symmetric"):
        qdeploy.load(other)


def test_a_damaged_tokenizer_is_noted(tmp_path: Path):
    source = _written(tmp_path / "m", {}, {"a.weight": np.ones((4, 8), np.float32)})
    for text, why in (('{"version": "1.0", "model', "damaged"), ("[]", "no object model")):
        (source / "tokenizer.json").write_text(text)
        report = qdeploy.convert(source, tmp_path / "p", to="ir", force=True)
        assert any(why in note and "texts cannot be run" in note for note in report["notes"])


@pytest.mark.parametrize(
    "algorithm", [{"name": "quarot"}, {"name": "rotation", "r4": False, "online_r1_rotation": True}]
)
def test_rotations_of_activations_in_quark_are_refused(algorithm: Settings, tmp_path: Path):
    weight = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
    section = {"quant_method": "quark", "global_quant_config": {"weight": weight}, "algo_config": [algorithm]}
    source = _written(tmp_path / "m", {"quantization_config": section}, {"a.weight": np.ones((4, 8), np.float32)})
    with pytest.raises(UnsupportedError, match="rotations of activations"):
        qdeploy.load(source)
