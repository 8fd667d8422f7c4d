"""Networks in integers: close to the float network they come from, equal to the quantized one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import qdeploy
from qdeploy.calibrate.calibrate import calibrate
from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Arithmetic
from qdeploy.integer.integerize import integerize, layer_names
from qdeploy.integer.plan import Bits
from qdeploy.ir.element import as_value, element_dtype, integer_type
from qdeploy.ir.graph import Graph, Node, State, Value
from qdeploy.ir.model import Model
from qdeploy.ir.ops.integer import INTEGER_ROWS
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import plain_tensor

RNG = np.random.default_rng(12)
ALLOWED = {row.name for row in INTEGER_ROWS} | {
    "Reshape",
    "Transpose",
    "Flatten",
    "Concat",
    "Slice",
    "Pad",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "MaxPool",
    "Relu",
    "Clip",
    "Gather",
}
IMAGES = RNG.standard_normal((24, 3, 12, 12)).astype(np.float32)


def f32(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def network(nodes: list[Node], weights: Mapping[str, np.ndarray], *outputs: str) -> Model:
    output = {name: plain_tensor(np.asarray(array)) for name, array in weights.items()}
    graph = Graph((Value("x", "F32", ("batch", 3, 12, 12)),), tuple(Value(n, "F32", ()) for n in outputs), tuple(nodes))
    return Model("test", "memory", output, build_graph=lambda _: graph)


PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}
WEIGHTS = {
    "w1": f32(8, 3, 3, 3),
    "b1": f32(8),
    "w2": f32(8, 8, 3, 3),
    "w3": f32(8, 4, 3, 3),
    "b3": f32(8),
    "w4": f32(10, 24),
    "b4": f32(10),
    "pads": np.array([0, 0, 0, 0, 0, 8, 0, 0]),
    "w5": f32(16, 8, 1, 1),
}
EVERYTHING = [
    Node("Conv", ("x", "w1", "b1"), ("c1",), PADDED),
    Node("Relu", ("c1",), ("r1",)),
    Node("Conv", ("r1", "w2"), ("c2",), PADDED),
    Node("Add", ("c2", "r1"), ("a1",)),
    Node("Relu", ("a1",), ("r2",)),
    Node("Conv", ("r2", "w5"), ("c5",), {"strides": [2, 2]}),
    Node("Slice", ("r2",), ("s1",), {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2]}),
    Node("Pad", ("s1", "pads"), ("p1",)),
    Node("Add", ("p1", "c5"), ("a2",)),
    Node("Clip", ("a2",), ("r3",), {"min": 0.0, "max": 2.0}),
    Node("Split", ("r3",), ("h1", "h2"), {"axis": 1, "num_outputs": 2}),
    Node("Conv", ("h1", "w3", "b3"), ("c3",), PADDED | {"group": 2}),
    Node("Sigmoid", ("c3",), ("g3",)),
    Node("MaxPool", ("h2",), ("m1",), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Node("AveragePool", ("h2",), ("v1",), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Node("Concat", ("g3", "m1", "v1"), ("k",), {"axis": 1}),
    Node("GlobalAveragePool", ("k",), ("gap",)),
    Node("Flatten", ("gap",), ("flat",)),
    Node("Gemm", ("flat", "w4", "b4"), ("y",), {"transB": 1}),
]


def given_codes(made: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    (value,) = made.graph.inputs
    how, limits = made.graph.meta["quantization"][value.name], np.iinfo(element_dtype(value.dtype))  # type: ignore
    return {value.name: np.clip(np.rint(x / np.float32(how["scale"])) + how["zero"], limits.min, limits.max)}


def computed(made: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs as real numbers."""
    result, _ = run(made.graph, given_codes(made, x), {}, Weights(made))
    numbers: Any = made.graph.meta["quantization"]
    return {n: (v.astype(np.float64) - numbers[n]["zero"]) * numbers[n]["scale"] for n, v in result.items()}


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_network_of_every_layer_is_close_and_holds_nothing_but_integers():
    model = network(EVERYTHING, WEIGHTS, "y")
    output = integerize(model, calibrate(model, {"x": IMAGES}).values)
    assert {node.op for node in output.graph.nodes} <= ALLOWED
    tensors = {**output.tensors, **output.graph.constants}
    assert all(integer_type(tensor) for tensor in tensors.values())
    assert output.graph.meta["kind"] == "integer" and output.graph.outputs[0].dtype == "I32"
    wanted = run(model.graph, {"x": IMAGES}, {}, Weights(model))[0]["y"]
    assert distance(computed(output, IMAGES)["y"], wanted) < 0.03


