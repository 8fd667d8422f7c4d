"""Weights that a graph turns are matrices of their own for an engine."""

from __future__ import annotations

import numpy as np

from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Buffer, plain
from qdeploy.passes.experts import with_matrices


def model(nodes: tuple[Node, ...]) -> Model:
    weight = plain(Buffer.of("data", np.arange(12, dtype=np.float32).reshape(3, 4), "F32"), "f32")
    graph = Graph((Value("x", "F32", ("b", 3)),), (Value("y", "F32", ("b", 4)),), nodes)
    return Model("test", "test", {"w": weight}, build_graph=lambda _: graph)


def test_a_transposed_weight_is_a_tensor_that_lies_as_it_is_multiplied():
    turned = Node("Transpose", ("w",), ("w.turned",), {"perm": [1, 0]})
    whole = model((turned, Node("Linear", ("x", "w.turned"), ("y",))))
    apart, x = with_matrices(whole), {"x": np.eye(3, dtype=np.float32)}
    assert [node.inputs for node in apart.graph.nodes] == [("x", "w.T")]
    np.testing.assert_array_equal(apart.tensors["w.T"].decode(), whole.tensors["w"].decode().T)
    expected = run(whole.graph, x, None, Weights(whole))[0]["y"]
    np.testing.assert_array_equal(run(apart.graph, x, None, Weights(apart))[0]["y"], expected)


def test_a_model_without_experts_or_turned_weights_is_given_back():
    whole = model((Node("MatMul", ("x", "w"), ("y",)),))
    assert with_matrices(whole) is whole
