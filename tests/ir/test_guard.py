"""What a node would cost is known before it runs: its elements exactly, its products to the right order."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.guard import Guard, cost
from qdeploy.ir.ops.table import OPS
from qdeploy.ir.run import run

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


CASES = {
    "Add": ([floats(3, 1), floats(1, 4)], {}),
    "Where": ([floats(3, 1, 1) > 0, floats(1, 4, 1), floats(5)], {}),
    "Concat": ([floats(3, 2), floats(3, 5)], {"axis": 1}),
    "Gather": ([floats(3, 4), np.array([[0, 1, 1]])], {"axis": 1}),
    "GatherND": ([floats(3, 4, 5), np.array([[0, 1], [1, 1], [2, 3]])], {}),
    "MatMul": ([floats(2, 1, 3, 4), floats(5, 4, 6)], {}),
    "Gemm": ([floats(4, 3), floats(4, 6)], {"transA": 1}),
    "Linear": ([floats(2, 3, 4), floats(6, 4)], {}),
    "Conv": ([floats(1, 4, 8, 8), floats(6, 2, 3, 3)], {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
}


@pytest.mark.parametrize("op", CASES)
def test_the_elements_of_a_result_are_known_before_it_is_there(op: str):
    arrays, attrs = CASES[op]
    count, products = cost(op, arrays, attrs)
    result = OPS[op].numpy(*arrays, **attrs)
    assert count == result.size
    assert (products > 0) == (op in ("MatMul", "Gemm", "Linear", "Conv"))
    if op in ("MatMul", "Gemm", "Linear"):
        assert products == result.size * 4


def test_a_node_that_does_not_fit_is_for_its_row_to_refuse():
    assert cost("MatMul", [floats(), floats(3)], {}) == (0, 0)
    assert cost("Add", [floats(3), floats(4)], {}) == (0, 0)


def chain(count: int) -> Graph:
    """A row of products of x [8, 8] with itself."""
    nodes = [Node("MatMul", (f"v{i}", "v0"), (f"v{i + 1}",), {}) for i in range(count)]
    return Graph((Value("v0", "F32", (8, 8)),), (Value(f"v{count}", "F32", (8, 8)),), tuple(nodes), ())


def test_a_run_is_refused_where_its_work_is_used_up_and_not_before():
    x = {"v0": np.eye(8, dtype=np.float32)}
    run(chain(10), x, guard=Guard(work=10 * 512))
    with pytest.raises(UnsupportedError, match="far more than its size") as caught:
        run(chain(11), x, guard=Guard(work=10 * 512))
    assert "MatMul" in caught.value.where and "--check none" in caught.value.todo


def test_weights_are_worth_work():
    graph = Graph(
        (Value("x", "F32", (4, 8)),), (Value("y", "F32", (4, 8)),), (Node("MatMul", ("x", "w"), ("y",), {}),), ()
    )
    weights = {"w": floats(8, 8)}
    result, _ = run(graph, {"x": floats(4, 8)}, {}, weights, guard=Guard(work=0))
    assert result["y"].shape == (4, 8)


def test_what_a_user_runs_is_not_bounded():
    graph = Graph(
        (Value("x", "F32", (4, 1)),), (Value("y", "F32", (4, 4)),), (Node("Add", ("x", "x"), ("y",), {}),), ()
    )
    with pytest.raises(UnsupportedError):
        run(graph, {"x": floats(4, 1)}, guard=Guard(elements=3))
    run(graph, {"x": floats(4, 1)})
