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
from qdeploy.errors import UnsupportedError

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
