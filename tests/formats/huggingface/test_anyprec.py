"""Any-Precision LLM and AnyBCQ: the widths as rungs, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layers import P
from layers_small import anybcq, anybcq_numbers, anyprec
from packed_layers import open_
from published import write

from qdeploy.errors import QdeployError
from qdeploy.ir.decode import decode_tensor


def test_every_width_is_a_rung(tmp_path: Path) -> None:
    layer = anyprec(2, 4, 5, 96)
    tensor = open_(write(tmp_path / "c", layer.tensors, None, layer.config)).tensors[layer.parameter]
    codes = _codes(layer.tensors[f"{P}.lut4"][1], layer.expected)
    assert len(tensor.rungs) == 3
    for rung, bits in enumerate((2, 3, 4)):
        want = np.take_along_axis(layer.tensors[f"{P}.lut{bits}"][1], codes >> (4 - bits), 1)
        np.testing.assert_array_equal(decode_tensor(tensor, rung=rung), want.astype(np.float32))


def test_every_width_is_a_rung_of_signs(tmp_path: Path) -> None:
    layer = anybcq(2, 4, 5, 96, group=48)
    spare = {f"{P}.q_bias": ("F16", np.zeros((2, 5), np.float16))}
    model = open_(write(tmp_path / "c", {**layer.tensors, **spare}, None, layer.config))
    tensor, words = model.tensors[layer.parameter], layer.tensors[f"{P}.qweight"][1].view(np.uint32)
    bits_of = words[:, None] >> np.arange(32, dtype=np.uint32)[:, None, None] & 1
    signs = bits_of.transpose(2, 3, 0, 1).reshape(4, 5, 96)
    assert f"{P}.q_bias" in model.tensors
    assert len(tensor.rungs) == 3
    for rung, bits in enumerate((2, 3, 4)):
        want = anybcq_numbers(layer.tensors, signs.astype(np.int64), bits)
        np.testing.assert_array_equal(decode_tensor(tensor, rung=rung), want)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed_precision": 1},
        {"parent_precision": 5},
        {"group_size": 24},
        {"group_size": 40},
        {"group_size": 0},
        {"group_size": None},
    ],
)
def test_settings_that_deny_the_signs_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    layer = anybcq(2, 4, 5, 96, group=48)
    with pytest.raises(QdeployError, match=rf"anybcq|{P}"):
        open_(write(tmp_path / "c", layer.tensors, None, {"anybcq": {**layer.config["anybcq"], **wrong}}))


def _codes(levels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which level of its row each number is."""
    result = levels[:, None, :] == numbers.astype(np.float16)[:, :, None]
    assert (result.sum(2) == 1).all()
    return result.argmax(2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed_precision": 4},
        {"seed_precision": 0},
        {"seed_precision": "3"},
        {"seed_precision": 2},
        {"parent_precision": 3},
        {"parent_precision": 9},
        {"group_count": 2},
        None,
    ],
)
def test_settings_that_deny_the_tensors_are_refused(tmp_path: Path, wrong: dict[str, object] | None) -> None:
    layer = anyprec(3, 4, 5, 64)
    own = {"anyprec": {**layer.config["anyprec"], **wrong} if wrong else [3, 4]}
    if wrong == {"seed_precision": 4}:
        assert not open_(write(tmp_path / "c", layer.tensors, None, own)).tensors[layer.parameter].rungs
        return
    with pytest.raises(QdeployError, match=rf"anyprec|{P}"):
        open_(write(tmp_path / "c", layer.tensors, None, own))
