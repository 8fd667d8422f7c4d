"""Work grows with the file, and no faster: many tensors, nodes and positions."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import qdeploy
from qdeploy.errors import QdeployError, UnsupportedError
from tests.hostile import attacks_gguf, attacks_graphs, attacks_safetensors

TINY = attacks_safetensors.ROOT / "examples/models/tiny-llama"


def _gguf(folder: Path, count: int) -> Path:
    return attacks_gguf._written(folder, attacks_gguf._many(count))


def _safetensors(folder: Path, count: int) -> Path:
    row = {"dtype": "F32", "shape": [8]}
    header = {f"t{i}": {**row, "data_offsets": [32 * i, 32 * i + 32]} for i in range(count)}
    return attacks_safetensors.raw(folder, header, bytes(32 * count))


def _nodes(folder: Path, count: int) -> Path:
    names = ["x", *(f"n{i}" for i in range(count - 1)), "y"]
    return _onnx(folder, [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


def _weights(folder: Path, count: int) -> Path:
    names = ["x", *(f"n{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Add", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    return _onnx(folder, nodes, {f"w{i}": np.ones(3, np.float32) for i in range(count)})


def _onnx(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None) -> Path:
    return attacks_graphs._saved(folder, attacks_graphs.network(nodes, weights))


def _seconds(make: Callable[[Path, int], Path], count: int, folder: Path) -> float:
    folder.mkdir()
    source = make(folder, count)
    start = time.process_time()
    qdeploy.convert(source, folder / "out", to="ir", check="none")
    return time.process_time() - start


@pytest.mark.parametrize("make", [_gguf, _safetensors, _nodes, _weights])
def test_four_times_as_much_takes_four_times_as_long(make: Callable[[Path, int], Path], tmp_path: Path):
    _seconds(make, 10, tmp_path / "warm")
    few = min(_seconds(make, 500, tmp_path / f"few{i}") for i in range(2))
    many = _seconds(make, 2000, tmp_path / "many")
    assert many < 7 * few + 0.2, f"{few:.2f} s and {many:.2f} s"


def _with_positions(folder: Path, count: int) -> Path:
    source = Path(shutil.copytree(TINY, folder / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": count}))
    return source


def test_tables_of_rotations_for_eight_million_positions_are_refused_by_onnx_alone(tmp_path: Path):
    source = _with_positions(tmp_path, 8_000_000)
    start = time.process_time()
    with pytest.raises(UnsupportedError, match="so many positions") as refused:
        qdeploy.convert(source, tmp_path / "out", to="onnx")
    assert time.process_time() - start < 5
    assert "max_position_embeddings" in refused.value.where and "--to native" in refused.value.todo
    assert not (tmp_path / "out").exists()
    qdeploy.convert(source, tmp_path / "out.qd", to="native")
    assert (tmp_path / "out.qd").stat().st_size < 10 << 20


@pytest.mark.parametrize("count", [1 << 40, 10**30])
@pytest.mark.parametrize("to", ["onnx", "native"])
def test_positions_that_no_counter_holds_are_an_error(to: str, count: int, tmp_path: Path):
    with pytest.raises(QdeployError):
        qdeploy.convert(_with_positions(tmp_path, count), tmp_path / "out", to=to)
