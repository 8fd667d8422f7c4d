"""Folding changes what a graph is made of, and not what it computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.run import run
from qdeploy.passes.fold import fold, plain_tensor

RNG = np.random.default_rng(8)
IMAGE = Value("x", "F32", ("batch", 3, 8, 8))


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def folded(nodes: list[Node], constants: Mapping[str, np.ndarray], value: Value, *outputs: str) -> Graph:
    """The folded graph, after it has been shown to compute the same."""
    output = {name: plain_tensor(np.asarray(array)) for name, array in constants.items()}
    graph = Graph((value,), tuple(Value(name, "F32", ()) for name in outputs), tuple(nodes), (), output)
    result = fold(graph, {})
    for batch in (1, 3):
        x = f32(*(batch if isinstance(n, str) else n for n in value.shape))
        wanted, arguments = run(graph, {"x": x})[0], run(result, {"x": x})[0]
        for name in outputs:
            assert wanted[name].shape == arguments[name].shape
            np.testing.assert_allclose(arguments[name], wanted[name], rtol=1e-5, atol=1e-5)
    return result


def test_batch_norms_go_into_the_layer_before_them():
    norm = {n: f32(6) for n in ("scale", "shift", "mean")} | {"variance": np.abs(f32(6)) + 0.1}
    constants = norm | {"w": f32(6, 3, 3, 3), "b": f32(6), "v": f32(6, 6 * 64), "c": f32(6)}
    names = ("scale", "shift", "mean", "variance")
    nodes = [
        Node("Conv", ("x", "w", "b"), ("a",), {"pads": [1, 1, 1, 1]}),
        Node("BatchNormalization", ("a", *names), ("n",), {"epsilon": 1e-3}),
        Node("Relu", ("n",), ("r",)),
        Node("Flatten", ("r",), ("f",)),
        Node("Gemm", ("f", "v", "c"), ("g",), {"transB": 1}),
        Node("BatchNormalization", ("g", *names), ("y",)),
    ]
    assert [n.op for n in folded(nodes, constants, IMAGE, "y").nodes] == ["Conv", "Relu", "Flatten", "Gemm"]


def test_a_batch_norm_stays_where_its_input_is_used_twice():
    constants = {n: f32(3) for n in ("scale", "shift", "mean")} | {
        "variance": np.abs(f32(3)) + 0.1,
        "w": f32(3, 3, 1, 1),
    }
    nodes = [
        Node("Conv", ("x", "w"), ("a",)),
        Node("BatchNormalization", ("a", "scale", "shift", "mean", "variance"), ("n",)),
        Node("Add", ("a", "n"), ("y",)),
    ]
    assert [n.op for n in folded(nodes, constants, IMAGE, "y").nodes] == [n.op for n in nodes]


def test_the_arithmetic_of_shapes_is_gone():
    constants = {"zero": np.array(0), "rest": np.array([-1]), "two": np.array([2.0], np.float32), "axis": np.array([0])}
    nodes = [
        Node("Identity", ("x",), ("i",)),
        Node("Shape", ("i",), ("s",)),
        Node("Gather", ("s", "zero"), ("n",)),
        Node("Unsqueeze", ("n", "axis"), ("u",)),
        Node("Concat", ("u", "rest"), ("shape",), {"axis": 0}),
        Node("Reshape", ("i", "shape"), ("f",)),
        Node("Sqrt", ("two",), ("root",)),
        Node("Mul", ("f", "root"), ("y",)),
    ]
    result = folded(nodes, constants, IMAGE, "y")
    assert [(n.op, dict(n.attrs)) for n in result.nodes] == [("Reshape", {"shape": [0, 192]}), ("Mul", {})]


def test_a_product_with_a_constant_is_a_layer_with_its_bias():
    nodes = [Node("MatMul", ("x", "w"), ("p",)), Node("Add", ("b", "p"), ("y",))]
    result = folded(nodes, {"w": f32(4, 7), "b": f32(7)}, Value("x", "F32", ("batch", 5, 4)), "y")
    assert [(n.op, len(n.inputs)) for n in result.nodes] == [("Linear", 3)]


def test_an_output_of_the_graph_keeps_its_name():
    nodes = [Node("Relu", ("x",), ("r",)), Node("Identity", ("r",), ("y",)), Node("Neg", ("y",), ("z",))]
    assert [n.op for n in folded(nodes, {}, IMAGE, "y", "z").nodes] == ["Relu", "Identity", "Neg"]
