"""What a row says of its op is true of its numpy function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qdeploy.integer.intervals import Intervals
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.ops.table import OPS, op
from qdeploy.ir.tensor import Buffer, QTensor, plain

RANDOM = np.random.default_rng(7)
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Identity": ([(2, 3, 4)], {}),
    "Gather": ([(5, 3), np.array([4, 0, 0])], {}),
    "Reshape": ([(2, 3, 4)], {"shape": [0, -1]}),
    "Transpose": ([(2, 3, 4)], {"perm": [2, 0, 1]}),
    "Unsqueeze": ([(2, 3)], {"axes": [1]}),
    "Squeeze": ([(2, 1, 3)], {"axes": [1]}),
    "Concat": ([(2, 3), (2, 5)], {"axis": 1}),
    "Stack": ([(2, 3), (2, 3)], {}),
    "Slice": ([(4, 5)], {"starts": [1], "ends": [5], "axes": [1], "steps": [2]}),
    "Expand": ([(1, 3), np.array([4, 3])], {}),
    "Tile": ([(2, 3), np.array([2, 1])], {}),
    "Flatten": ([(2, 3, 4)], {"axis": 2}),
    "DepthToSpace": ([(1, 8, 2, 3)], {"blocksize": 2}),
    "SpaceToDepth": ([(1, 2, 4, 6)], {"blocksize": 2}),
    "GatherND": ([(4, 3, 2), np.array([[3, 0], [1, 2]])], {}),
    "GatherElements": ([(4, 3), np.array([[3, 0, -1], [1, 2, 0]])], {"axis": 0}),
    "Resize": ([(1, 2, 4, 5), np.zeros(0, np.float32), np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}),
    "Split": ([(2, 6)], {"axis": 1, "num_outputs": 2}),
    "Relu": ([(2, 9)], {}),
    "Clip": ([(2, 9)], {"min": -0.5, "max": 0.75}),
    "Pad": ([(2, 3), np.array([1, 0, 0, 2])], {}),
    "MaxPool": ([(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool": ([(1, 2, 6, 6)], {"kernel_shape": [3, 3]}),
    "GlobalAveragePool": ([(1, 2, 6, 6)], {}),
    "GlobalMaxPool": ([(1, 2, 6, 6)], {}),
    "ReduceMean": ([(2, 9)], {"axes": [1], "keepdims": 1}),
    "Add": ([(2, 3), (3,)], {}),
    "Sub": ([(2, 3), (3,)], {}),
    "Conv": ([(1, 2, 5, 5), (3, 2, 3, 3), (3,)], {"pads": [1, 1, 1, 1]}),
    "Linear": ([(2, 6), (4, 6), (4,)], {}),
    "Gemm": ([(2, 6), (4, 6), (4,)], {"transB": 1}),
}
"""Inputs (a shape for random floats, or an array) and attributes of one call of each op with a trait."""


def arguments(name: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    inputs, attributes = CASES[name]
    drawn = [x if isinstance(x, np.ndarray) else RANDOM.normal(size=x).astype(np.float32) for x in inputs]
    return drawn, attributes


def results(name: str, inputs: list[np.ndarray], attributes: dict[str, Any]) -> list[np.ndarray]:
    outputs = op(name).numpy(*inputs, **attributes)
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def test_every_op_that_moves_elements_or_keeps_a_scale_has_a_case():
    wanted = {name for name, row in OPS.items() if row.moves or row.keeps_scale}
    assert wanted <= set(CASES)


@pytest.mark.parametrize("name", [name for name, row in OPS.items() if row.moves])
def test_an_op_that_moves_gives_elements_of_its_inputs(name: str):
    inputs, attributes = arguments(name)
    content = np.concatenate([x.reshape(-1) for x in inputs if x.dtype == np.float32])
    for result in results(name, inputs, attributes):
        assert np.isin(result, content).all()


@pytest.mark.parametrize("name", [name for name, row in OPS.items() if row.monotone])
def test_a_monotone_op_never_falls(name: str):
    two = name in ("Add", "Min", "Max", "Sum")
    least = 0.1 if name in ("Log", "Sqrt") else -3
    low = RANDOM.uniform(least, 3, (2 if two else 1, 200)).astype(np.float32)
    high = low + RANDOM.uniform(0, 2, low.shape).astype(np.float32)
    attributes = CASES[name][1] if name in CASES else {}
    before, after = (op(name).numpy(*ends, **attributes) for ends in (low, high))
    assert (before <= after).all() and (before < after).any()


@pytest.mark.parametrize("name", [name for name, row in OPS.items() if row.interval and name in CASES])
def test_results_lie_within_the_interval_that_the_rule_gives(name: str):
    inputs, attributes = arguments(name)
    names = [f"in{i}" for i in range(len(inputs))]
    constants: dict[str, QTensor] = {}
    for label, array in list(zip(names, inputs, strict=True))[1:]:
        dtype = "F32" if array.dtype == np.float32 else "I64"
        constants[label] = plain(Buffer.of("data", array, dtype), "f32" if dtype == "F32" else "int64")
    node = Node(name, tuple(names), ("out",), attributes)
    graph = Graph((Value("in0", "F32", inputs[0].shape),), (Value("out", "F32", ()),), (node,), (), constants)
    ends = (float(inputs[0].min()), float(inputs[0].max()))
    interval = Intervals(graph, {}, {"in0": ends}).get("out")
    assert interval is not None
    for result in results(name, inputs, attributes):
        assert interval[0] - 1e-5 <= result.min() and result.max() <= interval[1] + 1e-5


def test_nothing_is_said_of_a_value_whose_inputs_are_unknown():
    graph = Graph((Value("x", "F32", (2,)),), (Value("y", "F32", (2,)),), (Node("Tanh", ("x",), ("y",)),))
    assert Intervals(graph, {}, {}).get("y") is None
    assert Intervals(graph, {}, {"x": (-1.0, 1.0)}).get("y") == pytest.approx((-np.tanh(1), np.tanh(1)))
