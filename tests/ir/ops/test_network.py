"""The rows that exported networks bring, each against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import rows
from qdeploy.ir.element import element_dtype, element_name
from qdeploy.ir.ops.conv import CONV_ROWS
from qdeploy.ir.ops.elementwise import ELEMENTWISE_ROWS
from qdeploy.ir.ops.image import IMAGE_ROWS
from qdeploy.ir.ops.quantized import QUANTIZED_ROWS
from qdeploy.ir.ops.selection import SELECTION_ROWS
from qdeploy.ir.ops.shape import SHAPE_ROWS
from qdeploy.ir.ops.table import op
from qdeploy.store.storage import STORAGE_TYPES

RNG = np.random.default_rng(3)
X = (RNG.standard_normal((2, 3, 8)) * 3).astype(np.float32)
Y = RNG.standard_normal((3, 1)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 4, 9, 7)).astype(np.float32)
KERNEL = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)
GROUPED = RNG.standard_normal((8, 2, 3, 2)).astype(np.float32)
CHANNELS = np.abs(RNG.standard_normal((4, 4))).astype(np.float32) + 0.1
WHOLE, POSITIVE = RNG.integers(-9, 9, (2, 3)), RNG.integers(1, 9, (2, 3))
BITS = RNG.integers(0, 2, (2, 3)).astype(bool)
U8, S8 = RNG.integers(0, 256, (3, 5), np.uint8), RNG.integers(-128, 128, (5, 4), np.int8)
PICTURE, FILTERS = RNG.integers(0, 256, (1, 2, 6, 6), np.uint8), RNG.integers(-64, 64, (3, 2, 3, 3), np.int8)
"""Filters of 7 bits: without VNNI, the kernel of QLinearConv would saturate."""
SCALE, ZERO = np.array(0.03, np.float32), np.array(117, np.uint8)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *(
        (name, [X], {})
        for name in (
            "Neg",
            "Abs",
            "Exp",
            "Reciprocal",
            "Floor",
            "Ceil",
            "Round",
            "Sign",
            "Sin",
            "Cos",
            "Softplus",
            "Elu",
            "HardSigmoid",
            "HardSwish",
            "LogSoftmax",
            "LeakyRelu",
            "Size",
        )
    ),
    ("Log", [np.abs(X) + 1], {}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("Elu", [X], {"alpha": 0.5}),
    ("HardSigmoid", [X], {"alpha": 0.1, "beta": 0.4}),
    ("PRelu", [X, Y], {}),
    ("LogSoftmax", [X], {"axis": 1}),
    ("CumSum", [X, np.array(1, np.int64)], {}),
    ("CumSum", [X, np.array(-1, np.int64)], {"exclusive": 1, "reverse": 1}),
    ("Trilu", [X], {}),
    ("Trilu", [X, np.array(1, np.int64)], {"upper": 0}),
    ("Pow", [np.abs(X), Y], {}),
    ("Pow", [X, np.array(2, np.float32)], {}),
    ("Mod", [WHOLE, POSITIVE], {}),
    ("Mod", [X, X[:1] + 5], {"fmod": 1}),
    ("Min", [X, Y, X[:, :1]], {}),
    ("Max", [X, Y], {}),
    ("Sum", [X, Y, X], {}),
    ("CastLike", [X, ints(1)], {}),
    ("Div", [WHOLE, POSITIVE], {}),
    ("Expand", [Y, ints(2, 1, 4)], {}),
    ("Pad", [X, ints(0, 1, 2, 3, 0, 1)], {}),
    ("Pad", [X, ints(0, 1, -2, 0, 0, 1), np.array(7, np.float32)], {}),
    ("Pad", [X, ints(1, 2), None, ints(2)], {}),
    ("Pad", [X, ints(0, 1, 2, 0, 1, 2)], {"mode": "reflect"}),
    ("Pad", [X, ints(0, 1, 0, 0, 1, 0)], {"mode": "edge"}),
    ("Split", [X, ints(1, 5, 2)], {"axis": 2}),
    ("Split", [X], {"axis": 2, "num_outputs": 3}),
    ("Tile", [X, ints(1, 2, 3)], {}),
    ("Flatten", [X], {}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": 0}),
    ("Where", [X > 0, X, Y], {}),
    ("Equal", [WHOLE, POSITIVE], {}),
    ("Less", [X, Y], {}),
    ("LessOrEqual", [WHOLE, POSITIVE], {}),
    ("Greater", [X, Y], {}),
    ("GreaterOrEqual", [WHOLE, POSITIVE], {}),
    ("Not", [BITS], {}),
    ("And", [BITS, ~BITS], {}),
    ("Or", [BITS, BITS[:1]], {}),
    ("ArgMax", [X], {"axis": 2}),
    ("ArgMax", [WHOLE], {"axis": 1, "keepdims": 0}),
    ("ArgMax", [np.ones((2, 3), np.float32)], {"axis": 1, "select_last_index": 1}),
    ("ReduceMax", [X], {"axes": [1]}),
    ("ReduceMin", [X], {"axes": [0, 2], "keepdims": 0}),
    ("ReduceProd", [X], {}),
    ("ReduceMax", [X], {"noop_with_empty_axes": 1}),
    ("ReduceSum", [X], {}),
    ("ReduceMean", [X], {}),
    ("Slice", [X], {"starts": [-1], "ends": [-(1 << 62)], "axes": [2], "steps": [-2]}),
    ("Slice", [X, ints(0, 1), ints(1, 3)], {}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Unsqueeze", [X, ints(0, 3)], {}),
    ("Squeeze", [Y[None], ints(0)], {}),
    ("Squeeze", [Y[None]], {}),
    ("Transpose", [X], {}),
    ("Conv", [IMAGE, KERNEL], {}),
    ("Conv", [IMAGE, KERNEL, f32(*range(6))], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [IMAGE, GROUPED], {"group": 2, "dilations": [2, 1]}),
    ("Conv", [IMAGE, KERNEL], {"auto_pad": "SAME_UPPER"}),
    ("Conv", [IMAGE, KERNEL], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [IMAGE[:, :, 0], KERNEL[:, :, 0]], {"auto_pad": "VALID"}),
    ("Gemm", [X[0], X[1]], {"transB": 1}),
    ("Gemm", [X[0].T.copy(), X[1].T.copy(), f32(1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 2]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 3], "dilations": [1, 2]}),
    ("MaxPool", [PICTURE], {"kernel_shape": [2, 2]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 2]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
    ("BatchNormalization", [IMAGE, *CHANNELS], {"epsilon": 1e-3}),
    *(
        ("Resize", [IMAGE, None, f32(1, 1, 2, 1.5)], {"mode": "linear", "coordinate_transformation_mode": way})
        for way in ("half_pixel", "pytorch_half_pixel", "asymmetric")
    ),
    ("Resize", [IMAGE, None, None, ints(2, 4, 5, 11)], {"mode": "linear"}),
    (
        "Resize",
        [IMAGE, None, None, ints(2, 4, 17, 3)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    ("Resize", [IMAGE, None, f32(1, 1, 2, 3)], {}),
    (
        "Resize",
        [IMAGE, None, None, ints(2, 4, 14, 12)],
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    ("Resize", [IMAGE, None, None, ints(2, 4, 5, 4)], {"nearest_mode": "round_prefer_ceil"}),
    ("ConvTranspose", [IMAGE, GROUPED[:4]], {}),
    (
        "ConvTranspose",
        [IMAGE, GROUPED[:4], f32(1, 2, 3, 4)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [2, 1]},
    ),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [IMAGE[:, :, :8, :6].copy()], {"blocksize": 2}),
    ("InstanceNormalization", [IMAGE, *CHANNELS[:2]], {}),
    ("GatherND", [X, np.array([[0, 2], [1, -1]])], {}),
    ("GatherND", [X, np.array([[1], [-3]])], {"batch_dims": 1}),
    ("GatherElements", [X, RNG.integers(-8, 8, (2, 3, 4))], {"axis": 2}),
    ("TopK", [X, ints(3)], {}),
    ("TopK", [X, ints(2)], {"axis": 1, "largest": 0}),
    ("TopK", [np.array([[1, 3, 3, 2]], np.float32), ints(2)], {}),
    ("ArgMin", [X], {"axis": 2}),
    ("ArgMin", [np.ones((2, 3), np.float32)], {"axis": 1, "select_last_index": 1, "keepdims": 0}),
    ("QuantizeLinear", [X, SCALE, ZERO], {}),
    ("QuantizeLinear", [X, SCALE], {}),
    ("QuantizeLinear", [X, f32(0.1, 0.2, 0.3), np.array([0, -9, 5], np.int8)], {"axis": 1}),
    ("QuantizeLinear", [X, np.array(0.001, np.float32), np.array(3, np.int16)], {}),
    ("QuantizeLinear", [X[0], CHANNELS[:3], np.zeros((3, 4), np.uint8)], {"axis": 1, "block_size": 2}),
    ("DequantizeLinear", [U8, SCALE, ZERO], {}),
    ("DequantizeLinear", [S8, f32(1, 2, 3, 4)], {"axis": 1}),
    ("DequantizeLinear", [WHOLE.astype(np.int32), SCALE], {}),
    ("DequantizeLinear", [U8[:, :4], CHANNELS[:3, :2], np.full((3, 2), 9, np.uint8)], {"axis": 1, "block_size": 2}),
    ("DequantizeLinear", [S8, np.array(0.1, np.float16)], {}),
    ("DynamicQuantizeLinear", [X], {}),
    ("DynamicQuantizeLinear", [np.abs(X)], {}),
    ("DynamicQuantizeLinear", [np.zeros((2, 2), np.float32)], {}),
    ("MatMulInteger", [U8, S8], {}),
    ("MatMulInteger", [U8, S8, ZERO, np.array(3, np.int8)], {}),
    ("MatMulInteger", [U8, S8, ZERO, np.array([1, 2, 3, 4], np.int8)], {}),
    (
        "ConvInteger",
        [PICTURE, PICTURE[:, :, :3, :3].copy(), np.array(9, np.uint8), np.array(4, np.uint8)],
        {"pads": [0, 0, 0, 0]},
    ),
    ("QLinearMatMul", [U8, SCALE, ZERO, S8, SCALE, np.array(0, np.int8), np.array(0.4, np.float32), ZERO], {}),
    ("QLinearConv", [PICTURE, SCALE, ZERO, FILTERS, SCALE, np.array(0, np.int8), np.array(2, np.float32), ZERO], {}),
    (
        "QLinearConv",
        [
            PICTURE,
            SCALE,
            ZERO,
            FILTERS,
            f32(0.1, 0.2, 0.3),
            np.zeros(3, np.int8),
            np.array(2, np.float32),
            ZERO,
            np.array([100, -200, 0], np.int32),
        ],
        {"pads": [1, 1, 1, 1], "strides": [2, 1]},
    ),
    (
        "QGemm",
        [
            U8,
            SCALE,
            ZERO,
            S8,
            SCALE,
            np.array(0, np.int8),
            np.array([5, -6, 7, 80], np.int32),
            np.array(0.4, np.float32),
            ZERO,
        ],
        {"alpha": 0.5},
    ),
    ("QGemm", [U8, SCALE, ZERO, S8.T.copy(), f32(0.1, 0.2, 0.3, 0.4), np.zeros(4, np.int8)], {"transB": 1}),
    ("QLinearAdd", [U8, SCALE, ZERO, U8[:1], np.array(0.2, np.float32), ZERO, np.array(0.3, np.float32), ZERO], {}),
    ("QLinearMul", [U8, SCALE, ZERO, U8[:1], np.array(0.2, np.float32), ZERO, np.array(0.3, np.float32), ZERO], {}),
    ("QLinearGlobalAveragePool", [PICTURE, SCALE, ZERO, np.array(0.02, np.float32), ZERO], {}),
]
AS_INPUTS = {"ReduceMax": ("axes",), "ReduceMin": ("axes",), "Slice": ("starts", "ends", "axes", "steps")}
QUANTIZED = {row.name for row in QUANTIZED_ROWS}


def onnx_says(name: str, inputs: list[Any], attrs: dict[str, Any]) -> list[np.ndarray]:
    """What ONNX Runtime computes for one node."""
    attrs = dict(attrs)
    arrays = {f"x{i}": a for i, a in enumerate(inputs) if a is not None}
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    for key in AS_INPUTS.get(name, ()):
        if key in attrs:
            arrays[key] = np.array(attrs.pop(key), np.int64)
            names.append(key)
    outputs = [f"y{i}" for i in range({"Split": 3, "DynamicQuantizeLinear": 3, "TopK": 2}.get(name, 1))]
    domain = "com.microsoft" if op(name).source.startswith("com.microsoft") else ""
    node = helper.make_node(name, names, outputs, domain=domain, **attrs)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()
    ]
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=n) for n in outputs])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, arrays)


@pytest.mark.parametrize(("name", "inputs", "attrs"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_a_row_means_what_onnx_runtime_computes(name: str, inputs: list[Any], attrs: dict[str, Any]) -> None:
    output = op(name).numpy(*inputs, **attrs)
    for result, wanted in zip(
        output if isinstance(output, tuple) else (output,), onnx_says(name, inputs, attrs), strict=True
    ):
        result = np.asarray(result)
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        if name in QUANTIZED:
            np.testing.assert_array_equal(result, wanted)
        else:
            np.testing.assert_allclose(result, wanted, rtol=3e-6, atol=3e-6)


def test_every_row_is_compared() -> None:
    rows = {
        row.name for row in (*ELEMENTWISE_ROWS, *SHAPE_ROWS, *CONV_ROWS, *IMAGE_ROWS, *SELECTION_ROWS, *QUANTIZED_ROWS)
    }
    assert rows - {"ConstantOfShape"} <= {c[0] for c in CASES}


def test_a_constant_of_a_shape() -> None:
    result = op("ConstantOfShape").numpy(ints(2, 0, 3), value=7, dtype="I64")
    assert result.dtype == np.int64 and result.shape == (2, 0, 3)
    with pytest.raises(UnsupportedError, match="out of bounds"):
        op("ConstantOfShape").numpy(ints(1 << 20, 1 << 20))
    with pytest.raises(UnsupportedError, match="out of bounds"):
        op("Range").numpy(np.array(0), np.array(1 << 60), np.array(1))


@pytest.mark.parametrize("name", [row.element for row in rows() if row.element and row.bits < 8])
def test_types_of_less_than_a_byte_are_limited_to_their_range(name: str) -> None:
    dtype = element_dtype(name)
    wide = np.array([-1e9, -7, -0.5, 0.5, 1.5, 2.5, 1e9], np.float32)
    result = op("QuantizeLinear").numpy(wide, np.array(1, np.float32), np.zeros((), dtype))
    assert result.dtype == dtype and element_name(dtype) == name
    info = ml_dtypes.finfo(dtype) if name.startswith("F") else ml_dtypes.iinfo(dtype)
    assert float(result[-1]) == float(info.max) and float(result[0]) == float(info.min)
    back = op("DequantizeLinear").numpy(result, np.array(0.5, np.float32), np.zeros((), dtype))
    np.testing.assert_array_equal(back, result.astype(np.float32) / 2)


def test_every_storage_type_has_a_name() -> None:
    assert [element_name(element_dtype(name)) for name in STORAGE_TYPES] == list(STORAGE_TYPES)
    with pytest.raises(UnsupportedError, match="complex64"):
        element_name(np.dtype(np.complex64))


def test_an_opaque_operator_is_refused_by_its_name() -> None:
    attrs = {"domain": "", "type": "Resize", "version": 21, "attributes": [], "outputs": [None]}
    with pytest.raises(UnsupportedError, match=r"ai\.onnx\.Resize"):
        op("Opaque").numpy(X, **attrs)
