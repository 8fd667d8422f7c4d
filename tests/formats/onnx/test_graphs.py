"""ONNX graphs: what changes on the way in, what is carried as it is, and that the way out computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_networks import converted, distance, interpreted, network, onnx_runtime, saved, tensor

import qdeploy
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph_json import graph_from_json, graph_to_json

X = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    """A node from names with spaces between; "_" is a name that is left out."""
    names = [["" if n == "_" else n for n in side.split()] for side in (inputs, outputs)]
    return helper.make_node(op, *names, **attrs)


def both_ways(made: onnx.ModelProto, tmp_path: Path, inputs: dict[str, np.ndarray], limit: float = 1e-6) -> Any:
    """Checks the interpreter and the way back out against ONNX Runtime; returns the graph."""
    source = saved(made, tmp_path / "source")
    wanted = onnx_runtime(source, inputs)
    for result in (interpreted(source, inputs), converted(source, tmp_path / "out", inputs)):
        for a, b in zip(result, wanted, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert distance(np.asarray(a, np.float64), np.asarray(b, np.float64)) <= limit
    return qdeploy.load(source).graph


def test_shapes_that_the_graph_computes(tmp_path: Path):
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "batch", axis=0),
        node("Unsqueeze", "batch axis", "b"),
        node("Concat", "b minus", "shape", axis=0),
        node("Reshape", "x shape", "flat"),
        node("Range", "nul batch one", "r"),
        node("Cast", "r", "f", to=T.FLOAT),
        node("Unsqueeze", "f axes", "column"),
        node("Add", "flat column", "a"),
        node("Slice", "a starts b", "t"),
        node("ConstantOfShape", "b", "c", value=tensor("v", np.array([2.5], np.float32))),
        node("Expand", "c two", "e"),
        node("Pad", "t pads", "p"),
        node("ReduceSum", "p", "total", keepdims=0),
        node("Mul", "e total", "y"),
    ]
    parts = [
        tensor(name, np.array(v, np.int64))
        for name, v in {
            "zero": 0,
            "axis": [0],
            "minus": [-1],
            "nul": 0,
            "one": 1,
            "axes": [1],
            "starts": [0],
            "two": [2, 1],
            "pads": [0, 1, 0, 1],
        }.items()
    ]
    output = network(nodes, {"x": (T.FLOAT, ["n", 3, 4])}, {"y": (T.FLOAT, None)}, parts)
    output.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", T.FLOAT, ["a", "n"]))
    graph = both_ways(output, tmp_path, {"x": X})
    reshape = next(n for n in graph.nodes if n.op == "Reshape")
    assert len(reshape.inputs) == 2 and "shape" not in reshape.attrs


def test_constants_become_attributes_where_the_row_has_them(tmp_path: Path):
    nodes = [
        node("Constant", "", "shape", value_ints=[2, 12]),
        node("Reshape", "x shape", "a"),
        node("Clip", "a low _", "b"),
        node("Constant", "", "low", value_float=-0.5),
        node("Slice", "b starts ends axes steps", "y"),
    ]
    nodes.insert(0, nodes.pop(3))
    parts = [tensor(n, np.array([v])) for n, v in (("starts", -1), ("ends", -99), ("axes", 1), ("steps", -3))]
    output = network(nodes, {"x": (T.FLOAT, [2, 3, 4])}, {"y": (T.FLOAT, [2, 4])}, parts)
    graph = both_ways(output, tmp_path, {"x": X})
    assert [n.op for n in graph.nodes] == ["Reshape", "Clip", "Slice"]
    assert graph.nodes[2].attrs["steps"] == [-3] and graph.nodes[1].attrs == {"min": -0.5}


def test_old_forms_of_operators(tmp_path: Path):
    nodes = [
        node("Unsqueeze", "x", "a", axes=[0]),
        node("Squeeze", "a", "b", axes=[0]),
        node("Clip", "b", "c", min=-1.0, max=1.0),
        node("ReduceMean", "c", "d", axes=[1]),
        node("Pad", "d", "e", pads=[0, 0, 1, 0, 0, 1], value=2.0),
        node("Slice", "e", "f", starts=[1], ends=[5], axes=[2]),
        node("Dropout", "f", "g"),
        node("Split", "g", "h i", axis=2, split=[1, 3]),
        node("Add", "h i", "y"),
    ]
    output = network(nodes, {"x": (T.FLOAT, [2, 3, 4])}, {"y": (T.FLOAT, [2, 1, 3])}, opset=9, ir_version=6)
    assert not [n for n in both_ways(output, tmp_path, {"x": X}).nodes if n.op == "Opaque"]


def test_an_operator_without_a_row_goes_through_as_it_is(tmp_path: Path):
    parts = [tensor("sizes", np.array([1, 1, 8, 6], np.int64)), tensor("k", np.array([2], np.int64))]
    nodes = [
        node("Unsqueeze", "x axes", "image"),
        node("Resize", "image _ _ sizes", "large", mode="cubic"),
        node("TopK", "large k", "best places", axis=-1, sorted=0),
        node("Cast", "places", "real", to=T.FLOAT),
        node("Add", "best real", "y"),
    ]
    parts.append(tensor("axes", np.array([0, 1], np.int64)))
    output = network(nodes, {"x": (T.FLOAT, [4, 3])}, {"y": (T.FLOAT, [1, 1, 8, 2])}, parts)
    source, inputs = saved(output, tmp_path / "source"), {"x": X[0].T.copy()}
    model = qdeploy.load(source)
    assert [n.attrs["type"] for n in model.graph.nodes if n.op == "Opaque"] == ["Resize", "TopK"]
    assert graph_from_json(graph_to_json(model.graph), {}).nodes == model.graph.nodes
    with pytest.raises(UnsupportedError, match="Resize"):
        interpreted(source, inputs)
    (wanted,) = onnx_runtime(source, inputs)
    np.testing.assert_array_equal(converted(source, tmp_path / "out", inputs)[0], wanted)
    qdeploy.convert(source, tmp_path / "package", to="ir")
    np.testing.assert_array_equal(converted(tmp_path / "package", tmp_path / "again", inputs)[0], wanted)


def test_subgraphs_find_the_values_that_they_take_from_outside(tmp_path: Path):
    def branch(name: str, op: str) -> onnx.GraphProto:
        inner = [helper.make_node(op, ["h", "w"], [name])]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(name, T.FLOAT, [2, 3])])

    nodes = [
        node("DequantizeLinear", "q s", "w"),
        node("Relu", "x", "h"),
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total nul", "up"),
        helper.make_node("If", ["up"], ["y"], then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
    ]
    parts = [
        tensor("q", np.arange(6, dtype=np.int8).reshape(2, 3)),
        tensor("s", np.float32(0.25)),
        tensor("nul", np.float32(0)),
    ]
    output = network(nodes, {"x": (T.FLOAT, [2, 3])}, {"y": (T.FLOAT, [2, 3])}, parts)
    source = saved(output, tmp_path / "source")
    for place, x in enumerate((X[:, :, 0], -np.abs(X[:, :, 0]))):
        inputs = {"x": np.ascontiguousarray(x)}
        result = converted(source, tmp_path / f"out{place}", inputs)
        np.testing.assert_array_equal(result[0], onnx_runtime(source, inputs)[0])


def test_an_operator_whose_meaning_today_cannot_be_said_is_refused(tmp_path: Path):
    output = network(
        [node("Upsample", "x s", "u", mode="nearest"), node("Resize", "u c", "y", mode="nearest")],
        {"x": (T.FLOAT, [1, 1, 2, 3]), "c": (T.FLOAT, [4])},  # factors that are computed: which pixel is nearest?
        {"y": (T.FLOAT, [1, 1, "h", "w"])},
        [tensor("s", np.array([1, 1, 2, 2], np.float32))],
        opset=10,
        ir_version=6,
    )
    output.graph.node.pop(0)
    output.graph.node[0].input[0] = "x"
    with pytest.raises(UnsupportedError, match="changed"):
        qdeploy.convert(saved(output, tmp_path / "source"), tmp_path / "out")


def test_functions_of_the_model_are_put_in_place(tmp_path: Path):
    body = [node("Mul", "a a", "square"), node("Add", "square a", "b")]
    function = helper.make_function("local", "Poly", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    output = network(
        [helper.make_node("Poly", ["x"], ["y"], domain="local")],
        {"x": (T.FLOAT, [2, 3, 4])},
        {"y": (T.FLOAT, [2, 3, 4])},
        functions=[function],
    )
    assert {n.op for n in both_ways(output, tmp_path, {"x": X}).nodes} == {"Mul", "Add"}


def test_a_network_in_float16(tmp_path: Path):
    half = X.astype(np.float16)
    packed = np.random.default_rng(0).integers(0, 256, (5, 1, 8), np.uint8)
    parts = [
        tensor("w", half[0].T.copy()),
        tensor("b", half[0, 0, :3].copy()),
        tensor("B", packed),
        tensor("s", half[0].reshape(-1)[:5].reshape(5, 1).copy()),
        tensor("q", np.ones((3, 3), np.int8)),
        tensor("t", np.float16(0.1)),
    ]
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a b", "c"),
        node("DequantizeLinear", "q t", "d"),
        node("MatMul", "c d", "y"),
        helper.make_node(
            "MatMulNBits", ["x", "B", "s"], ["z"], domain="com.microsoft", K=4, N=5, bits=4, block_size=16
        ),
    ]
    output = network(
        nodes, {"x": (T.FLOAT16, [2, 3, 4])}, {"y": (T.FLOAT16, [2, 3, 3]), "z": (T.FLOAT16, [2, 3, 5])}, parts
    )
    both_ways(output, tmp_path, {"x": half}, limit=2e-3)


def test_norms_of_exporters_become_rows(tmp_path: Path):
    parts = [tensor("g", X[0, 0]), tensor("h", X[0, 1])]
    nodes = [
        node("LayerNormalization", "x g h", "a", axis=-1, epsilon=1e-3),
        helper.make_node(
            "SkipSimplifiedLayerNormalization",
            ["a", "x", "g"],
            ["b", "", "", "sum"],
            domain="com.microsoft",
            epsilon=1e-3,
        ),
        helper.make_node("SkipLayerNormalization", ["b", "sum", "g", "h"], ["c"], domain="com.microsoft", epsilon=1e-3),
        node("SimplifiedLayerNormalization", "c g", "y", axis=-1, epsilon=1e-3, stash_type=1),
    ]
    output = network(nodes, {"x": (T.FLOAT, [2, 3, 4])}, {"y": (T.FLOAT, [2, 3, 4])}, parts)
    graph = both_ways(output, tmp_path, {"x": X})
    assert [n.op for n in graph.nodes] == ["LayerNormalization", "SkipNorm", "SkipNorm", "RMSNormalization"]


def test_signed_activations_leave_as_unsigned_ones(tmp_path: Path):
    parts = [tensor("s", np.float32(0.02)), tensor("z", np.int8(-7)), tensor("w", np.eye(4, dtype=np.float32))]
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("MatMul", "d w", "y")]
    output = network(nodes, {"x": (T.FLOAT, [2, 3, 4])}, {"y": (T.FLOAT, [2, 3, 4])}, parts)
    both_ways(output, tmp_path, {"x": X})
    written = onnx.load(tmp_path / "out/model.onnx")
    zero = {t.name: t for t in written.graph.initializer}[written.graph.node[0].input[2]]
    assert zero.data_type == T.UINT8 and onnx.numpy_helper.to_array(zero) == 121


def test_codes_that_are_used_as_codes_keep_their_type(tmp_path: Path):
    parts = [tensor("s", np.float32(0.02)), tensor("z", np.int8(-7))]
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Cast", "q", "i", to=T.INT32),
    ]
    output = network(nodes, {"x": (T.FLOAT, [2, 3, 4])}, {"d": (T.FLOAT, [2, 3, 4]), "i": (T.INT32, [2, 3, 4])}, parts)
    both_ways(output, tmp_path, {"x": X})


def test_a_dequantized_weight_that_is_an_output(tmp_path: Path):
    parts = [tensor("q", np.arange(6, dtype=np.int8).reshape(2, 3)), tensor("s", np.float32(0.25))]
    nodes = [node("DequantizeLinear", "q s", "w"), node("Add", "x w", "y")]
    output = network(nodes, {"x": (T.FLOAT, [2, 3])}, {"y": (T.FLOAT, [2, 3]), "w": (T.FLOAT, [2, 3])}, parts)
    both_ways(output, tmp_path, {"x": X[:, :, 0].copy()})


def test_names_of_the_source_never_meet_names_that_are_made(tmp_path: Path):
    names = [f"{hint}_{i}" for hint in ("constant", "DequantizeLinear", "Cast") for i in range(1, 6)]
    chain = [node("Add", f"{a} w", b) for a, b in zip(["x", *names], [*names, "y"], strict=True)]
    parts = [tensor("q", np.ones((2, 3), np.int8)), tensor("s", np.float32(0.25))]
    nodes = [node("DequantizeLinear", "q s", "w"), *chain]
    output = network(nodes, {"x": (T.FLOAT, [2, 3])}, {"y": (T.FLOAT, [2, 3])}, parts)
    both_ways(output, tmp_path, {"x": X[:, :, 0].copy()})
