"""Integer TFLite networks give every code that the reference kernels give."""

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_files import Network

from qdeploy.formats.tflite import reader as tflite
from qdeploy.formats.tflite.schema import parse
from qdeploy.formats.tflite.stored import open_tensors
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder

RANDOM = np.random.default_rng(7)


def reference(path: Path, x: np.ndarray) -> dict[int, np.ndarray]:
    """Every tensor of a file for a batch, by its index."""
    output = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, experimental_preserve_all_tensors=True
    )
    output.allocate_tensors()
    results: dict[int, list[np.ndarray]] = {}
    for image in x:
        output.set_tensor(output.get_input_details()[0]["index"], image[None])
        output.invoke()
        for detail in output.get_tensor_details():
            try:
                results.setdefault(detail["index"], []).append(output.get_tensor(detail["index"]).copy())
            except ValueError:  # an operand that the kernels keep elsewhere
                continue
    return {index: np.concatenate(parts) for index, parts in results.items() if parts[0].ndim}


def compare(path: Path, x: np.ndarray) -> int:
    """Holds every value that an operator gives equal; returns how many."""
    model = tflite.read(Folder(path))
    graph = model.graph
    assert graph.meta["kind"] == "integer"
    seen: dict[str, np.ndarray] = {}
    run(graph, {graph.inputs[0].name: x}, None, Weights(model), seen.__setitem__)
    file = Folder(path).open(path.name)
    parsed = parse(file)
    file.close()
    names, _ = open_tensors(Folder(path), path.name, parsed)
    wanted, output = reference(path, x), [i for op in parsed.operators for i in op.outputs]
    for index in output:
        np.testing.assert_array_equal(seen[names[index]], wanted[index], err_msg=names[index])
    return len(output)


def codes(shape: tuple[int, ...], dtype: str = "int8", count: int = 12) -> np.ndarray:
    """A random batch over the whole range of a type."""
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max + 1, (count, *shape[1:])).astype(dtype)


def check(tmp_path: Path, network: Network, inputs: list[int], outputs: list[int]) -> None:
    """Writes a network and holds it equal to the kernels."""
    path = tmp_path / "n.tflite"
    path.write_bytes(network.write(inputs, outputs))
    arguments = network.tensors[inputs[0]]
    compare(path, codes(arguments.shape, arguments.dtype))


def zero(dtype: str, number: int) -> int:
    return number if dtype == "int8" else 0


def test_resnet8_agrees_in_every_value_and_reaches_its_accuracy(testdata: Path):
    path = testdata / "mlperf_tiny/pretrainedResnet_quant.tflite"
    images = np.load(testdata / "vision/cifar10/test_249_lossless.npz")
    x = (images["x"].astype(np.int16) - 128).astype(np.int8)
    assert compare(path, x[:6]) == 16
    model = tflite.read(Folder(path))
    (result,) = run(model.graph, {model.graph.inputs[0].name: x}, None, Weights(model))[0].values()
    assert int((result.argmax(axis=1) == images["y"]).sum()) == 215  # 86.35 %
    assert check_ranges(model.graph, model.tensors).values


def test_keyword_spotting_agrees_in_every_value(testdata: Path):
    clips = np.load(testdata / "mlperf_tiny/kws01_994_int8_mfcc.npz")
    path = testdata / "mlperf_tiny/kws_ref_model.tflite"
    assert compare(path, clips["x"][:8]) == 13
    model = tflite.read(Folder(path))
    (result,) = run(model.graph, {model.graph.inputs[0].name: clips["x"][:200]}, None, Weights(model))[0].values()
    assert (result.argmax(axis=1) == clips["y"][:200]).mean() > 0.85
    assert check_ranges(model.graph, model.tensors).values


@pytest.mark.parametrize("name", ["mlperf_tiny/ad01_int8.tflite", "checkpoints/tflite-int8-full-tinycnn/model.tflite"])
def test_other_published_networks_agree_in_every_value(testdata: Path, name: str):
    graph = tflite.read(Folder(testdata / name)).graph
    shape = tuple(n for n in graph.inputs[0].shape if isinstance(n, int))
    assert compare(testdata / name, codes((1, *shape))) >= 7


def test_the_oracle_of_the_published_network_is_met(testdata: Path):
    folder = testdata / "checkpoints/tflite-int8-full-tinycnn"
    model, oracle = tflite.read(Folder(folder / "model.tflite")), np.load(folder / "oracle.npz")
    (result,) = run(model.graph, {model.graph.inputs[0].name: oracle["x_q"]}, None, Weights(model))[0].values()
    np.testing.assert_array_equal(result, oracle["y"])


