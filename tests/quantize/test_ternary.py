"""Ternary weights are those of the papers' formula, and every target carries them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Buffer, plain
from qdeploy.native import Runtime
from qdeploy.quantize.contract import Grid, Weight
from qdeploy.quantize.ternary import Ternary
from tests.quantize.test_bitstack import TINY

RANDOM = np.random.default_rng(3)


def made(values: np.ndarray, **settings: object) -> tuple[np.ndarray, Weight]:
    weight = Weight("w", plain(Buffer.of("w", values, "F32"), "f32"))
    return Ternary(**settings).quantize(weight, (), Grid()).decode(), weight  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["mean", "median"])
@pytest.mark.parametrize("group", [0, 16, 24, 1000])
def test_the_weights_are_those_of_the_formula(scale: str, group: int):
    values = RANDOM.standard_normal((9, 70)).astype(np.float32)
    own, weight = made(values, scale=scale, group=group)
    reference = np.empty_like(values)
    cells = [(slice(None), slice(None))]
    if group:
        cells = [(slice(r, r + 1), slice(c, min(c + group, 70))) for r in range(9) for c in range(0, 70, group)]
    for cell in cells:
        size = {"mean": np.mean, "median": np.median}[scale](np.abs(values[cell]))
        reference[cell] = np.maximum(-1, np.minimum(1, np.round(values[cell] / size))) * size
    np.testing.assert_allclose(own, reference, rtol=1e-6)
    noise = np.square(own - values).sum()
    assert weight.losses["w"] == pytest.approx(10 * np.log10(np.square(values).sum() / noise), abs=1e-3)


def test_a_group_of_zeros_stays_zero():
    values = RANDOM.standard_normal((4, 32)).astype(np.float32)
    values[1, :16] = 0
    own, _ = made(values, group=16)
    assert (own[1, :16] == 0).all() and np.isfinite(own).all()


def test_what_is_not_a_number_is_refused():
    values = np.full((2, 16), np.nan, np.float32)
    with pytest.raises(BadFileError, match="not a number"):
        made(values)


def test_a_file_runs_with_them(tmp_path: Path):
    report = qdeploy.convert(TINY, tmp_path / "model.qd", to="native", quantize="ternary:group=32,skip=embed|lm_head")
    assert report["summary"]["lossy tensors"] == []
    with Runtime(tmp_path / "model.qd") as runtime:
        assert np.isfinite(np.asarray(runtime.logits([1, 5, 9]))).all()
