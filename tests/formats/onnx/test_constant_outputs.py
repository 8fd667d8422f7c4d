"""Outputs that are constants are given like others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_networks import converted, interpreted, network, onnx_runtime, saved, tensor

import qdeploy

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ANCHORS = np.arange(4, dtype=np.float32)


def _initializer() -> onnx.ModelProto:
    """A product, and an initializer that is an output and is used besides."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "anchors"], ["y"])]
    parts = [tensor("w", np.ones((3, 4), np.float32)), tensor("anchors", ANCHORS)]
    return network(nodes, {"x": (T.FLOAT, [2, 3])}, {"y": (T.FLOAT, [2, 4]), "anchors": (T.FLOAT, [4])}, parts)


def _constant() -> onnx.ModelProto:
    """A Constant node whose value is an output, and one whose value is not."""
    nodes = [
        helper.make_node("Constant", [], ["anchors"], value=tensor("v", ANCHORS)),
        helper.make_node("Constant", [], ["one"], value=tensor("v", np.ones(3, np.float32))),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    return network(nodes, {"x": (T.FLOAT, [2, 3])}, {"anchors": (T.FLOAT, [4]), "y": (T.FLOAT, [2, 3])})


def _taken() -> onnx.ModelProto:
    """A node that has taken the name that the constant would get."""
    nodes = [helper.make_node("Relu", ["x"], ["anchors/value"]), helper.make_node("Neg", ["anchors/value"], ["y"])]
    parts = [tensor("anchors", ANCHORS)]
    return network(nodes, {"x": (T.FLOAT, [2, 3])}, {"anchors": (T.FLOAT, [4]), "y": (T.FLOAT, [2, 3])}, parts)


@pytest.mark.parametrize("make", [_initializer, _constant, _taken])
def test_constant_outputs_are_given_in_every_way(tmp_path: Path, make):
    source = saved(make(), tmp_path / "source")
    want = onnx_runtime(source, {"x": X})
    for results in (interpreted(source, {"x": X}), converted(source, tmp_path / "out", {"x": X})):
        for result, expected in zip(results, want, strict=True):
            np.testing.assert_array_equal(result, expected)
    assert qdeploy.verify(source, tmp_path / "out")["equal"]