CONVOLUTIONS = {
    "strided relu6": {"act": 3, "stride": (2, 3)},
    "valid": {"pad": 1},
    "dilated": {"dilation": (2, 2)},
    "grouped": {"group": 2},
    "ties": {"power": True},
    "deep": {"deep": 3, "act": 1, "stride": (2, 2)},
    "deep ties": {"deep": 1, "power": True},
    "int16": {"dtype": "int16", "bias": "int64"},
    "int16 narrow": {"dtype": "int16", "bias": "int32"},
    "deep int16": {"dtype": "int16", "bias": "int64", "deep": 1},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree(tmp_path: Path, name: str):
    how = {
        "dtype": "int8",
        "bias": "int32",
        "act": 0,
        "pad": 0,
        "stride": (1, 1),
        "dilation": (1, 1),
        "group": 1,
        "deep": 0,
        "power": False,
    } | CONVOLUTIONS[name]
    network, dtype, channels = Network(), how["dtype"], 4
    x_scale = np.float32(0.5 if how["power"] else 0.05)
    filters = channels * how["deep"] or 8
    shape = (1, 3, 3, filters) if how["deep"] else (filters, 3, 3, channels // how["group"])
    scales = np.full(filters, 2.0**-5) if how["power"] else RANDOM.uniform(0.002, 0.01, filters)
    scales = scales.astype(np.float32)
    x = network.value("x", (1, 9, 7, channels), dtype, scale=x_scale, zero=zero(dtype, 7))
    w = network.constant(
        "w", RANDOM.integers(-127, 128, shape).astype(np.int8), scale=scales, axis=3 if how["deep"] else 0
    )
    b = network.constant("b", RANDOM.integers(-3000, 3000, filters).astype(how["bias"]), scale=scales * x_scale)
    space = [
        -(-n // s) if not how["pad"] else -(-(n - 2 * d) // s)
        for n, s, d in zip((9, 7), how["stride"], how["dilation"], strict=True)
    ]
    y_scale = 1.0 if how["power"] else 0.06 if dtype == "int8" else 0.0004
    y = network.value("y", (1, *space, filters), dtype, scale=y_scale, zero=zero(dtype, -11))
    options = {
        "Padding": how["pad"],
        "StrideH": how["stride"][0],
        "StrideW": how["stride"][1],
        "DilationHFactor": how["dilation"][0],
        "DilationWFactor": how["dilation"][1],
        "FusedActivationFunction": how["act"],
    }
    options |= {"DepthMultiplier": how["deep"]} if how["deep"] else {}
    options |= {"QuantizedBiasType": 2} if dtype == "int16" and how["bias"] == "int32" else {}
    network.add("DEPTHWISE_CONV_2D" if how["deep"] else "CONV_2D", [x, w, b], [y], **options)
    check(tmp_path, network, [x], [y])


@pytest.mark.parametrize(
    ("dtype", "bias"), [("int8", ""), ("int8", "int32"), ("int16", ""), ("int16", "int32"), ("int16", "int64")]
)
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("power", [False, True])
def test_matrix_products_agree(tmp_path: Path, dtype: str, channels: bool, power: bool, bias: str):
    network, count = Network(), 12 if channels else 1
    scale = np.float32(0.5 if power else 0.05)
    scales = (np.full(count, 2.0**-5) if power else RANDOM.uniform(0.002, 0.01, count)).astype(np.float32)
    x = network.value("x", (1, 40), dtype, scale=scale, zero=zero(dtype, 7))
    inputs = [x, network.constant("w", RANDOM.integers(-127, 128, (12, 40)).astype(np.int8), scale=scales)]
    if bias:
        numbers = RANDOM.integers(-3000, 3000, 12).astype(bias)
        inputs.append(network.constant("b", numbers, scale=scales * scale))
    y_scale = 1.0 if power else 0.06 if dtype == "int8" else 0.0004
    y = network.value("y", (1, 12), dtype, scale=y_scale, zero=zero(dtype, -11))
    narrow = {"QuantizedBiasType": 2} if (dtype, bias) == ("int16", "int32") else {}
    network.add("FULLY_CONNECTED", inputs, [y], FusedActivationFunction=0, **narrow)
    check(tmp_path, network, [x], [y])


SUMS = [
    ("ADD", "int8", (0.05, 0.021, 0.07), 0),
    ("ADD", "int8", (0.05, 0.03, 0.05), 3),
    ("ADD", "int8", (0.5,) * 3, 1),
    ("ADD", "int8", (0.5, 1e-6, 0.01), 0),
    ("ADD", "int16", (0.0005, 0.00021, 0.0007), 0),
    ("MUL", "int8", (0.05, 0.021, 0.07), 0),
    ("MUL", "int8", (0.5, 0.25, 2.0), 2),
    ("MUL", "int16", (0.0005, 0.00021, 0.00017), 1),
]


@pytest.mark.parametrize("case", SUMS, ids=str)
@pytest.mark.parametrize("constant", [False, True])
def test_sums_and_products_of_values_agree(tmp_path: Path, case: tuple, constant: bool):
    kind, dtype, scales, activation = case
    network, shape = Network(), (1, 5, 6, 4)
    a = network.value("a", shape, dtype, scale=scales[0], zero=zero(dtype, 7))
    if constant:
        b = network.constant("b", RANDOM.integers(-100, 100, 4).astype(dtype), scale=scales[1], zero=zero(dtype, -3))
    else:
        b = network.value("b", shape, dtype, scale=scales[1], zero=zero(dtype, -3))
        network.add("RELU", [a], [b])
    y = network.value("y", shape, dtype, scale=scales[2], zero=zero(dtype, -11))
    network.add(kind, [a, b], [y], FusedActivationFunction=activation)
    check(tmp_path, network, [a], [y])


@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("activation", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_pooling_agrees(tmp_path: Path, kind: str, padding: int, activation: int, dtype: str):
    network, same = Network(), {"scale": 0.05, "zero": zero(dtype, 7)}
    a = network.value("a", (1, 7, 9, 4), dtype, **same)
    y = network.value("y", (1, 3, 4, 4) if padding else (1, 4, 5, 4), dtype, **same)
    network.add(
        kind,
        [a],
        [y],
        Padding=padding,
        StrideW=2,
        StrideH=2,
        FilterWidth=3,
        FilterHeight=3,
        FusedActivationFunction=activation,
    )
    check(tmp_path, network, [a], [y])


@pytest.mark.parametrize("axes", [[1, 2], [1], [3], [1, 2, 3]])
@pytest.mark.parametrize("scales", [(0.05, 0.04), (0.05, 0.05), (0.5, 0.005), (0.25, 0.5)])
@pytest.mark.parametrize("side", [7, 8])
def test_means_agree(tmp_path: Path, axes: list[int], scales: tuple[float, float], side: int):
    network, shape = Network(), (1, side, 8, 4)
    a = network.value("a", shape, scale=scales[0], zero=7)
    at = network.constant("axes", np.array(axes, np.int32))
    y = network.value("y", tuple(1 if i in axes else n for i, n in enumerate(shape)), scale=scales[1], zero=-11)
    network.add("MEAN", [a, at], [y], KeepDims=True)
    check(tmp_path, network, [a], [y])


@pytest.mark.parametrize("scale", [0.001, 0.02, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 10), (1, 1), (1, 3, 200)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_softmax_agrees(tmp_path: Path, scale: float, shape: tuple[int, ...], beta: float):
    network = Network()
    a = network.value("a", shape, scale=scale, zero=3)
    y = network.value("y", shape, scale=1 / 256, zero=-128)
    network.add("SOFTMAX", [a], [y], Beta=beta)
    check(tmp_path, network, [a], [y])


def test_moves_and_conversions_agree(tmp_path: Path):
    network, same = Network(), {"scale": 0.05, "zero": 7}
    a = network.value("a", (1, 5, 6, 4), **same)
    spans = network.constant("spans", np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32))
    padded = network.value("padded", (1, 8, 9, 4), **same)
    network.add("PAD", [a, spans], [padded])
    joined = network.value("joined", (1, 8, 9, 8), **same)
    network.add("CONCATENATION", [padded, padded], [joined], Axis=3)
    relu = network.value("relu", (1, 8, 9, 8), scale=0.03, zero=-128)
    network.add("RELU6", [joined], [relu])
    other = network.value("other", (1, 8, 9, 8), scale=0.11, zero=5)
    network.add("QUANTIZE", [relu], [other])
    perm = network.constant("perm", np.array([0, 2, 1, 3], np.int32))
    turned = network.value("turned", (1, 9, 8, 8), scale=0.11, zero=5)
    network.add("TRANSPOSE", [other, perm], [turned])
    shape = network.constant("shape", np.array([1, 576], np.int32))
    flat = network.value("flat", (1, 576), scale=0.11, zero=5)
    network.add("RESHAPE", [turned, shape], [flat])
    check(tmp_path, network, [a], [flat])
