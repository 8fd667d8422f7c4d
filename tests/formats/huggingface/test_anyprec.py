"""Any-Precision LLM: the widths as rungs, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layers import P
from layers_small import anyprec
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


def _codes(levels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which level of its row each number is."""
    found = levels[:, None, :] == numbers.astype(np.float16)[:, :, None]
    assert (found.sum(2) == 1).all()
    return found.argmax(2)


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
