"""Networks over one axis (audio, sensors) become integers like those over two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdeploy


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """[n, 10, 50]: a strided convolution, one per channel, a residual sum, both poolings; beside it data.npz."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((16, 10, 5)) / 7,
        "w2": rng.standard_normal((16, 1, 3)) / 2,
        "w3": rng.standard_normal((16, 16, 1)) / 4,
        "w4": rng.standard_normal((5, 16)) / 3,
        "b1": rng.standard_normal(16),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[5], strides=[2], pads=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], kernel_shape=[3], pads=[1, 1], group=16),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], kernel_shape=[1]),
        helper.make_node("Add", ["c3", "r1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r3"]),
        helper.make_node("MaxPool", ["r3"], ["m"], kernel_shape=[2], strides=[2]),
        helper.make_node("AveragePool", ["m"], ["v"], kernel_shape=[3], strides=[2]),
        helper.make_node("GlobalAveragePool", ["v"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4"], ["y"], transB=1),
    ]
    shapes = {"x": ["n", 10, 50], "y": ["n", 5]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    contents = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "n", [x], [y], contents)
    output = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(output, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 10, 50)).astype(np.float32))
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(("mode", "bits", "limit"), [("strict", 8, 0), ("strict", 4, 0), ("fast", 8, 0.05)])
def test_a_convolution_over_one_axis_becomes_integers(
    network: Path, tmp_path: Path, mode: str, bits: int, limit: float
):
    out, data = tmp_path / "out", tmp_path / "data.npz"
    report = qdeploy.convert(network, out, integer=mode, calibrate=str(data), weight_bits=bits)
    assert report["checks"][0]["error"] <= limit
    assert {name: w for name, (w, _) in report["integers"]["bits"].items()} == {
        "w1": 8,
        "w2": bits,
        "w3": bits,
        "w4": 8,
    }


def test_its_result_is_near_that_of_the_float_network(network: Path, tmp_path: Path):
    import onnxruntime

    qdeploy.convert(network, tmp_path / "out", integer="strict", calibrate=str(tmp_path / "data.npz"))
    scales = json.loads((tmp_path / "out/report.json").read_text())["integers"]["quantization"]
    with np.load(tmp_path / "data.npz") as arrays:
        x = arrays["x"]
    wanted = onnxruntime.InferenceSession(network).run(None, {"x": x})[0]
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    arguments, output = session.get_inputs()[0], session.get_outputs()[0].name
    span = np.iinfo({"tensor(int8)": np.int8, "tensor(uint8)": np.uint8}[arguments.type])
    codes = np.rint(x / scales[arguments.name]["scale"] + scales[arguments.name]["zero"]).clip(span.min, span.max)
    result = session.run(None, {arguments.name: codes.astype(span.dtype)})[0].astype(np.float64)
    result = (result - scales[output]["zero"]) * scales[output]["scale"]
    assert np.abs(result - wanted).max() < 0.05 * np.abs(wanted).max()
