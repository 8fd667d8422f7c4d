"""Weights rounded by the moments of their inputs leave a smaller error in the output."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.calibrate.moments import input_moments
from qdeploy.integer.weights import quantized
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.ops.conv import conv
from qdeploy.passes.fold import plain_tensor
from qdeploy.quantize.gptq import compensated

RNG = np.random.default_rng(17)


def correlated(count: int, width: int) -> np.ndarray:
    return RNG.standard_normal((count, width)) @ (RNG.standard_normal((width, width)) * 0.3 + np.eye(width))


@pytest.mark.parametrize("bits", [2, 4])
def test_the_error_of_the_output_is_smaller(bits: int):
    weight, x = RNG.standard_normal((16, 40)), correlated(600, 40)
    moment = (x.T @ x / len(x))[None]
    errors = []
    for found in (quantized(weight, bits), quantized(weight, bits, moment)):
        limit = 1 << (bits - 1)
        assert -limit <= found.codes.min() and found.codes.max() < limit
        errors.append(np.square(x @ (found.values() - weight).T).mean())
    assert errors[1] < 0.8 * errors[0]


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weight, scale = RNG.standard_normal((5, 12)), np.full(5, 0.3)
    found = compensated(weight, scale, 7, np.diag(RNG.uniform(1, 2, 12)))
    assert (found == np.clip(np.rint(weight / 0.3), -8, 7)).all()


def test_an_input_that_is_always_zero_does_no_harm():
    moment = np.diag([1.0, 0.0, 2.0])
    assert np.isfinite(compensated(RNG.standard_normal((4, 3)), np.ones(4), 7, moment)).all()
    assert np.isfinite(compensated(RNG.standard_normal((4, 3)), np.ones(4), 7, moment * 0)).all()


@pytest.mark.parametrize("group, attrs", [(1, {"pads": [1, 1, 1, 1]}), (2, {"strides": [2, 2], "dilations": [1, 2]})])
def test_moments_are_those_of_the_windows(group: int, attrs: dict[str, list[int]]):
    weight = RNG.standard_normal((4, 4 // group, 3, 2)).astype(np.float32)
    node = Node("Conv", ("x", "w"), ("y",), {**attrs, "group": group})
    graph = Graph((Value("x", "F32", ("batch", 4, 7, 8)),), (Value("y", "F32", ()),), (node,))
    model = Model("test", "memory", {"w": plain_tensor(weight)}, build_graph=lambda _: graph)
    x = RNG.standard_normal((6, 4, 7, 8)).astype(np.float32)
    moments = input_moments(model, {"x": x}, batch=4)["w"]
    output = conv(x, weight, group=group, **attrs)
    for g, moment in enumerate(moments):
        rows = weight[g * 4 // group : (g + 1) * 4 // group].reshape(4 // group, -1)
        power = np.square(output[:, g * 4 // group : (g + 1) * 4 // group]).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(np.einsum("nk,kl,nl->n", rows, moment, rows), power, rtol=1e-4)
