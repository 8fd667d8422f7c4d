"""No parameter of an operation is ignored: it is read, known to change no number, or refused by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coreml_files import Package, Stored, named

import qdeploy
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.coreml.operators import OPERATORS
from qdeploy.ir.run import Weights, run

SHAPE = (8, 12)


def package(kind: str, shape: tuple[int, ...] = (1, 12), outputs: int = 1, **parameters: int | list[int]) -> Package:
    """An operation over x [1, 12], beside a product that is the result."""
    p = Package()
    weight = p.blob(Stored("f32", np.ones(SHAPE, np.float32)))
    p.operation("const", [named("weight", "f32", SHAPE)], {"val": weight}, attributes=True)
    values = {key: p.immediate("int32", np.array(value)) for key, value in parameters.items()}
    places = [named(f"z{i}", "f32", shape) for i in range(outputs)]
    p.operation(kind, places, {**dict.fromkeys(("x", "y", "cond", "a", "b", "values", "indices"), "x"), **values})
    return p


NEEDED: dict[str, dict[str, int | list[int]]] = {
    "linear": {"weight": [1]},
    "reshape": {"shape": [12, 1]},
    "transpose": {"perm": [1, 0]},
    "expand_dims": {"axes": [0]},
    "slice_by_index": {"begin": [0, 0], "end": [1, 1]},
    "split": {"axis": 1, "split_sizes": [6, 6]},
    "tile": {"reps": [1, 1]},
    "layer_norm": {"axes": [1], "gamma": [1]},
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_parameter_that_nobody_knows_is_refused_by_its_name(kind: str, tmp_path: Path):
    p = package(kind, outputs=2 if kind == "split" else 1, **NEEDED.get(kind, {}), unheard_of=1)
    with pytest.raises(UnsupportedError, match="setting of an operator") as caught:
        _ = qdeploy.load(p.write(tmp_path, SHAPE)).graph
    assert "unheard_of" in caught.value.found


@pytest.mark.parametrize(("sizes", "extent"), [([5, 6], 12), ([6, 7], 12), ([6, 6], -1)])
def test_parts_that_are_not_known_to_be_the_whole_are_refused(sizes: list[int], extent: int, tmp_path: Path):
    p = Package()
    weight = p.blob(Stored("f32", np.ones(SHAPE, np.float32)))
    p.operation("const", [named("weight", "f32", SHAPE)], {"val": weight}, attributes=True)
    p.operation("relu", [named("r", "f32", (1, extent))], {"x": "x"})
    split = {"axis": p.immediate("int32", np.array(1)), "split_sizes": p.immediate("int32", np.array(sizes))}
    p.operation("split", [named(f"z{i}", "f32", (1, 6)) for i in range(2)], {"x": "r", **split})
    with pytest.raises(UnsupportedError, match="make up the whole"):
        _ = qdeploy.load(p.write(tmp_path, SHAPE)).graph


def test_what_every_operation_may_say_does_no_harm(tmp_path: Path):
    p = Package()
    weight = p.blob(Stored("f32", np.ones(SHAPE, np.float32)))
    p.operation("const", [named("weight", "f32", SHAPE)], {"val": weight}, attributes=True)
    p.operation("relu", [named("z", "f32", (1, 12))], {"x": "x", "name": p.immediate("int32", np.array(0))})
    model = qdeploy.load(p.write(tmp_path, SHAPE))
    (y,) = run(model.graph, {"x": np.ones((1, 12), np.float32)}, None, Weights(model))[0].values()
    np.testing.assert_array_equal(y, np.full((1, 8), 12, np.float32))


def test_a_record_of_another_type_than_its_value_is_refused(tmp_path: Path):
    p = package("relu")
    assert p.weights[68:72] == b"\2\0\0\0"  # float32, in the first record
    p.weights[68:72] = b"\x0e\0\0\0"
    with pytest.raises(BadFileError, match="another type than its value") as caught:
        qdeploy.load(p.write(tmp_path, SHAPE))
    assert caught.value.found == "int32"
