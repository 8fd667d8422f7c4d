"""Every family of decoders runs in the runtime as transformers has it: logits, continuations, prompts cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.arch.family import family_of
from tests.arch.test_architectures import FOLDERS, ROOT, distance

pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)

from qdeploy.native import Runtime

CHANGING = ("phi3",)
"""Families with frequencies of their own for long sequences: there, a prompt says more than its tokens one by one."""


def is_decoder(name: str) -> bool:
    config = json.loads((ROOT / "architectures" / name / "config.json").read_text())
    family = family_of(config["model_type"])
    heads = family.heads.get(config["model_type"], ()) if family is not None else ()
    oracle = np.load(ROOT / "architectures" / name / "oracle.npz")
    return config["architectures"][0] in heads and "greedy" in oracle and "decoder_input_ids" not in oracle


@pytest.mark.parametrize("name", [name for name in FOLDERS if is_decoder(name)])
def test_a_decoder_gives_what_transformers_gives(testdata: Path, tmp_path: Path, name: str):
    folder = testdata / "architectures" / name
    with np.load(folder / "oracle.npz") as file:
        oracle = dict(file)
    qdeploy.convert(folder, tmp_path / "model.qd", to="native")
    prompt, continuation = oracle["input_ids"][0].tolist(), oracle["greedy"][0].tolist()
    with Runtime(tmp_path / "model.qd", threads=2, activations="exact", kv="f32") as model:
        last = model.decode(prompt)
        assert distance(last, oracle["logits"][0, -1]) < 1e-4
        generated, logits = [], last
        for _ in continuation:
            generated.append(int(np.argmax(logits)))
            logits = model.decode(generated[-1:])
        assert generated == continuation
        model.reset()
        for at in range(0, len(prompt), 3):
            logits = model.decode(prompt[at : at + 3])
        if not any(part in name for part in CHANGING):
            np.testing.assert_array_equal(logits, last)
        model.reset()
        short = oracle["input_ids_2"][1].tolist()
        assert distance(model.decode(short), oracle["logits_2"][1, -1]) < 1e-4
