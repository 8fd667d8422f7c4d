"""What a model may not leave open is refused, and nodes in any order mean what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_networks import converted, interpreted, network, onnx_runtime, saved, tensor

import qdeploy
from qdeploy.errors import BadFileError, UnsupportedError

FLOAT = TensorProto.FLOAT


def test_nodes_in_any_order_compute_what_onnx_runtime_computes(tmp_path: Path):
    rng = np.random.default_rng(0)
    kinds = ("Neg", "Floor", "Neg", "Abs")
    chain = [helper.make_node(kinds[i % 4], [f"v{i}"], [f"v{i + 1}"]) for i in range(12)]
    nodes = [helper.make_node("Identity", ["v12"], ["y"]), *(chain[i] for i in rng.permutation(12))]
    nodes.append(helper.make_node("Exp", ["x"], ["v0"]))
    source = saved(network(nodes, {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [2, 3])}), tmp_path / "source")
    x = {"x": np.array([[-1, 0, 0.5], [0.1, 0.2, 0.3]], np.float32)}
    (want,) = onnx_runtime(source, x)
    np.testing.assert_array_equal(interpreted(source, x)[0], want)
    np.testing.assert_array_equal(converted(source, tmp_path / "out", x)[0], want)


def test_nodes_that_wait_for_each_other_are_an_error(tmp_path: Path):
    nodes = [helper.make_node("Add", ["a", "x"], ["y"]), helper.make_node("Neg", ["y"], ["a"])]
    source = saved(network(nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}), tmp_path)
    with pytest.raises(BadFileError, match="nothing before it makes"):
        _ = qdeploy.load(source).graph


@pytest.mark.parametrize("name", ["foo", "transposed"])
def test_a_setting_of_a_packed_product_that_nobody_knows_leaves_the_node_whole(name: str, tmp_path: Path):
    packed = {"K": 32, "N": 4, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", **packed, **{name: 1})
    weights = [tensor("b", np.full((4, 1, 16), 0x21, np.uint8)), tensor("s", np.ones(4, np.float32))]
    source = saved(network([node], {"x": (FLOAT, [1, 32])}, {"y": (FLOAT, [1, 4])}, weights), tmp_path)
    assert [n.op for n in qdeploy.load(source).graph.nodes] == ["Opaque"]


@pytest.mark.parametrize(("axis", "block", "shape"), [(7, 0, (4,)), (0, 2, (1, 4)), (0, 2, (3, 4)), (-3, 0, (3,))])
def test_parameters_that_do_not_lie_over_their_codes_are_an_error(axis: int, block: int, shape: tuple, tmp_path: Path):
    more = {"axis": axis} | ({"block_size": block} if block else {})
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **more),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [tensor("q", np.ones((3, 4), np.int8)), tensor("s", np.full(shape, 2, np.float32))]
    source = saved(network(nodes, {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [2, 4])}, weights), tmp_path)
    with pytest.raises(BadFileError, match="cannot run"):
        interpreted(source, {"x": np.ones((2, 3), np.float32)})


def test_a_model_in_a_folder_of_the_repository_is_named(tmp_path: Path):
    inner = tmp_path / "models--org--name/snapshots/abc/onnx"
    saved(network([helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}), inner)
    (inner.parent / "config.json").write_text('{"model_type": "bert"}')
    for outer in (inner.parent, tmp_path / "models--org--name"):
        with pytest.raises(UnsupportedError, match="folders inside") as caught:
            qdeploy.load(outer)
        assert caught.value.found == "onnx (onnx)" and caught.value.todo.endswith("/onnx")
    assert qdeploy.load(inner).graph.nodes