@pytest.mark.parametrize("arithmetic", [Arithmetic("half_even"), Arithmetic("half_away", hawq=True)])
def test_the_rounding_is_that_which_is_asked_for(arithmetic: Arithmetic):
    model = network(EVERYTHING, WEIGHTS, "y")
    output = integerize(model, calibrate(model, {"x": IMAGES}).values, arithmetic=arithmetic)
    assert {n.attrs["rounding"] for n in output.graph.nodes if n.op == "Requantize"} == {arithmetic.rounding}


def test_bits_are_chosen_layer_by_layer():
    model = network(EVERYTHING, WEIGHTS, "y")
    assert layer_names(model) == ["w1", "w2", "w5", "w3", "w4"]
    result = calibrate(model, {"x": IMAGES}).values
    output = integerize(model, result, Bits(weights=4, activations=4, layers={"w2": (2, 8)}))
    types = {name.split("/")[0]: integer_type(tensor) for name, tensor in output.tensors.items()}
    assert types == {"w1": "I8", "w2": "I2", "w5": "I4", "w3": "I4", "w4": "I8"}
    assert {int(as_value(t).astype(int).min()) >= -8 for n, t in output.tensors.items() if n.startswith("w3")} == {True}
    inputs = {n.inputs[1].split("/")[0]: n.inputs[0] for n in output.graph.nodes if n.op == "IntegerConv"}
    makers = {n.outputs[0]: n for n in output.graph.nodes}
    assert makers[inputs["w2"]].attrs["hi"] == 255 and makers[inputs["w5"]].attrs["hi"] == 15
    with pytest.raises(UnsupportedError, match="does not have"):
        integerize(model, result, Bits(layers={"w9": (4, 4)}))
    with pytest.raises(UnsupportedError, match="no form"):
        integerize(model, result, Bits(weights=3))


def test_what_has_no_integer_form_is_one_clear_error():
    model = network([Node("Conv", ("x", "w1"), ("y",))], WEIGHTS, "y")
    with pytest.raises(UnsupportedError, match="no activation scale") as error:
        integerize(model)
    assert error.value.where == "x"
    strange = network([Node("CumSum", ("x", "pads"), ("y",))], WEIGHTS, "y")
    with pytest.raises(UnsupportedError, match="without an integer form"):
        integerize(strange, {"x": (-1, 1)})
    with pytest.raises(UnsupportedError, match="bias does not fit"):
        heavy = network([Node("Conv", ("x", "w1", "b1"), ("y",))], WEIGHTS | {"b1": f32(8) + 1e9}, "y")
        integerize(heavy, {"x": (0, 1)})
    decoder = Graph((), (), (), (State("kv.0", 1, 8),))
    with pytest.raises(UnsupportedError, match="decoder"):
        integerize(Model("test", "memory", {}, build_graph=lambda _: decoder))


