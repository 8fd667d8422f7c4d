"""A number type that is added at run time is decoded, packaged, inspected and converted like those that stand there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper

import qdeploy
from qdeploy.backends.native import BACKEND as NATIVE
from qdeploy.backends.native.options import Options as NativeOptions
from qdeploy.backends.native.reading import ModelFile
from qdeploy.backends.onnx import BACKEND as ONNX
from qdeploy.backends.onnx.options import Options as OnnxOptions
from qdeploy.errors import UnsupportedError
from qdeploy.ir import dtype
from qdeploy.ir.dtype import DType
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.package_write import plan_package, write_package
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Term
from qdeploy.pack import bits
from qdeploy.progress import SILENT
from qdeploy.proof.survey import survey
from qdeploy.store.output import staged

ROWS, COLUMNS, GROUP = 48, 96, 32
E3M4 = DType("e3m4", 8, "float", "U8", ml_dtypes="float8_e3m4")
NF3 = DType("nf3", 3, "levels", "U8", levels=(-1, -0.54, -0.25, 0, 0.16, 0.34, 0.56, 1))
POWERS = DType("powers3", 3, "levels", "U8", levels=(-8, -4, -2, -1, 1, 2, 4, 8))
FNUZ = dtype.dtype("e4m3fnuz")
ADDED = (E3M4, NF3, POWERS)


@pytest.fixture(params=ADDED, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Iterator[DType]:
    dtype.register(request.param)
    yield request.param
    if dtype.is_known(request.param.name):
        dtype.unregister(request.param.name)


def weight(row: DType) -> tuple[QTensor, np.ndarray]:
    """A matrix of all finite codes of a type with a scale per group, and what it is worth by the type's own table."""
    rng = np.random.default_rng(0)
    finite = np.flatnonzero(np.isfinite(row.values())).astype(np.uint8)
    codes = finite[rng.integers(0, len(finite), (ROWS, COLUMNS))]
    scale = rng.uniform(0.5, 2, (ROWS, COLUMNS // GROUP)).astype(np.float16)
    spread = Param(Codes(scale.shape, (Buffer.of("scale", scale, "F16"),), PLAIN, "f16"), (1, GROUP))
    whole = row.bits == 8
    data = Buffer.of("codes", codes if whole else bits.pack(codes, row.bits), "U8")
    layout = PLAIN if whole else Layout("bits", row.bits)
    tensor = QTensor(codes.shape, "F32", (Term(Codes(codes.shape, (data,), layout, row.name, scale=spread)),))
    return tensor, row.values()[codes] * np.repeat(scale.astype(np.float32), GROUP, axis=1)


def one_matrix(tensor: QTensor) -> Model:
    node = Node("Linear", ("x", "w"), ("y",), {}, "layer")
    inputs, outputs = (Value("x", "F32", (1, "n", COLUMNS)),), (Value("y", "F32", (1, "n", ROWS)),)
    graph = Graph(inputs, outputs, (node,), (), {}, {"kind": "encoder", "context": 8})
    return Model("made", "made", {"w": tensor}, build_graph=lambda model: graph)


def packaged(model: Model, target: Path) -> Path:
    plan = plan_package(model.tensors, {})
    with staged(target, plan.identity(), False) as stage:
        write_package(model, model.graph, stage, plan, SILENT)
    return target


def test_it_decodes_by_its_table(row: DType) -> None:
    tensor, want = weight(row)
    np.testing.assert_array_equal(tensor.decode(), want)


def test_it_is_packaged_inspected_and_read_back(row: DType, tmp_path: Path) -> None:
    tensor, want = weight(row)
    target = packaged(one_matrix(tensor), tmp_path / "package")
    assert f"type:{row.name}" in json.loads((target / "qdeploy.json").read_text())["requires"]
    np.testing.assert_array_equal(qdeploy.load(target).tensors["w"].decode(), want)
    described = survey(target, histogram=True, checksums=True)
    assert row.name in described["tensors"]["w"]["encoding"]
    ((name, counts),) = described["histogram"].items()
    assert row.name in name
    assert (len(counts), sum(counts)) == (1 << row.bits, ROWS * COLUMNS)
    dtype.unregister(row.name)
    with pytest.raises(UnsupportedError, match=row.name):
        qdeploy.load(target)


def test_it_is_converted_to_onnx(row: DType, tmp_path: Path) -> None:
    tensor, want = weight(row)
    lowered = ONNX.lower(one_matrix(tensor), tmp_path, OnnxOptions())
    (choice,) = lowered.choices
    assert choice.lossless
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.eye(COLUMNS, dtype=np.float32)[None]})
    np.testing.assert_allclose(result[0].T, want, rtol=1e-6, atol=1e-7)
    if row.onnx:
        types = {t.data_type for t in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
        assert row.onnx in types


def test_it_is_converted_to_the_runtime(row: DType, tmp_path: Path) -> None:
    tensor, want = weight(row)
    (choice,) = NATIVE.lower(one_matrix(tensor), tmp_path, NativeOptions()).choices
    assert choice.lossless
    assert not choice.reason.startswith("slow")
    file = ModelFile(tmp_path / "model.qd")
    np.testing.assert_array_equal(file.rows(file.matrices()["w"], 0, -(-ROWS // 16))[:ROWS], want)


def test_an_onnx_file_with_fnuz_floats_is_read(tmp_path: Path) -> None:
    codes = np.arange(ROWS * COLUMNS, dtype=np.uint32).astype(np.uint8).reshape(ROWS, COLUMNS)
    codes[codes == 128] = 0  # not a number
    scale = np.random.default_rng(0).uniform(0.5, 2, ROWS).astype(np.float32)
    parts = [
        helper.make_tensor("w", T.FLOAT8E4M3FNUZ, codes.shape, codes.tobytes(), raw=True),
        onnx.numpy_helper.from_array(scale, "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", T.FLOAT, [2, ROWS])]
    outputs = [helper.make_tensor_value_info("y", T.FLOAT, [2, COLUMNS])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, parts)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    read = qdeploy.load(tmp_path / "model.onnx")
    want = codes.view(ml_dtypes.float8_e4m3fnuz).astype(np.float32) * scale[:, None]
    np.testing.assert_array_equal(read.tensors["w"].decode(), want)
    qdeploy.convert(tmp_path / "model.onnx", tmp_path / "out", to="onnx")
    again = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert FNUZ.onnx in {t.data_type for t in again.graph.initializer}
