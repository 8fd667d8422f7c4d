"""Every operator of float networks gives what the kernels of the library give, in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_files import Network

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite import reader as tflite
from qdeploy.formats.tflite.floats import FLOAT
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder

RANDOM = np.random.default_rng(5)
IMAGE = (1, 6, 5, 4)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


X, POSITIVE = normal(*IMAGE), np.abs(normal(*IMAGE)) + 0.1
ROWS = normal(3, 8)
SLICED = [i32(0, 1, 0, 1), i32(1, 5, 5, 4), i32(1, 2, 1, 1)]
BOOL = "bool"

CASES: list[tuple[str, list[Any], list[tuple[tuple[int, ...], str]], dict[str, Any]]] = [
    *(
        (kind, [X], [(IMAGE, "float32")], {})
        for kind in ("SIN", "COS", "SIGN", "FLOOR", "CEIL", "ROUND", "ELU", "SQUARE")
    ),
    *((kind, [POSITIVE], [(IMAGE, "float32")], {}) for kind in ("LOG", "RSQRT")),
    *((kind, [X, normal(4)], [(IMAGE, "float32")], {}) for kind in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE")),
    *(
        (kind, [X, np.where(X > 0, X, 0)], [(IMAGE, BOOL)], {})
        for kind in ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")
    ),
    ("POW", [POSITIVE, normal(1)], [(IMAGE, "float32")], {}),
    ("FLOOR_DIV", [X, POSITIVE], [(IMAGE, "float32")], {}),
    ("ADD_N", [X, POSITIVE, X], [(IMAGE, "float32")], {}),
    ("LOGICAL_AND", [X > 0, POSITIVE > 1], [(IMAGE, BOOL)], {}),
    ("LOGICAL_OR", [X > 0, POSITIVE > 1], [(IMAGE, BOOL)], {}),
    ("LOGICAL_NOT", [X > 0], [(IMAGE, BOOL)], {}),
    ("SELECT", [X > 0, X, POSITIVE], [(IMAGE, "float32")], {}),
    ("SELECT_V2", [X > 0, X, normal(4)], [(IMAGE, "float32")], {}),
    ("CAST", [X * 9], [(IMAGE, "int32")], {"InDataType": 0, "OutDataType": 2}),
    ("PRELU", [X, normal(1, 1, 4)], [(IMAGE, "float32")], {}),
    ("GELU", [X], [(IMAGE, "float32")], {"Approximate": True}),
    ("GELU", [X], [(IMAGE, "float32")], {"Approximate": False}),
    ("LOG_SOFTMAX", [ROWS], [((3, 8), "float32")], {}),
    ("L2_NORMALIZATION", [ROWS], [((3, 8), "float32")], {"FusedActivationFunction": 0}),
    *(
        (kind, [X, i32(1, 2)], [((1, 4), "float32")], {"KeepDims": False})
        for kind in ("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")
    ),
    ("SUM", [X, i32(-1)], [((1, 6, 5, 1), "float32")], {"KeepDims": True}),
    ("ARG_MAX", [X, i32(3)], [((1, 6, 5), "int32")], {"OutputType": 2}),
    ("ARG_MIN", [X, i32(-1)], [((1, 6, 5), "int64")], {"OutputType": 4}),
    ("TOPK_V2", [ROWS, i32(3)], [((3, 3), "float32"), ((3, 3), "int32")], {}),
    ("CUMSUM", [ROWS, i32(1)], [((3, 8), "float32")], {"Exclusive": True, "Reverse": True}),
    ("BATCH_MATMUL", [normal(2, 3, 5), normal(2, 4, 5)], [((2, 3, 4), "float32")], {"AdjY": True}),
    ("BATCH_MATMUL", [normal(2, 5, 3), normal(2, 5, 4)], [((2, 3, 4), "float32")], {"AdjX": True}),
    ("STRIDED_SLICE", [X, *SLICED], [((1, 2, 5, 3), "float32")], {"BeginMask": 0}),
    ("STRIDED_SLICE", [X, i32(0, -1, 9, 1), i32(9, -9, 1, 3), i32(1, -2, -1, 1)], [((1, 3, 3, 2), "float32")], {}),
    (
        "STRIDED_SLICE",
        [X, i32(0, 1, 2, 3), i32(1, 5, 9, 4), i32(1, 1, 1, 1)],
        [((1, 5, 3), "float32")],
        {"BeginMask": 2, "EndMask": 4, "ShrinkAxisMask": 8},
    ),
    (
        "STRIDED_SLICE",
        [X, i32(0, 0, 1), i32(0, 0, 3), i32(1, 1, 1)],
        [((1, 6, 5, 2), "float32")],
        {"EllipsisMask": 1, "NewAxisMask": 0, "BeginMask": 2, "EndMask": 2},
    ),
    (
        "STRIDED_SLICE",
        [X, i32(0, 0, -1), i32(1, 0, 0), i32(1, 1, 1)],
        [((1, 1, 5, 4), "float32")],
        {"NewAxisMask": 2, "ShrinkAxisMask": 4},
    ),
    ("SLICE", [X, i32(0, 2, 0, 1), i32(1, -1, 5, 2)], [((1, 4, 5, 2), "float32")], {}),
    ("REVERSE_V2", [X, i32(1)], [(IMAGE, "float32")], {}),
    ("SPLIT", [i32(3), X], [((1, 6, 5, 2), "float32")] * 2, {"NumSplits": 2}),
    ("SPLIT_V", [X, i32(1, 3), i32(-1)], [((1, 6, 5, 1), "float32"), ((1, 6, 5, 3), "float32")], {"NumSplits": 2}),
    ("PACK", [ROWS, ROWS + 1], [((3, 2, 8), "float32")], {"Axis": 1, "ValuesCount": 2}),
    ("UNPACK", [ROWS.T.copy()], [((8,), "float32")] * 3, {"Axis": 1, "Num": 3}),
    ("GATHER", [ROWS, i32(2, 0, 0)], [((3, 8), "float32")], {"Axis": 0}),
    ("GATHER", [ROWS, i32(7, 1)], [((3, 2), "float32")], {"Axis": 1}),
    ("GATHER_ND", [ROWS, np.array([[2, 1], [0, 7]], np.int32)], [((2,), "float32")], {}),
    ("EMBEDDING_LOOKUP", [i32(2, 1), ROWS], [((2, 8), "float32")], {}),
    ("TILE", [ROWS, i32(2, 3)], [((6, 24), "float32")], {}),
    ("BROADCAST_TO", [normal(1, 8), i32(3, 8)], [((3, 8), "float32")], {}),
    ("SHAPE", [X], [((4,), "int32")], {"OutType": 2}),
    ("MIRROR_PAD", [X, np.array([[0, 0], [2, 1], [1, 0], [0, 0]], np.int32)], [((1, 9, 6, 4), "float32")], {"Mode": 0}),
    *(
        ("RESIZE_BILINEAR", [X, i32(9, 10)], [((1, 9, 10, 4), "float32")], how)
        for how in ({"AlignCorners": False}, {"AlignCorners": True}, {"HalfPixelCenters": True})
    ),
    *(
        ("RESIZE_NEAREST_NEIGHBOR", [X, i32(13, 3)], [((1, 13, 3, 4), "float32")], how)
        for how in ({"AlignCorners": False}, {"AlignCorners": True}, {"HalfPixelCenters": True})
    ),
    (
        "TRANSPOSE_CONV",
        [i32(1, 12, 10, 3), normal(3, 3, 2, 4), X],
        [((1, 12, 10, 3), "float32")],
        {"Padding": 0, "StrideH": 2, "StrideW": 2},
    ),
    (
        "TRANSPOSE_CONV",
        [i32(1, 13, 7, 3), normal(3, 3, 3, 4), X, normal(3)],
        [((1, 13, 7, 3), "float32")],
        {"Padding": 1, "StrideH": 2, "StrideW": 1},
    ),
    ("DEPTH_TO_SPACE", [X], [((1, 12, 10, 1), "float32")], {"BlockSize": 2}),
    ("SPACE_TO_DEPTH", [normal(1, 6, 4, 2)], [((1, 3, 2, 8), "float32")], {"BlockSize": 2}),
]
"""Operator, operands (the first of them float are inputs, int32 are constants), results, options."""
ELSEWHERE = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV", "AVERAGE_POOL_2D"}
ELSEWHERE |= {"MAX_POOL_2D", "SOFTMAX", "CONCATENATION", "TRANSPOSE", "PAD", "PADV2", "DEQUANTIZE", "RELU", "RELU6"}
ELSEWHERE |= {"RELU_N1_TO_1", "LOGISTIC", "TANH", "EXP", "ABS", "SQRT", "NEG", "HARD_SWISH", "LEAKY_RELU", "RESHAPE"}
ELSEWHERE |= {"SQUEEZE", "EXPAND_DIMS", "DENSIFY", "CUSTOM Convolution2DTransposeBias"}
"""Held against the library in test_reader.py, test_sparse.py and below."""


def network(kind: str, operands: list[Any], results: list[Any], options: dict[str, Any]) -> tuple[Network, Any, Any]:
    n, inputs, feed = Network(), [], []
    indices = []
    for place, operand in enumerate(operands):
        constant = operand.dtype == np.int32 or (place == 1 and kind in ("PRELU", "TRANSPOSE_CONV", "GATHER_ND"))
        if constant:
            indices.append(n.constant(f"c{place}", operand))
        else:
            indices.append(n.value(f"x{place}", operand.shape, operand.dtype.name))
            inputs.append(indices[-1])
            feed.append(operand)
    outputs = [n.value(f"y{i}", shape, dtype) for i, (shape, dtype) in enumerate(results)]
    n.add(kind, indices, outputs, **options)
    return n, (inputs, feed), outputs


def library(data: bytes, feed: list[np.ndarray]) -> list[np.ndarray]:
    output = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    output.allocate_tensors()
    for detail, array in zip(output.get_input_details(), feed, strict=True):
        output.set_tensor(detail["index"], array)
    output.invoke()
    return [output.get_tensor(detail["index"]) for detail in output.get_output_details()]


def ours(model: Model, feed: list[np.ndarray]) -> list[np.ndarray]:
    named = {value.name: array for value, array in zip(model.graph.inputs, feed, strict=True)}
    return list(run(model.graph, named, None, Weights(model))[0].values())


@pytest.mark.parametrize(
    ("kind", "operands", "results", "options"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_an_operator_gives_what_the_kernels_give(
    tmp_path: Path, kind: str, operands: list[Any], results: list[Any], options: dict[str, Any]
):
    n, (inputs, feed), outputs = network(kind, operands, results, options)
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write(inputs, outputs))
    for actual, wanted in zip(ours(tflite.read(Folder(path)), feed), library(path.read_bytes(), feed), strict=True):
        assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_every_operator_is_compared():
    assert {case[0] for case in CASES} == set(FLOAT) - ELSEWHERE


def test_an_image_between_convolutions_is_not_turned_for_a_constant(tmp_path: Path):
    n = Network()
    x, slope = n.value("x", IMAGE, "float32"), n.constant("slope", normal(1, 1, 4))
    shift, small = n.constant("shift", normal(4)), n.value("small", (1, 3, 2, 4), "float32")
    values = [n.value(f"v{i}", (1, 3, 2, 4), "float32") for i in range(3)]
    how = {"Padding": 1, "StrideW": 2, "StrideH": 2, "FilterWidth": 2, "FilterHeight": 2, "FusedActivationFunction": 0}
    n.add("MAX_POOL_2D", [x], [small], **how)
    n.add("PRELU", [small, slope], [values[0]])
    n.add("ADD", [values[0], shift], [values[1]], FusedActivationFunction=0)
    n.add("MAX_POOL_2D", [values[1]], [values[2]], **how | {"StrideW": 1, "StrideH": 1, "Padding": 0})
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write([x], [values[2]]))
    model = tflite.read(Folder(path))
    constants = {*model.tensors, *model.graph.constants}
    turned = [
        node for node in model.graph.nodes if node.op == "Transpose" and node.inputs[0].split("/")[0] not in constants
    ]
    assert len(turned) == 2  # the input, and the output
    (actual,), (wanted,) = ours(model, [X]), library(path.read_bytes(), [X])
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_all_operators_that_are_not_read_are_named_at_once(tmp_path: Path):
    n = Network()
    a, b, c, d = (n.value(name, (1, 4), "float32") for name in "abcd")
    n.add("RELU_0_TO_1", [a], [b])
    n.add("HASHTABLE", [b], [c])
    n.add("RELU_0_TO_1", [c], [d])
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write([a], [d]))
    with pytest.raises(UnsupportedError) as caught:
        _ = tflite.read(Folder(path)).graph
    assert caught.value.found == "HASHTABLE (1), RELU_0_TO_1 (2)"


@pytest.mark.parametrize(("padding", "extent"), [(1, (12, 10)), (2, (13, 11))])
def test_a_transposed_convolution_of_mediapipe_is_that_of_the_schema(
    tmp_path: Path, padding: int, extent: tuple[int, int]
):
    weight, bias = normal(3, 3, 3, 4), normal(3)
    n = Network()
    x, w, b = n.value("x", IMAGE, "float32"), n.constant("w", weight), n.constant("b", bias)
    y = n.value("y", (1, *extent, 3), "float32")
    n.add("CUSTOM Convolution2DTransposeBias", [x, w, b], [y], custom=i32(padding, 2, 2).tobytes())
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write([x], [y]))
    how = {"Padding": padding - 1, "StrideH": 2, "StrideW": 2}
    same, (inputs, feed), outputs = network(
        "TRANSPOSE_CONV", [i32(1, *extent, 3), weight, X, bias], [((1, *extent, 3), "float32")], how
    )
    (wanted,) = library(same.write(inputs, outputs), feed)
    np.testing.assert_allclose(ours(tflite.read(Folder(path)), [X])[0], wanted, rtol=1e-5, atol=1e-6)


def test_a_resized_image_of_another_extent_than_asked_for_is_refused(tmp_path: Path):
    n, (inputs, _), outputs = network("RESIZE_BILINEAR", [X, i32(9, 10)], [((1, 9, 11, 4), "float32")], {})
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write(inputs, outputs))
    with pytest.raises(BadFileError, match="another extent"):
        _ = tflite.read(Folder(path)).graph
