"""No attribute of an operator is ignored: set to another value than its default, it is read or the node stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_networks import converted, interpreted, network, onnx_runtime, saved

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.ir.ops.conv import average_pool, max_pool
from qdeploy.ir.ops.table import OPS

VERSIONS = (9, 13, 17, 21, 25)
SAYS_NOTHING = {("BatchNormalization", "momentum"), ("Dropout", "seed"), ("Dropout", "ratio")}
"""Attributes that say something of training alone."""
_OTHER = {
    onnx.AttributeProto.INT: 7,
    onnx.AttributeProto.FLOAT: 0.375,
    onnx.AttributeProto.STRING: "other",
    onnx.AttributeProto.INTS: [7],
    onnx.AttributeProto.FLOATS: [0.375],
    onnx.AttributeProto.STRINGS: ["other"],
}


def attributes() -> list[tuple[str, int, str]]:
    """Each attribute of each operator that has a row, in each version of the operator."""
    listed = {}
    for op in [name for name, row in OPS.items() if row.is_onnx] + ["Dropout"]:
        for version in VERSIONS:
            try:
                schema = onnx.defs.get_schema(op, version)
            except onnx.defs.SchemaError:
                continue
            for name, attribute in schema.attributes.items():
                if int(attribute.type) in _OTHER and (op, name) not in SAYS_NOTHING:
                    listed[op, schema.since_version, name] = version
    return [(op, version, name) for (op, _, name), version in listed.items()]


def graph_of(op: str, version: int, attrs: dict[str, Any], folder: Path) -> Any:
    schema = onnx.defs.get_schema(op, version)
    required = {n: other(a) for n, a in schema.attributes.items() if a.required and int(a.type) in _OTHER}
    count = max(schema.min_input, 1)
    inputs = {f"x{i}": (T.FLOAT, [2, 3, 4, 5]) for i in range(count)}
    node = helper.make_node(op, list(inputs)[: schema.min_input], ["y"], **(required | attrs))
    path = saved(network([node], inputs, {"y": (T.FLOAT, [1])}, opset=version), folder)
    graph = qdeploy.load(path).graph
    constants = {name: tensor.decode().tolist() for name, tensor in graph.constants.items()}
    return [(n.op, n.inputs, n.attrs) for n in graph.nodes], constants


def other(attribute: Any) -> Any:
    """A value that is not the default; element types are real ones."""
    if attribute.name in ("to", "dtype", "output_dtype"):
        return T.INT8
    value = _OTHER[int(attribute.type)]
    default = helper.get_attribute_value(attribute.default_value) if attribute.default_value.type else None
    return value + 1 if isinstance(value, int) and value == default else value


def third(attribute: Any) -> Any:
    """Yet another one, for attributes that must be there."""
    value = T.UINT8 if attribute.name in ("to", "dtype", "output_dtype") else _OTHER[int(attribute.type)]
    if isinstance(value, list):
        return [part + part for part in value]
    return value if attribute.name in ("to", "dtype", "output_dtype") else value + value


@pytest.mark.parametrize(("op", "version", "name"), attributes(), ids=lambda v: str(v))
def test_an_attribute_is_read_or_the_node_is_carried_whole(op: str, version: int, name: str, tmp_path: Path):
    attribute = onnx.defs.get_schema(op, version).attributes[name]
    plain = graph_of(op, version, {name: third(attribute)} if attribute.required else {}, tmp_path / "plain")
    try:
        result = graph_of(op, version, {name: other(attribute)}, tmp_path / "other")
    except QdeployError:
        return
    assert result != plain


FLOAT8 = {"F8_E4M3": T.FLOAT8E4M3FN, "F8_E5M2": T.FLOAT8E5M2, "F8_E4M3FNUZ": T.FLOAT8E4M3FNUZ}
NUMBERS = np.array([1, 500, -1000, 448, 60000, np.inf, -np.inf, np.nan, -0.0, 1e-9], np.float32)


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("number", FLOAT8.values(), ids=FLOAT8)
def test_a_cast_saturates_as_its_source_says(number: int, saturate: int, tmp_path: Path):
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=number, saturate=saturate),
        helper.make_node("Cast", ["q"], ["y"], to=T.FLOAT),
    ]
    source = saved(network(nodes, {"x": (T.FLOAT, [10])}, {"y": (T.FLOAT, [10])}), tmp_path / "source")
    (want,) = onnx_runtime(source, {"x": NUMBERS})
    np.testing.assert_array_equal(interpreted(source, {"x": NUMBERS})[0], want)
    np.testing.assert_array_equal(converted(source, tmp_path / "out", {"x": NUMBERS})[0], want)


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two_are_rounded_as_onnx_says(mode: str, saturate: int):
    x = np.concatenate([np.random.default_rng(0).normal(size=99), [0, np.inf, np.nan, 3e38, 3.4e38, 1e-39, 3, 1]])
    result = OPS["Cast"].numpy(x.astype(np.float32), to="F8_E8M0", saturate=saturate, round_mode=mode)
    want = onnx.numpy_helper.to_float8e8m0(x.astype(np.float32), bool(saturate), mode)
    np.testing.assert_array_equal(result.view(np.uint8), want.view(np.uint8))


POOLS = [
    (size, kernel, stride, before, behind, include)
    for size in (2, 3, 5, 7)
    for kernel in (2, 3)
    for stride in (1, 2, 3)
    for before in (0, 1)
    for behind in (0, 1, 2)
    for include in (0, 1)
    if behind < kernel and kernel <= size + before + behind
]


def pooled(op: str, x: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    node = helper.make_node(op, ["x"], ["y"], **attrs)
    output = network([node], {"x": (T.FLOAT, list(x.shape))}, {"y": (T.FLOAT, None)}, opset=19, ir_version=9)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(output.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_pools_with_a_last_window_beyond_the_border_are_those_of_onnx_runtime():
    image = np.random.default_rng(0).normal(size=(1, 2, 7, 7)).astype(np.float32)
    assert len(POOLS) > 200
    for size, kernel, stride, before, behind, include in POOLS:
        x = np.ascontiguousarray(image[:, :, :size, :size])
        attrs: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "ceil_mode": 1}
        attrs["pads"] = [before, before, behind, behind]
        want = pooled("AveragePool", x, attrs | {"count_include_pad": include})
        result = average_pool(x, **attrs, count_include_pad=include)
        np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-6, err_msg=str(attrs))
        np.testing.assert_array_equal(max_pool(x, **attrs), pooled("MaxPool", x, attrs), err_msg=str(attrs))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_of_halves_is_of_halves_and_rounded_once(op: str):
    rng = np.random.default_rng(0)
    for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)):
        a, b = (rng.normal(size=(5, 5)).astype(dtype) for _ in range(2))
        result = OPS[op].numpy(a, b)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, (a.astype(np.float32) @ b.astype(np.float32)).astype(dtype))


def test_functions_of_halves_are_rounded_once():
    x = np.random.default_rng(0).normal(size=64).astype(ml_dtypes.bfloat16)
    for op in ("Elu", "Sigmoid", "Gelu", "HardSwish", "Softplus", "Erf"):
        result = OPS[op].numpy(x)
        assert result.dtype == x.dtype
        np.testing.assert_array_equal(result, OPS[op].numpy(x.astype(np.float32)).astype(x.dtype), err_msg=op)
