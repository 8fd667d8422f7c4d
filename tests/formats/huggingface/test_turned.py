"""Activations that are turned around layers: the network computes what it computed before its weights were turned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import Stored, write
from safetensors.numpy import load_file

import qdeploy
from qdeploy import registry
from qdeploy.errors import QdeployError, UnsupportedError

TINY = Path("examples/models/tiny-llama")
IDS = np.array([[3, 141, 59, 26, 5, 358]])
Arrays = dict[str, np.ndarray]


def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix: the sign of element (i, j) is the parity of i and j."""
    return np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])


def blocks(matrix: np.ndarray, width: int) -> np.ndarray:
    """The matrix in blocks along the diagonal."""
    return np.kron(np.eye(width // len(matrix)), matrix)


@pytest.fixture(scope="module")
def floats() -> Arrays:
    return {name: array.astype(np.float32) for name, array in load_file(TINY / "model.safetensors").items()}


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return logits(TINY)


def logits(path: Path) -> np.ndarray:
    return qdeploy.load(path).run(input_ids=IDS)["logits"]


def saved(folder: Path, tensors: Arrays, section: dict[str, Any]) -> Path:
    config = json.loads((TINY / "config.json").read_text())
    stored: Stored = {name: ("F32", np.ascontiguousarray(array, np.float32)) for name, array in tensors.items()}
    write(folder, stored, section, config)
    for path in TINY.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def turned_inputs(tensors: Arrays, chosen: Callable[[str], bool], matrix: Callable[[int], np.ndarray]) -> Arrays:
    """Weights whose inputs are x M: W M^-T."""
    changed = {}
    for name, array in tensors.items():
        if linear(name) and chosen(name):
            array = array.astype(np.float64) @ np.linalg.inv(blocks(matrix(array.shape[1]), array.shape[1])).T
        changed[name] = array.astype(np.float32)
    return changed


def settings(**groups: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "transform_config": {"config_groups": groups}}


def apply(location: str, *targets: str, inverse: bool = False, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"targets": list(targets), "location": location, "inverse": inverse, "ignore": list(ignore)}


def assert_close(actual: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    assert np.linalg.norm(actual.reshape(wanted.shape) - wanted) <= limit * np.linalg.norm(wanted)


def assert_same_everywhere(folder: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    """In the interpreter, from a package, in ONNX Runtime and in the native runtime."""
    assert_close(logits(folder), wanted, 2e-5)
    qdeploy.convert(folder, tmp_path / "package", to="ir")
    assert_close(logits(tmp_path / "package"), wanted, 2e-5)
    for target, limit in (("onnx", 2e-5), ("native", 2e-2)):
        out = tmp_path / ("m.qd" if target == "native" else target)
        qdeploy.convert(folder, out, to=target)
        text = registry.backend(target).text
        assert text is not None
        assert_close(text.logits(str(out), IDS), wanted, limit)


def in_blocks(folder: Path, floats: Arrays) -> Path:
    tensors = turned_inputs(floats, lambda name: True, lambda width: hadamard(64) / 8)
    group = {"type": "hadamard", "head_dim": 64, "apply": [apply("input", "Linear", ignore=("re:.*lm_head",))]}
    return saved(folder, tensors, settings(u=group))


def test_inputs_in_blocks(tmp_path: Path, floats: Arrays, expected: np.ndarray) -> None:
    assert_same_everywhere(in_blocks(tmp_path / "c", floats), expected, tmp_path)


def test_one_value_is_turned_once(tmp_path: Path, floats: Arrays) -> None:
    graph = qdeploy.load(in_blocks(tmp_path / "c", floats)).graph
    assert sum(node.op == "Hadamard" for node in graph.nodes) == 4 * 5  # q, k and v; o; gate and up; down


def test_whole_rows_by_a_stored_matrix_that_layers_share(tmp_path: Path, floats: Arrays, expected: np.ndarray) -> None:
    random = np.random.default_rng(1)
    signs = hadamard(128) * random.choice([-1.0, 1.0], 128)
    tensors = turned_inputs(floats, lambda name: "q_proj" in name, lambda width: signs.T / np.sqrt(128))
    tensors["model.layers.0.self_attn.q_proj.R_input.weight"] = signs
    group = {"type": "random-hadamard", "apply": [apply("input", "re:.*q_proj", inverse=True)]}
    assert_same_everywhere(saved(tmp_path / "c", tensors, settings(R=group)), expected, tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_a_matrix_that_is_no_rotation(tmp_path: Path, floats: Arrays, expected: np.ndarray, whole: bool) -> None:
    size = 384 if whole else 48
    matrix = np.random.default_rng(2).random((size, size)) + np.eye(size) * 4
    tensors = turned_inputs(floats, lambda name: "down_proj" in name, lambda width: matrix)
    for layer in range(5):
        tensors[f"model.layers.{layer}.mlp.down_proj.M_input.weight"] = matrix
    group = {"type": "random-matrix", "head_dim": None if whole else size, "apply": [apply("input", "re:.*down_proj")]}
    folder = saved(tmp_path / "c", tensors, settings(M=group))
    assert_close(logits(folder), expected, 1e-3)
    qdeploy.convert(folder, tmp_path / "onnx", to="onnx")
    text = registry.backend("onnx").text
    assert text is not None
    assert_close(text.logits(str(tmp_path / "onnx"), IDS), expected, 1e-3)


def test_outputs_are_turned_back_behind_the_layer(tmp_path: Path, floats: Arrays, expected: np.ndarray) -> None:
    turn = blocks(hadamard(32) / np.sqrt(32), 64)
    tensors = {n: turn @ a if n.endswith("v_proj.weight") else a for n, a in floats.items()}
    group = {"type": "hadamard", "head_dim": 32, "apply": [apply("output", "re:.*v_proj")]}
    assert_same_everywhere(saved(tmp_path / "c", tensors, settings(R=group)), expected, tmp_path)


def test_what_is_in_the_weights_already_and_what_takes_itself_back(
    tmp_path: Path, floats: Arrays, expected: np.ndarray
) -> None:
    fused = {"type": "hadamard", "apply": [apply("weight_output", "re:.*o_proj"), apply("weight_input", "Linear")]}
    heads = {
        "type": "hadamard",
        "head_dim": 32,
        "apply": [apply("q_attn", "re:.*self_attn"), apply("k_cache", "re:.*self_attn")],
    }
    folder = saved(tmp_path / "c", floats, settings(R1=fused, R3=heads))
    model = qdeploy.load(folder)
    assert any("R3 turns queries and keys alike" in note for note in model.notes)
    assert_close(model.run(input_ids=IDS)["logits"], expected, 1e-6)


@pytest.mark.parametrize(
    ("group", "named"),
    [
        ({"type": "fourier"}, "fourier"),
        ({"type": "hadamard", "randomize": True}, "randomize"),
        ({"type": "hadamard", "apply": [apply("attn_output", "Linear")]}, "attn_output"),
        ({"type": "hadamard", "apply": [apply("q_attn", "re:.*self_attn")]}, "q_attn"),
        ({"type": "hadamard", "head_dim": 48, "apply": [apply("input", "re:.*q_proj")]}, "q_proj"),
        ({"type": "hadamard", "apply": [apply("input", "re:.*down_proj")]}, "down_proj"),
        ({"type": "random-matrix", "apply": [apply("input", "re:.*q_proj")]}, "q_proj.R_input.weight"),
        ({"type": "hadamard", "apply": "everywhere"}, "apply"),
        ("hadamard", "R"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, floats: Arrays, group: Any, named: str) -> None:
    with pytest.raises(QdeployError) as caught:
        qdeploy.load(saved(tmp_path / "c", floats, settings(R=group)))
    assert named in str(caught.value)


def test_a_turned_weight_that_is_an_embedding_too_is_refused(tmp_path: Path, floats: Arrays) -> None:
    tied = {name: array for name, array in floats.items() if name != "lm_head.weight"}
    group = {"type": "hadamard", "apply": [apply("input", "model.embed_tokens")]}
    folder = saved(tmp_path / "c", tied, settings(R=group))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = qdeploy.load(folder)
    with pytest.raises(UnsupportedError, match="embed_tokens"):
        _ = model.graph
