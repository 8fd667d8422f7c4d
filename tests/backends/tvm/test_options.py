"""The backend's options: what is written, the extents of free axes, and one clear error for each that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from qdeploy.backends.tvm.options import Options
from qdeploy.cli import cli
from qdeploy.errors import BadArgumentError, UnsupportedError


def convert(network: Path, *arguments: object) -> object:
    """Runs the command into `out` beside the network; returns the error of the family, or None."""
    inputs = [network, network.parent / "out", "--to", "tvm", "--calibrate", network.parent / "data.npz", *arguments]
    result = CliRunner().invoke(cli, ["convert", "-q", *(str(a) for a in inputs)])
    if result.exit_code == 2:
        return result.output
    assert result.exception is None or isinstance(result.exception, BadArgumentError | UnsupportedError), result.output
    return result.exception


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A layer over [n, length, 8], both axes free, and beside it data.npz."""
    rng = np.random.default_rng(2)
    weight = numpy_helper.from_array(rng.standard_normal((8, 5)).astype(np.float32), "w")
    shapes = (["n", "length", 8], ["n", "length", 5])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in zip("xy", shapes, strict=True))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "n", [x], [y], [weight])
    output = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(output, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((20, 3, 8)).astype(np.float32))
    return tmp_path / "net.onnx"


def test_the_form_asked_for_is_written_with_the_extents_asked_for(tvm: None, network: Path):
    assert convert(network, "--form", "library", "--axis", "n=2", "--axis", "length=7") is None
    out = network.parent / "out"
    assert (out / "model.so").is_file() and not (out / "bare").exists()
    manifest = json.loads((out / "tvm.json").read_text())
    assert manifest["axes"] == {"n": 2, "length": 7} and manifest["inputs"][0]["shape"] == [2, 7, 8]
    assert json.loads((out / "report.json").read_text())["options"]["axes"] == {"n": 2, "length": 7}
    assert CliRunner().invoke(cli, ["verify", str(network), str(out)]).exit_code == 0


def test_a_batch_is_one_unless_it_is_given_and_bare_stands_alone(tvm: None, network: Path):
    assert convert(network, "--form", "bare", "--axis", "length=4") is None
    assert json.loads((network.parent / "out/tvm.json").read_text())["axes"] == {"n": 1, "length": 4}
    assert (network.parent / "out/bare/kernels.o").is_file() and not (network.parent / "out/model.so").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--axis", "sequence=4"), ["no such free axis", "sequence", "n, length"]),
        (("--axis", "n=2"), ["a free axis without an extent", "length"]),
        (("--axis", "length"), ["'length' is not a name and a positive integer"]),
        (("--axis", "length=0"), ["'length=0' is not"]),
        (("--axis", "length=-1"), ["'length=-1' is not"]),
        (("--axis", "=3"), ["'=3' is not"]),
        (("--axis", "length=4", "--axis", "length=5"), ["length has two extents, 4 and 5"]),
        (("--form", "c"), ["unknown form", "library, bare"]),
        (("--form", "bare", "--target", "m68k"), ["no such target", "m68k", "host"]),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(network: Path, arguments: tuple[str, ...], said: list[str]):
    error = convert(network, *arguments)
    assert all(part in str(error) for part in said), error
    assert not (network.parent / "out").exists()


@pytest.mark.parametrize("given", [{"axes": {"batch": 0}}, {"axes": {"batch": True}}, {"forms": ()}])
def test_options_are_looked_at_before_any_work(given: dict[str, object]):
    with pytest.raises(BadArgumentError):
        Options(**given)  # type: ignore[arg-type]


def test_other_targets_have_no_such_options(network: Path):
    for option in ("--form", "bare"), ("--axis", "n=2"):
        arguments = ["convert", str(network), str(network.parent / "out"), *option]
        assert "no such option" in str(CliRunner().invoke(cli, arguments).exception)
