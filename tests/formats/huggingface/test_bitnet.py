"""BitNet's online layers: floats that the library rounds at every call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layers import P
from packed_layers import open_, read_all
from published import FLOATS, Stored, bf16, bitnet_online, write

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.ir.views import Lookup, view

ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def weights(seed: int, dtype: str = "BF16") -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((12, 20)) * 0.05).astype(FLOATS[dtype])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_online_layers_are_rounded_as_the_library_does(tmp_path: Path, dtype: str) -> None:
    floats = weights(0, dtype)
    model = open_(write(tmp_path / "c", {f"{P}.weight": (dtype, floats)}, ONLINE))
    tensor = model.tensors[f"{P}.weight"]
    np.testing.assert_array_equal(tensor.decode(), bitnet_online(floats))
    assert isinstance(view(tensor), Lookup) and view(tensor).is_ternary
    assert tensor.source is not None and tensor.source.exact == "values"
    read_all(model)
    assert all(origin.values_only for origin in model.origins)


def test_what_comes_of_online_layers_is_a_package_that_verifies(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", {f"{P}.weight": ("BF16", weights(1))}, ONLINE)
    report = qdeploy.convert(folder, tmp_path / "out", to="ir")
    assert report["lossless"]["values"]["proven"] == 1 and report["lossless"]["tensor bytes"]["proven"] == 0
    assert qdeploy.verify(folder, tmp_path / "out")["equal"]


@pytest.mark.parametrize(
    ("listed", "plain"),
    [
        (None, {"lm_head", "model.embed_tokens"}),
        ([], {"model.embed_tokens"}),
        (["lm_head", "up_proj"], {"lm_head", "model.embed_tokens", P}),
        (["model.layers.*.mlp"], {"model.embed_tokens", P}),
        (["model.layers.1"], {"model.embed_tokens"}),
    ],
)
def test_which_layers_stay_floats(tmp_path: Path, listed: list[str] | None, plain: set[str]) -> None:
    names = ("lm_head", "model.embed_tokens", P)
    tensors: Stored = {f"{name}.weight": ("BF16", weights(2)) for name in names}
    model = open_(write(tmp_path / "c", tensors, {**ONLINE, "modules_to_not_convert": listed}))
    for name in names:
        decoded, stored = model.tensors[f"{name}.weight"].decode(), weights(2)
        np.testing.assert_array_equal(decoded, stored.astype(np.float32) if name in plain else bitnet_online(stored))


@pytest.mark.parametrize("listed", ["lm_head", [3], {"lm_head": True}])
def test_a_list_that_is_none_is_refused(tmp_path: Path, listed: Any) -> None:
    tensors: Stored = {f"{P}.weight": ("BF16", weights(3))}
    with pytest.raises(QdeployError, match="modules_to_not_convert"):
        open_(write(tmp_path / "c", tensors, {**ONLINE, "modules_to_not_convert": listed}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    floats = weights(4)
    floats[3, 5] = value
    model = open_(write(tmp_path / "c", {f"{P}.weight": ("BF16", floats)}, ONLINE))
    with pytest.raises(QdeployError, match=P):
        model.tensors[f"{P}.weight"].decode()


@pytest.mark.parametrize("code", [0b11, 0b11000000])
def test_code_three_is_refused_by_name(tmp_path: Path, code: int) -> None:
    tensors: Stored = {
        f"{P}.weight": ("U8", np.full((2, 4), code, np.uint8)),
        f"{P}.weight_scale": ("BF16", bf16(np.ones(1, np.float32))),
    }
    folder = write(tmp_path / "c", tensors, {"quant_method": "bitnet"})
    with pytest.raises(QdeployError, match=P):
        qdeploy.convert(folder, tmp_path / "out", to="ir")


def test_other_numbers_than_ternary_ones_under_a_scale_are_refused_by_name(tmp_path: Path) -> None:
    tensors: Stored = {
        f"{P}.weight": ("BF16", weights(5)),
        f"{P}.weight_scale": ("BF16", bf16(np.ones(1, np.float32))),
    }
    folder = write(tmp_path / "c", tensors, {"quant_method": "bitnet", "linear_class": "autobitlinear"})
    with pytest.raises(QdeployError, match=P):
        qdeploy.convert(folder, tmp_path / "out", to="ir")


@pytest.mark.parametrize("to", ["onnx", "native"])
def test_quotients_of_ternary_codes_are_carried_without_loss(testdata: Path, tmp_path: Path, to: str) -> None:
    folder = testdata / "formats/bitnet-bitlinear-tinyllama2"
    report = qdeploy.convert(folder, tmp_path / "out", to=to)
    assert all(form["lossless"] for row in report["tensors"].values() for form in row.get("forms", ()))
