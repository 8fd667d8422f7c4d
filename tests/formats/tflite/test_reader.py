"""TFLite files come in: their tensors, float networks, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_files import Network

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.tflite import reader as tflite
from qdeploy.integer.integerize import integerize
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.registry import open_model
from qdeploy.store.folder import Folder

RANDOM = np.random.default_rng(3)
NAMES = ["tflite-dynamic-tinycnn", "tflite-fp16-tinycnn", "tflite-int8-full-tinycnn"]


def output(model: Model, x: np.ndarray) -> np.ndarray:
    (result,) = run(model.graph, {model.graph.inputs[0].name: x}, None, Weights(model))[0].values()
    return result


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    outputs = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    outputs.resize_tensor_input(outputs.get_input_details()[0]["index"], x.shape)
    outputs.allocate_tensors()
    outputs.set_tensor(outputs.get_input_details()[0]["index"], x)
    outputs.invoke()
    return outputs.get_tensor(outputs.get_output_details()[0]["index"])


def written(tmp_path: Path, network: Network, inputs: list[int], outputs: list[int]) -> Path:
    path = tmp_path / "n.tflite"
    path.write_bytes(network.write(inputs, outputs))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_weights_decode_to_what_the_library_gives(testdata: Path, name: str):
    folder = testdata / "checkpoints" / name
    model, oracle = tflite.read(Folder(folder / "model.tflite")), np.load(folder / "oracle.npz")
    for key in oracle.files:
        if key.startswith("w:") and key[2:] in model.tensors:
            np.testing.assert_array_equal(model.tensors[key[2:]].decode(), oracle[key].astype(np.float32))
    assert len(model.tensors) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_tensor_is_proven(testdata: Path, name: str):
    model = open_model(testdata / "checkpoints" / name)
    assert model.format == "tflite"
    for tensor in model.tensors.values():
        tensor.decode()
    assert model.origins and all(origin.proven for origin in model.origins)


@pytest.mark.parametrize(("name", "limit"), [(NAMES[0], 2e-2), (NAMES[1], 1e-5)])
def test_the_oracle_is_met(testdata: Path, name: str, limit: float):
    folder = testdata / "checkpoints" / name
    model, oracle = tflite.read(Folder(folder / "model.tflite")), np.load(folder / "oracle.npz")
    result = output(model, oracle["x_float"])
    assert np.linalg.norm(result - oracle["y"]) <= limit * np.linalg.norm(oracle["y"])


@pytest.mark.parametrize("name", ["ad01_fp32", "pretrainedResnet"])
def test_float_networks_agree_with_the_library(testdata: Path, name: str):
    path = testdata / "mlperf_tiny" / f"{name}.tflite"
    model = tflite.read(Folder(path))
    x = RANDOM.standard_normal((3, *model.graph.inputs[0].shape[1:])).astype(np.float32)
    np.testing.assert_allclose(output(model, x), reference(path, x), rtol=1e-4, atol=1e-5)


def test_images_are_not_turned_between_two_convolutions(testdata: Path):
    graph = tflite.read(Folder(testdata / "mlperf_tiny/pretrainedResnet.tflite")).graph
    constants = {name for node in graph.nodes for name in node.inputs} - {
        n for node in graph.nodes for n in node.outputs
    }
    turned = [node for node in graph.nodes if node.op == "Transpose" and node.inputs[0] not in constants]
    assert len(turned) == 1  # behind the last pooling


def test_a_float_network_becomes_an_integer_one_with_given_ranges(testdata: Path):
    model = tflite.read(Folder(testdata / "mlperf_tiny/ad01_fp32.tflite"))
    x = RANDOM.standard_normal((16, 640)).astype(np.float32)
    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, value: np.ndarray) -> None:
        ranges[name] = (float(value.min()), float(value.max()))

    run(model.graph, {model.graph.inputs[0].name: x}, None, Weights(model), note)
    outputs = integerize(model, ranges)
    ends: dict[str, dict[str, float]] = outputs.graph.meta["quantization"]  # type: ignore[assignment]
    arguments = ends[outputs.graph.inputs[0].name]
    codes = np.clip(np.rint(x / arguments["scale"]) + arguments["zero"], -128, 127)
    result = output(outputs, codes) * ends[outputs.graph.outputs[0].name]["scale"]
    wanted = output(model, x)
    assert np.linalg.norm(result - wanted) < 0.05 * np.linalg.norm(wanted)


def float_network() -> tuple[Network, list[int], list[int]]:
    """Operators with channels first and last in turn, and a depthwise convolution with gaps."""
    n, image = Network(), (1, 8, 9, 4)
    x = n.value("x", image, "float32")
    w = n.constant("w", RANDOM.standard_normal((1, 3, 3, 8)).astype(np.float32))
    b = n.constant("b", RANDOM.standard_normal(8).astype(np.float16))
    wide = n.value("wide", (8,), "float32")
    n.add("DEQUANTIZE", [b], [wide])
    y = n.value("deep", (1, 8, 9, 8), "float32")
    n.add(
        "DEPTHWISE_CONV_2D",
        [x, w, wide],
        [y],
        Padding=0,
        StrideW=1,
        StrideH=1,
        DepthMultiplier=2,
        DilationHFactor=2,
        DilationWFactor=1,
        FusedActivationFunction=3,
    )
    z = n.value("swish", (1, 8, 9, 8), "float32")
    n.add("HARD_SWISH", [y], [z])
    spans = n.constant("spans", np.array([[0, 0], [1, 0], [0, 2], [0, 0]], np.int32))
    p = n.value("padded", (1, 9, 11, 8), "float32")
    n.add("PAD", [z, spans], [p])
    m = n.value("max", (1, 5, 6, 8), "float32")
    n.add("MAX_POOL_2D", [p], [m], Padding=0, StrideW=2, StrideH=2, FilterWidth=3, FilterHeight=2)
    c = n.value("joined", (1, 5, 6, 16), "float32")
    n.add("CONCATENATION", [m, m], [c], Axis=-1)
    scale = n.constant("scale", RANDOM.standard_normal(16).astype(np.float32))
    s = n.value("scaled", (1, 5, 6, 16), "float32")
    n.add("MUL", [c, scale], [s], FusedActivationFunction=2)
    at = n.constant("axes", np.array([1, 2], np.int32))
    mean = n.value("mean", (1, 16), "float32")
    n.add("MEAN", [s, at], [mean], KeepDims=False)
    out = n.value("out", (1, 16), "float32")
    n.add("SOFTMAX", [mean], [out], Beta=1.0)
    return n, [x], [out]


def test_operators_of_float_networks_agree_with_the_library(tmp_path: Path):
    path = written(tmp_path, *float_network())
    x = RANDOM.standard_normal((2, 8, 9, 4)).astype(np.float32)
    np.testing.assert_allclose(output(tflite.read(Folder(path)), x), reference(path, x), rtol=1e-5, atol=1e-6)


def test_float_ends_of_an_integer_network_are_left_to_the_caller(tmp_path: Path):
    n = Network()
    x, q = n.value("x", (1, 6), "float32"), n.value("q", (1, 6), scale=0.5, zero=3)
    n.add("QUANTIZE", [x], [q])
    w = n.constant("w", RANDOM.integers(-127, 128, (4, 6)).astype(np.int8), scale=0.25)
    y, out = n.value("y", (1, 4), scale=2.0, zero=-1), n.value("out", (1, 4), "float32")
    n.add("FULLY_CONNECTED", [q, w], [y], FusedActivationFunction=0)
    n.add("DEQUANTIZE", [y], [out])
    graph = tflite.read(Folder(written(tmp_path, n, [x], [out]))).graph
    assert ([v.name for v in graph.inputs], [v.name for v in graph.outputs]) == (["q"], ["y"])
    assert graph.meta["quantization"] == {"q": {"scale": 0.5, "zero": 3}, "y": {"scale": 2.0, "zero": -1}}


def test_names_that_occur_twice_are_told_apart(tmp_path: Path):
    n = Network()
    a, b = n.value("v", (1, 4), "float32"), n.value("v", (1, 4), "float32")
    n.add("RELU", [a], [b])
    graph = tflite.read(Folder(written(tmp_path, n, [a], [b]))).graph
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("v:0", "v:1")


def test_an_operator_without_a_row_is_named(tmp_path: Path):
    n = Network()
    a, b = n.value("a", (1, 4), "float32"), n.value("b", (1, 4), "float32")
    n.add("RELU_0_TO_1", [a], [b])
    with pytest.raises(UnsupportedError) as caught:
        _ = tflite.read(Folder(written(tmp_path, n, [a], [b]))).graph
    assert caught.value.found == "RELU_0_TO_1 (1)"


def test_a_weight_with_zero_points_is_refused(tmp_path: Path):
    n = Network()
    x = n.value("x", (1, 6), scale=0.5, zero=3)
    w = n.constant("w", RANDOM.integers(-127, 128, (4, 6)).astype(np.int8), scale=0.25, zero=2)
    y = n.value("y", (1, 4), scale=2.0)
    n.add("FULLY_CONNECTED", [x, w], [y], FusedActivationFunction=0)
    with pytest.raises(UnsupportedError, match="zero points"):
        _ = tflite.read(Folder(written(tmp_path, n, [x], [y]))).graph


def test_two_networks_in_one_folder_are_ambiguous(tmp_path: Path):
    path = written(tmp_path, *float_network())
    (tmp_path / "other.tflite").write_bytes(path.read_bytes())
    with pytest.raises(AmbiguousError):
        tflite.read(Folder(tmp_path))


def test_a_tensor_that_is_larger_than_its_buffer_is_an_error(tmp_path: Path):
    n = Network()
    x = n.value("x", (1, 6), "float32")
    w = n.constant("w", np.zeros((4, 6), np.float32))
    n.tensors[w].shape = (4, 600_000_000)
    y = n.value("y", (1, 4), "float32")
    n.add("FULLY_CONNECTED", [x, w], [y], FusedActivationFunction=0)
    with pytest.raises(BadFileError, match="size contradicts"):
        tflite.read(Folder(written(tmp_path, n, [x], [y])))
