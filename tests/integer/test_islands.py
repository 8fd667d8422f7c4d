"""Layers in 8 bits between floats: what has no integer form stays as it is, and integers alone refuse all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import qdeploy
from qdeploy.calibrate.calibrate import calibrate
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.integer.islands import META, with_islands
from qdeploy.ir.run import Weights, run

RNG = np.random.default_rng(6)
WEIGHTS = {
    "stem": (RNG.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32),
    "body": (RNG.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32),
    "deep": (RNG.standard_normal((32, 1, 3, 3)) / 3).astype(np.float32),
    "bias": RNG.standard_normal(32).astype(np.float32),
    "head": (RNG.standard_normal((32, 16)) / 6).astype(np.float32),
}


def network(folder: Path, lines: list[str], shape: tuple[int, ...] = (1, 32, 8, 8)) -> Path:
    """Nodes from lines: operator, inputs, output, attributes."""
    nodes, used = [], set()
    for line in lines:
        op, *rest = line.split()
        attrs: dict[str, Any] = dict(part.split("=") for part in rest if "=" in part)
        pads = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
        *inputs, output = [part for part in rest if "=" not in part]
        used.update(inputs)
        nodes.append(
            helper.make_node(op, inputs, [output], **{k: int(v) for k, v in attrs.items()}, **pads, name=output)
        )
    initializers = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in used]
    ends = [helper.make_tensor_value_info("x", T.FLOAT, shape), helper.make_tensor_value_info("y", T.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    outputs = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    folder.mkdir(exist_ok=True)
    onnx.save(outputs, folder / "model.onnx")
    return folder


MIXED = [
    "Conv x stem bias a",
    "Relu a b",
    "Conv b body bias c",
    "Add b c d",
    "InstanceNormalization d bias bias e",
    "Conv e deep f group=32",
    "GlobalAveragePool f g",
    "Flatten g h",
    "MatMul h head y",
]


def data(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=RNG.standard_normal((6, 32, 8, 8)).astype(np.float32))
    return folder / "data.npz"


def test_layers_are_codes_and_everything_else_stays_float(tmp_path: Path):
    model = qdeploy.load(network(tmp_path / "source", MIXED))
    x = RNG.standard_normal((6, 32, 8, 8)).astype(np.float32)
    mixed = with_islands(model, calibrate(model, {"x": x}).values)
    kinds = {name: tensor.terms[0].values.table for name, tensor in mixed.tensors.items()}  # type: ignore[union-attr]
    assert kinds["stem/int8"] == kinds["body/int8"] == "int8" and "deep" in mixed.tensors
    assert mixed.graph.meta[META] == {"InstanceNormalization": 1, "Conv": 1, "GlobalAveragePool": 1, "Flatten": 1}
    wanted = run(model.graph, {"x": x[:1]}, {}, Weights(model))[0]["y"]
    actual = run(mixed.graph, {"x": x[:1]}, {}, Weights(mixed))[0]["y"]
    assert 0 < np.linalg.norm(actual - wanted) < 0.05 * np.linalg.norm(wanted)


def test_the_output_runs_and_is_what_the_interpreter_computes(tmp_path: Path):
    source = network(tmp_path / "source", MIXED)
    report = qdeploy.convert(source, tmp_path / "out", integer="fast", calibrate=str(data(tmp_path)), check="full")
    assert "not_run" not in report and any("layers in 8 bits" in note for note in report["notes"])
    assert qdeploy.verify(source, tmp_path / "out")["equal"]


@pytest.mark.parametrize("to", [{"to": "onnx", "integer": "strict"}, {"to": "tvm"}])
def test_integers_alone_refuse_before_they_calibrate(
    tmp_path: Path, to: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    source = network(tmp_path / "source", [*MIXED[:5], "InstanceNormalization e bias bias e2", "LogSoftmax e2 y"])
    monkeypatch.setattr("qdeploy.calibrate.network.calibrate", lambda *_, **__: pytest.fail("it calibrated"))
    with pytest.raises(UnsupportedError, match="without an integer form") as caught:
        qdeploy.convert(source, tmp_path / "out", calibrate=str(data(tmp_path)), **to)
    assert caught.value.found == "InstanceNormalization (2): e, e2; LogSoftmax (1): y"


def test_a_network_of_which_nothing_would_be_faster_is_refused(tmp_path: Path):
    source = network(tmp_path / "source", ["Conv x deep a group=32", "InstanceNormalization a bias bias y"])
    with pytest.raises(UnsupportedError, match="nothing would change"):
        qdeploy.convert(source, tmp_path / "out", integer="fast", calibrate=str(data(tmp_path)))


def test_options_that_islands_cannot_honour_are_refused(tmp_path: Path):
    source = network(tmp_path / "source", MIXED)
    with pytest.raises(BadArgumentError, match="no other arithmetic"):
        qdeploy.convert(source, tmp_path / "out", integer="fast", calibrate=str(data(tmp_path)), weight_bits=4)
