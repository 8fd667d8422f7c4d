"""Networks with learned clips and steps, converted as a user does, each target with its own check of the result."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_apot
import test_lsq
from residual_forward import mnist

import qdeploy

TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("onnx", {}),
    ("onnx", {"integer": "strict"}),
    ("onnx", {"integer": "fast"}),
    ("tvm", {}),
    ("ir", {}),
]
SMALL = {"blocks": (1,), "widths": (4,)}


def apot(folder: Path) -> Path:
    return test_apot.write(folder, test_apot.trained(4, **SMALL), bit=4, quantizer="apot")


def lsq(folder: Path) -> Path:
    message = test_lsq.SAID | {"weights": {"bits": 4}}
    return test_lsq.write(folder, test_lsq.trained(message, **SMALL), message | {"arch": "resnet4"})


@pytest.mark.parametrize(("to", "options"), TARGETS)
@pytest.mark.parametrize("make", [apot, lsq])
def test_every_target_takes_them(tmp_path: Path, make: Any, to: str, options: dict[str, Any]):
    if to == "tvm" and find_spec("tvm") is None:
        pytest.skip("needs apache-tvm")
    (tmp_path / "source").mkdir()
    report = qdeploy.convert(make(tmp_path / "source"), tmp_path / "out", to=to, **options)
    if to == "ir":
        model, source = qdeploy.load(tmp_path / "out"), qdeploy.load(tmp_path / "source")
        assert model.graph.nodes == source.graph.nodes
        for name, constant in source.graph.constants.items():
            np.testing.assert_array_equal(model.graph.constants[name].decode(), constant.decode())
    elif to == "tvm" or options:
        assert report["integers"]["bits"]["layer1.0.conv1/weight.folded"][0] in (4, 8)
        assert "method" not in report["integers"]


def test_onnx_runtime_keeps_the_codes_of_weights(tmp_path: Path):
    """Float weights between quantized activations it would round to 8 bits by itself."""
    (tmp_path / "source").mkdir()
    qdeploy.convert(apot(tmp_path / "source"), tmp_path / "out", to="onnx")
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    outputs = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type == "Conv" and node.output[0].startswith("layer")]
    assert len(layers) == 2 and all(outputs[node.input[1]].op_type == "DequantizeLinear" for node in layers)
    assert sum(node.op_type == "Gather" for node in graph.node) == 2  # the tables of levels


@pytest.mark.parametrize("name", ["mnist_resnet10_3bit_apot", "mnist_resnet10_4bit_uniform"])
def test_onnx_runtime_gives_the_networks_accuracy(testdata: Path, tmp_path: Path, name: str):
    onnxruntime = pytest.importorskip("onnxruntime")
    qdeploy.convert(testdata / f"vision/apot/{name}.safetensors", tmp_path / "out", to="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"), options)
    _, count, _, _, right = test_apot.FILES[name]
    x, y = mnist(testdata, count)
    assert abs(int((session.run(None, {"input": x})[0].argmax(axis=1) == y).sum()) - right) <= 1
