"""Initializers of ONNX files: every way to store them, and every way to dequantize them, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_networks import converted, distance, network, onnx_runtime, saved, tensor

import qdeploy
from qdeploy.errors import BadFileError
from qdeploy.progress import SILENT
from qdeploy.proof.roundtrip import levels, prove

SLOW_DATA = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def proven(source: Path) -> Any:
    """The model, after every byte of it was shown to come back."""
    model = qdeploy.load(source)
    prove(model, model.tensors, SILENT)
    result = levels(model)
    assert result["tensor bytes"]["proven"] == result["tensor bytes"]["of"] > 0
    return model


@SLOW_DATA
@given(st.data())
def test_matmulnbits_of_any_width_and_ragged_columns(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    bits, block = data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([16, 32]))
    n, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 80))
    zeros = data.draw(st.sampled_from(["none", "packed"]))
    rng, count = np.random.default_rng(data.draw(st.integers(0, 99))), -(-k // block)
    packed = rng.integers(0, 256, (n, count, block * bits // 8), np.uint8)
    scales = rng.standard_normal((n, count)).astype(np.float32)
    parts, names = [tensor("B", packed), tensor("s", scales)], ["x", "B", "s"]
    if zeros == "packed":
        parts.append(tensor("z", rng.integers(0, 256, (n, -(-count * bits // 8)), np.uint8)))
        names.append("z")
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block)
    output = network([node], {"x": (T.FLOAT, [k, k])}, {"y": (T.FLOAT, [k, n])}, parts)
    folder = tmp_path_factory.mktemp("matmulnbits")
    source = saved(output, folder / "source")
    model = proven(source)
    assert list(model.tensors) == ["B"]
    (weight,) = onnx_runtime(source, {"x": np.eye(k, dtype=np.float32)})
    np.testing.assert_array_equal(model.tensors["B"].decode(), weight.T)
    (back,) = converted(source, folder / "out", {"x": np.eye(k, dtype=np.float32)}, check="none")
    assert distance(back, weight) <= 1e-6


def test_matmulnbits_with_float_zero_points_flat_scales_and_a_bias(tmp_path: Path):
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (3, 2, 16), np.uint8)
    scales, zeros = rng.standard_normal(6).astype(np.float32), rng.integers(0, 16, (3, 2)).astype(np.float32)
    bias = rng.standard_normal(3).astype(np.float32)
    parts = [tensor(name, a) for name, a in (("B", packed), ("s", scales), ("z", zeros), ("bias", bias))]
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "s", "z", "", "bias"], ["y"], domain="com.microsoft", K=50, N=3, bits=4, block_size=32
    )
    output = network([node], {"x": (T.FLOAT, [1, 4, 50])}, {"y": (T.FLOAT, [1, 4, 3])}, parts)
    source, x = saved(output, tmp_path / "source"), {"x": rng.standard_normal((1, 4, 50)).astype(np.float32)}
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(3, 2, 32).astype(np.float32)
    wanted = ((codes - zeros[..., None]) * scales.reshape(3, 2, 1)).reshape(3, 64)[:, :50]
    np.testing.assert_array_equal(proven(source).tensors["B"].decode(), wanted)
    (back,) = converted(source, tmp_path / "out", x)
    assert distance(back, x["x"] @ wanted.T + bias) <= 1e-6


def whole(param: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scales or zero points, one per element."""
    if block:
        return np.repeat(param, block, axis)[tuple(map(slice, shape))]
    return np.broadcast_to(param.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


TYPES = {
    "uint8": np.uint8,
    "int8": np.int8,
    "uint16": np.uint16,
    "int16": np.int16,
    "int32": np.int32,
    "uint4": ml_dtypes.uint4,
    "int4": ml_dtypes.int4,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


@SLOW_DATA
@given(st.data())
def test_dequantized_initializers_of_any_shape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    name = data.draw(st.sampled_from(list(TYPES)))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis, how = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.sampled_from(["tensor", "axis", "block"]))
    block = data.draw(st.integers(1, shape[axis])) if how == "block" else 0
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    numbers = rng.integers(0, 8, shape) if name.startswith("u") else rng.integers(-8, 8, shape)
    codes = numbers.astype(np.float32).astype(TYPES[name])
    blocked = tuple(-(-n // block) if i == axis and block else n for i, n in enumerate(shape))
    params = {"tensor": (), "axis": (shape[axis],), "block": blocked}[how]
    scale = rng.standard_normal(params).astype(np.float32)
    zero = rng.integers(0, 4, params).astype(np.float32).astype(codes.dtype)
    zero = None if name.startswith("e") or name == "int32" or data.draw(st.booleans()) else zero
    parts = [tensor("w", codes), tensor("s", scale)] + ([] if zero is None else [tensor("z", zero)])
    nodes = [
        helper.make_node("DequantizeLinear", [p.name for p in parts], ["f"], axis=axis, block_size=block),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    output = network(nodes, {"x": (T.FLOAT, [1])}, {"y": (T.FLOAT, shape)}, parts)
    folder = tmp_path_factory.mktemp("dequantize")
    source = saved(output, folder / "source")
    model = proven(source)
    wanted = codes.astype(np.float32) - (0 if zero is None else whole(zero, shape, axis, block).astype(np.float32))
    wanted = wanted * whole(scale, shape, axis, block)
    assert list(model.tensors) == ["w"]
    np.testing.assert_array_equal(model.tensors["w"].decode(), wanted)
    qdeploy.convert(source, folder / "out", check="none")
    x = {"x": np.zeros(1, np.float32)}
    if block:  # ONNX Runtime has blocks for some types and ranks only
        (back,) = ReferenceEvaluator(onnx.load(folder / "out/model.onnx")).run(None, x)
    else:
        (back,) = onnx_runtime(folder / "out", x)
    np.testing.assert_array_equal(back, wanted)


@pytest.mark.parametrize("kind", [T.INT2, T.UINT2, T.INT4, T.UINT4, T.FLOAT4E2M1])
@pytest.mark.parametrize("shape", [(3, 3), (5,), (2, 8), (1, 1, 3)])
def test_types_of_less_than_a_byte_are_one_stream(tmp_path: Path, kind: int, shape: tuple[int, ...]):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    codes = np.arange(np.prod(shape)).reshape(shape).astype(np.float32).astype(dtype)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["f"]), helper.make_node("Add", ["x", "f"], ["y"])]
    parts = [tensor("w", codes), tensor("s", np.float32(0.5))]
    output = network(nodes, {"x": (T.FLOAT, [1])}, {"y": (T.FLOAT, shape)}, parts, opset=25, ir_version=13)
    source = saved(output, tmp_path / "source")
    np.testing.assert_array_equal(proven(source).tensors["w"].decode(), codes.astype(np.float32) / 2)
    qdeploy.convert(source, tmp_path / "out", check="none")
    written = onnx.load(tmp_path / "out/model.onnx")
    result = next(t for t in written.graph.initializer if t.name == "w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(result, str(tmp_path / "out")), codes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint16", "int64", "bool", "uint32"])
def test_an_initializer_is_the_same_inline_external_or_typed(tmp_path: Path, dtype: str):
    array = (np.arange(24) % 2 if dtype == "bool" else np.arange(24)).astype(dtype).reshape(4, 6)
    typed = helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.reshape(-1))
    kind, node = typed.data_type, helper.make_node("Transpose", ["w"], ["y"], perm=[1, 0])
    inputs, outputs = {"x": (T.FLOAT, [1])}, {"y": (kind, [6, 4])}
    output = {
        "inline": saved(network([node], inputs, outputs, [tensor("w", array)]), tmp_path / "inline"),
        "typed": saved(network([node], inputs, outputs, [typed]), tmp_path / "typed"),
        "external": saved(
            network([node], inputs, outputs, [tensor("w", array)]),
            tmp_path / "external",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        ),
    }
    for name, source in output.items():
        np.testing.assert_array_equal(qdeploy.load(source).tensors["w"].decode(), array.astype(np.float32), name)
        (back,) = converted(source, tmp_path / f"{name}-out", {"x": np.zeros(1, np.float32)})
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array.T)