# ---- networks that the source has quantized, against ONNX Runtime


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": IMAGES}]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def quantized(folder: Path, form: QuantFormat, activations: QuantType, weights: QuantType, channels: bool) -> Path:
    """A residual block with pooling and a classifier, as ONNX Runtime quantizes it."""
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], **conv),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b1"], ["c2"], **conv),
        helper.make_node("Add", ["c2", "r1"], ["a1"]),
        helper.make_node("MaxPool", ["a1"], ["m1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m1"], ["g1"]),
        helper.make_node("Flatten", ["g1"], ["f1"]),
        helper.make_node("Gemm", ["f1", "w4", "b4"], ["y"], transB=1),
    ]
    used = {name: WEIGHTS[name] for name in ("w1", "b1", "w2", "b4")} | {"w4": WEIGHTS["w4"][:, :8].copy()}
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s)]
        for n, s in (("x", ["batch", 3, 12, 12]), ("y", ["batch", 10]))
    ]
    graph = helper.make_graph(nodes, "test", *infos, [numpy_helper.from_array(a, n) for n, a in used.items()])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "float.onnx"
    )
    quantize_static(
        folder / "float.onnx",
        folder / "model.onnx",
        Images(),
        quant_format=form,
        per_channel=channels,
        activation_type=activations,
        weight_type=weights,
        reduce_range=activations == QuantType.QUInt8,
    )
    return folder / "model.onnx"


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize(
    "activations, weights, channels",
    [
        (QuantType.QUInt8, QuantType.QInt8, True),
        (QuantType.QUInt8, QuantType.QUInt8, False),
        (QuantType.QInt8, QuantType.QInt8, False),
    ],
)
def test_a_quantized_network_keeps_its_codes(tmp_path: Path, form: Any, activations: Any, weights: Any, channels: bool):
    path = quantized(tmp_path, form, activations, weights, channels)
    model = qdeploy.load(path)
    output = integerize(model)
    scale = output.graph.meta["quantization"]["y"]["scale"]  # type: ignore
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": IMAGES})[0]
    assert np.abs(computed(output, IMAGES)["y"] - wanted).max() <= 1.01 * scale
    assert output.graph.outputs[0].dtype in ("U8", "I8")


def test_activations_of_16_bits_stay_as_the_source_has_them():
    """QuantizeLinear to int16 and back, around a layer with int8 weights."""
    scale, small = np.array(1e-4, np.float32), np.array(0.02, np.float32)
    nodes = [
        Node("QuantizeLinear", ("x", "s", "z"), ("q",)),
        Node("DequantizeLinear", ("q", "s", "z"), ("d",)),
        Node("DequantizeLinear", ("codes", "t"), ("w",)),
        Node("Conv", ("d", "w"), ("c",), PADDED),
        Node("QuantizeLinear", ("c", "t", "z"), ("r",)),
        Node("DequantizeLinear", ("r", "t", "z"), ("y",)),
    ]
    weights = {
        "s": scale,
        "t": small,
        "z": np.array(0, np.int16),
        "codes": RNG.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
    }
    model = network(nodes, weights, "y")
    output = integerize(model)
    assert [(v.dtype) for v in (*output.graph.inputs, *output.graph.outputs)] == ["I16", "I16"]
    wanted = run(model.graph, {"x": IMAGES}, {}, Weights(model))[0]["y"]
    assert np.abs(computed(output, IMAGES)["y"] - wanted).max() <= 1.01 * small


# ---- trained networks


def test_resnet20_in_integers_decides_as_in_floats(testdata: Path):
    folder = testdata / "vision" / "cifar10"
    model = qdeploy.load(folder / "resnet20_fp32.onnx")
    mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    def images(name: str, count: int) -> np.ndarray:
        x = np.load(folder / name)["x"][:count]
        return ((x / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)

    ranges = calibrate(model, {"x": images("calib_1024_jpeg.npz", 64)}).values
    x = images("test_2000_jpeg.npz", 120)
    wanted = run(model.graph, {"x": x}, {}, Weights(model))[0]["logits"]
    for bits, least in ((Bits(), 0.96), (Bits(weights=4), 0.8)):
        result = computed(integerize(model, ranges, bits), x)["logits"]
        assert (result.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= least
