"""A file with several networks: the one that is named is read, and none is chosen in silence."""

from pathlib import Path

import numpy as np
import pytest
from tflite_files import Network, write_several

import qdeploy
from qdeploy.errors import AmbiguousError, BadArgumentError
from qdeploy.ir.run import run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    networks = {}
    for name, kind, size in (("encode", "RELU", 4), ("decode", "NEG", 7)):
        n = Network()
        x, y = n.value("x", (1, size), "float32"), n.value("y", (1, size), "float32")
        n.add(kind, [x], [y])
        networks[name] = (n, [x], [y])
    path = tmp_path / "two.tflite"
    path.write_bytes(write_several(networks))
    return path


def test_the_error_lists_the_networks(file: Path):
    with pytest.raises(AmbiguousError) as caught:
        qdeploy.load(file)
    assert caught.value.found == "encode, decode"
    assert "--signature" in caught.value.todo


@pytest.mark.parametrize(("name", "wanted"), [("encode", [0, 2, 0, 4]), ("decode", [1, -2, 3, -4, 5, -6, 7])])
def test_the_network_that_is_named_is_read_and_the_others_are_noted(file: Path, name: str, wanted: list[float]):
    model = qdeploy.load(file, signature=name)
    x = np.array([[-1, 2, -3, 4, -5, 6, -7]], np.float32)[:, : len(wanted)]
    (result,) = run(model.graph, {"x": x}, None, {})[0].values()
    np.testing.assert_array_equal(result[0], wanted)
    other = {"encode": "decode", "decode": "encode"}[name]
    assert model.notes == [f"networks of the file that were not asked for: {other}"]


def test_a_name_that_is_none_is_refused(file: Path):
    with pytest.raises(BadArgumentError) as caught:
        qdeploy.load(file, signature="prefill")
    assert caught.value.allowed == "encode, decode"


def test_a_format_without_signatures_refuses_one():
    with pytest.raises(BadArgumentError, match="one network"):
        qdeploy.load("examples/models/tiny-llama", signature="encode")


def test_an_output_is_held_against_the_network_that_it_was_made_of(file: Path, tmp_path: Path):
    qdeploy.convert(file, tmp_path / "out", signature="decode")
    assert qdeploy.verify(file, tmp_path / "out")["equal"]
