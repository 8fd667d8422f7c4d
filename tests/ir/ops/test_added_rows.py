"""The row of an added op says all that passes ask: its words, its state, its weights. Nothing goes by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadFileError
from qdeploy.ir.graph import Graph, Node, State, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model
from qdeploy.ir.ops import table
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Array, Buffer, plain
from qdeploy.quantize import quantize_model

RNG = np.random.default_rng(7)


def pooled(x: Array, *, kind: str) -> Any:
    return x.max(axis=1) if kind == "max" else x.sum(axis=1)


def counted(x: Array, *, state: str, past: Any = None) -> Any:
    before = np.zeros((len(x), 1, 1, 1), np.float32) if past is None else past[0]
    after = before + x.sum(axis=(1, 2)).reshape(-1, 1, 1, 1)
    return x + after.reshape(-1, 1, 1), (after, after)


def product(x: Array, weight: Array, bias: Array | None = None) -> Any:
    return 2 * (x @ weight.T) + (0 if bias is None else bias)


def product_nodes(node: Node, fresh: Any) -> list[Node]:
    once = fresh("once")
    return [
        Node("Linear", node.inputs[:2], (once,)),
        Node("Add", (once, once), (fresh("twice"),)),
        Node("Add", (fresh("twice"), node.inputs[2]), node.outputs),
    ]


ROWS = (
    Op("ToyPool", QDEPLOY, "the greatest, or the sum", pooled, choices={"kind": ("max", "sum")}),
    Op("ToyCount", QDEPLOY, "x and the sum of all so far", counted, state="recurrent"),
    Op("ToyProduct", QDEPLOY, "2 x @ weight.T + bias", product, product_nodes, weights=((1, 2),)),
)


@pytest.fixture(autouse=True)
def rows() -> Iterator[None]:
    for row in ROWS:
        table.register(row)
    yield
    for row in ROWS:
        table.forget(row.name)


def graph(node: Node, *states: State, rank: int = 3) -> Graph:
    shape = ("batch", "sequence", 16)[-rank:]
    return Graph((Value("x", "F32", shape),), (Value("y", "F32", shape),), (node,), states, {}, {"kind": "encoder"})


@pytest.mark.parametrize(("kind", "legal"), [("max", True), ("sum", True), ("rms", False)])
def test_the_words_of_an_attribute_are_those_of_its_own_op(kind: str, legal: bool):
    node = Node("ToyPool", ("x",), ("y",), {"kind": kind})
    if legal:
        check_graph(graph(node), ())
        return
    with pytest.raises(BadFileError, match="unknown variant"):
        check_graph(graph(node), ())


def test_an_op_keeps_the_kind_of_state_that_its_row_says():
    node = Node("ToyCount", ("x",), ("y",), {"state": "sum"})
    counting = graph(node, State("sum", 1, 1, kind="recurrent", value_dim=1))
    check_graph(counting, ())
    x = RNG.standard_normal((1, 3, 16)).astype(np.float32)
    _, states = run(counting, {"x": x})
    again, _ = run(counting, {"x": x}, states)
    np.testing.assert_allclose(again["y"], x + 2 * x.sum(), rtol=1e-5)
    with pytest.raises(BadFileError, match="a state of another kind"):
        check_graph(graph(node, State("sum", 1, 1)), ())


def test_the_weights_of_a_composite_are_quantized():
    values = RNG.standard_normal((16, 16)).astype(np.float32)
    bias = RNG.standard_normal(16).astype(np.float32)
    tensors = {"w": plain(Buffer.of("w", values, "F32"), "f32"), "b": plain(Buffer.of("b", bias, "F32"), "f32")}
    described = graph(Node("ToyProduct", ("x", "w", "b"), ("y",), {}, "layer"))
    model = Model("toy", "toy", tensors, build_graph=lambda _: described)
    rounded = quantize_model(model, ["rtn:int4,group=16"])
    assert rounded.tensors["w"].terms[0].values.table == "uint4"  # type: ignore[union-attr]
    assert rounded.tensors["b"] is tensors["b"]
    x = RNG.standard_normal((1, 2, 16)).astype(np.float32)
    outputs, _ = run(described, {"x": x}, None, Weights(rounded))
    np.testing.assert_allclose(outputs["y"], 2 * x @ rounded.tensors["w"].decode().T + bias, rtol=1e-5, atol=1e-5)