def test_a_scale_that_something_else_uses_stays_a_tensor(tmp_path: Path):
    parts = [tensor("w", np.arange(6, dtype=np.int8).reshape(2, 3)), tensor("s", np.float32(0.5))]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("Mul", ["f", "s"], ["g"]),
        helper.make_node("MatMul", ["x", "g"], ["y"]),
    ]
    output = network(nodes, {"x": (T.FLOAT, [1, 2])}, {"y": (T.FLOAT, [1, 3])}, parts)
    assert set(qdeploy.load(saved(output, tmp_path)).tensors) == {"w", "s"}


def test_a_weight_that_is_used_in_two_ways_stays_codes(tmp_path: Path):
    parts = [
        tensor("w", np.arange(6, dtype=np.int8).reshape(2, 3)),
        tensor("s", np.float32(0.5)),
        tensor("t", np.float32(2)),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w", scale], [scale + "w"]) for scale in ("s", "t")]
    nodes.append(helper.make_node("Add", ["sw", "tw"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["x", "f"], ["y"]))
    source = saved(network(nodes, {"x": (T.FLOAT, [1, 2])}, {"y": (T.FLOAT, [1, 3])}, parts), tmp_path / "source")
    np.testing.assert_array_equal(qdeploy.load(source).tensors["w"].decode().reshape(-1), np.arange(6))
    x = {"x": np.ones((1, 2), np.float32)}
    (wanted,) = onnx_runtime(source, x)
    np.testing.assert_array_equal(converted(source, tmp_path / "out", x)[0], wanted)


def test_a_weight_is_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows of a packed weight cost reads of those rows only."""
    from qdeploy.store.folder import FileRows

    packed = np.zeros((1024, 32, 16), np.uint8)
    parts = [tensor("B", packed), tensor("s", np.ones((1024, 32), np.float32))]
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "s"], ["y"], domain="com.microsoft", K=1024, N=1024, bits=4, block_size=32
    )
    output = network([node], {"x": (T.FLOAT, [1, 1024])}, {"y": (T.FLOAT, [1, 1024])}, parts)
    sizes, real = [], FileRows.read
    model = qdeploy.load(saved(output, tmp_path))
    monkeypatch.setattr(FileRows, "read", lambda self, a, b: sizes.append(b - a) or real(self, a, b))
    assert model.tensors["B"].decode(slice(8, 10)).shape == (2, 1024)
    assert 0 < sum(sizes) <= 2 * (512 + 128)


def test_a_zero_point_of_another_type_than_its_codes_is_refused(tmp_path: Path):
    arrays = {"w": np.ones((2, 3), np.int8), "s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}
    parts = [tensor(name, array) for name, array in arrays.items()]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    output = network(nodes, {"x": (T.FLOAT, [1])}, {"y": (T.FLOAT, [2, 3])}, parts)
    with pytest.raises(BadFileError, match="zero point of another type"):
        qdeploy.load(saved(output, tmp_path / "source"))
