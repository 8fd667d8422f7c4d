"""Weights of networks, of any rank and behind any moves, are rounded alone; what stays float is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import qdeploy
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.quantize import quantize_model
from qdeploy.quantize.networks import META, layer_weights

RNG = np.random.default_rng(4)
SHAPES = {
    "conv": (48, 16, 3, 3),
    "deconv": (32, 24, 2, 2),
    "product": (96, 64),
    "left": (24, 96),
    "gemm": (80, 96),
    "table": (70, 64),
    "gates": (1, 64, 96),
    "hidden": (1, 64, 16),
    "stem": (16, 8, 3, 3),
    "wide": (256, 16, 3, 3),
}
WEIGHTS = {name: (RNG.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in SHAPES.items()}
NODES = {
    "conv": (["Conv x conv y"], (1, 16, 8, 8)),
    "deconv": (["ConvTranspose x deconv y"], (1, 32, 5, 5)),
    "product": (["MatMul x product y"], (3, 96)),
    "left": (["MatMul left x y"], (96, 5)),
    "gemm": (["Gemm x gemm y transB=1"], (3, 96)),
    "turned": (["Transpose gemm t", "MatMul x t y"], (3, 96)),
    "recurrent": (["LSTM x gates hidden y hidden_size=16"], (5, 1, 96)),
}
OF = {"turned": ["gemm"], "recurrent": ["gates", "hidden"]}


def saved(path: Path, lines: list[str], shape: tuple[int, ...], names: list[str], kind: int = T.FLOAT) -> Path:
    nodes = []
    for line in lines:
        op, *rest = line.split()
        attrs = dict(part.split("=") for part in rest if "=" in part)
        *inputs, output = [part for part in rest if "=" not in part]
        nodes.append(helper.make_node(op, inputs, [output], **{key: int(value) for key, value in attrs.items()}))
    initializers = [numpy_helper.from_array(WEIGHTS[name], name) for name in names]
    ends = [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", T.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    outputs = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    path.mkdir(exist_ok=True)
    onnx.save(outputs, path / "model.onnx")
    return path


def answer(path: Path, x: np.ndarray) -> Any:
    return onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
@pytest.mark.parametrize("kind", NODES)
def test_a_layer_of_any_kind_gives_what_its_rounded_weight_gives(tmp_path: Path, kind: str, bits: int):
    lines, shape = NODES[kind]
    names = OF.get(kind, [kind])
    source = saved(tmp_path / "source", lines, shape, names)
    report = qdeploy.convert(source, tmp_path / "out", to="onnx", quantize=f"rtn:int{bits},group=32", check="full")
    assert "not_run" not in report
    least = {8: 35, 6: 25, 4: 12, 3: 6}[bits]
    for name in names:
        if name != "hidden":  # sums 16 entries, and stays
            assert report["tensors"][name]["snr_db"] > least
    x = RNG.standard_normal(shape).astype(np.float32)
    wanted, actual = answer(source, x), answer(tmp_path / "out", x)
    assert np.linalg.norm(actual - wanted) < 10 ** (-(least - 3) / 20) * np.linalg.norm(wanted)
    size = sum(f.stat().st_size for f in (tmp_path / "out").glob("model.onnx.data"))
    floats = sum(WEIGHTS[name].nbytes for name in names if name != "hidden")
    assert size <= floats * (0.3 if bits > 4 else 0.17) + 4 * WEIGHTS["hidden"].size + 4096


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_is_read_by_its_rows(tmp_path: Path, bits: int):
    source = saved(tmp_path / "source", ["Gather table x y"], (2, 3), ["table"], T.INT64)
    qdeploy.convert(source, tmp_path / "out", to="onnx", quantize=f"rtn:int{bits},group=64", check="full")
    ids = np.array([[0, 69, 3], [3, 3, 1]], np.int64)
    wanted, actual = WEIGHTS["table"][ids], answer(tmp_path / "out", ids)
    assert np.linalg.norm(actual - wanted) < (0.02 if bits == 8 else 0.2) * np.linalg.norm(wanted)
    nodes = onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph.node
    takers = [node.op_type for node in nodes for name in node.input if name.startswith("table.codes")]
    assert takers == (["Gather"] if bits == 8 else ["GatherBlockQuantized"])  # nothing is widened before it


def test_weights_inside_of_branches_are_rounded_too(tmp_path: Path):
    def branch(name: str, weight: np.ndarray) -> onnx.GraphProto:
        content = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w"))
        return helper.make_graph(
            [content, helper.make_node("MatMul", ["x", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, T.FLOAT, [3, 64])],
        )

    inputs = [helper.make_tensor_value_info("x", T.FLOAT, [3, 96]), helper.make_tensor_value_info("c", T.BOOL, [])]
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", WEIGHTS["product"]), else_branch=branch("b", -WEIGHTS["product"])
    )
    outputs = [helper.make_tensor_value_info("y", T.FLOAT, [3, 64])]
    output = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (tmp_path / "source").mkdir()
    onnx.save(output, tmp_path / "source/model.onnx")
    model = qdeploy.load(tmp_path / "source")
    assert sum(tensor.nbytes for tensor in model.tensors.values()) == 2 * WEIGHTS["product"].nbytes
    assert set(layer_weights(model.graph, model.tensors)) == set(model.tensors)
    report = qdeploy.convert(tmp_path / "source", tmp_path / "out", to="onnx", quantize="rtn:int8", check="full")
    assert "not_run" not in report
    size = (tmp_path / "out/model.onnx.data").stat().st_size
    assert size < 0.3 * 2 * WEIGHTS["product"].nbytes + 4096


def test_what_is_taken_by_something_else_too_stays_float(tmp_path: Path):
    source = saved(tmp_path / "source", ["MatMul x product a", "Add a product y"], (96, 96), ["product"])
    model = qdeploy.load(source)
    assert layer_weights(model.graph, model.tensors) == {}
    with pytest.raises(BadArgumentError, match="nothing is left"):
        qdeploy.convert(source, tmp_path / "out", to="onnx", quantize="rtn:int8")


def test_a_request_that_changes_nothing_is_refused(tmp_path: Path):
    source = saved(tmp_path / "source", *NODES["product"], ["product"])
    for spec in ("rtn:int8,only=nothing", "rtn:int8,skip=product"):
        with pytest.raises(BadArgumentError, match="nothing is left"):
            qdeploy.convert(source, tmp_path / "out", to="onnx", quantize=spec)
    with pytest.raises(UnsupportedError, match="models of text"):
        qdeploy.convert(source, tmp_path / "out", to="onnx", quantize="bitstack:blocks=1,rank=1")


def test_the_smallest_layers_stay_float_unless_they_are_named(tmp_path: Path):
    lines = ["Conv x stem a", "Conv a wide y"]
    model = qdeploy.load(saved(tmp_path / "source", lines, (1, 8, 9, 9), ["stem", "wide"]))
    assert quantize_model(model, ("rtn:int8",)).graph.meta[META] == ["wide"]
    assert quantize_model(model, ("rtn:int8,only=.",)).graph.meta[META] == ["stem", "wide"]


@pytest.mark.parametrize(("spec", "scales"), [("rtn:int8", 6), ("rtn:int8,group=48", 3), ("rtn:int8,group=-1", 1)])
def test_convolutions_have_a_scale_for_32_entries_or_a_few_less_unless_a_group_is_named(
    tmp_path: Path, spec: str, scales: int
):
    model = qdeploy.load(saved(tmp_path / "source", *NODES["conv"], ["conv"]))
    scale = quantize_model(model, (spec,)).tensors["conv"].terms[0].values.scale  # type: ignore[union-attr]
    assert scale is not None and scale.values.decoded_shape == (48, scales)


def test_a_package_remembers_which_weights_were_rounded(tmp_path: Path):
    source = saved(tmp_path / "source", *NODES["conv"], ["conv"])
    qdeploy.convert(source, tmp_path / "package", to="ir", quantize="rtn:int8")
    assert qdeploy.load(tmp_path / "package").graph.meta[META] == ["conv"]
    qdeploy.convert(tmp_path / "package", tmp_path / "a", to="onnx", check="full")
    qdeploy.convert(source, tmp_path / "b", to="onnx", quantize="rtn:int8")
    assert (tmp_path / "a/model.onnx.data").read_bytes() == (tmp_path / "b/model.onnx.data").read_bytes()
    assert qdeploy.verify(source, tmp_path / "b")["equal"]
