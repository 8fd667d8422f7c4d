"""Weights rounded by the moments of their inputs leave a smaller error in the output."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.calibrate.moments import input_moments
from qdeploy.integer.weights import quantized
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.ops.conv import conv
from qdeploy.ir.tensor import Buffer, plain
from qdeploy.passes.fold import plain_tensor
from qdeploy.quantize.contract import Grid, Statistics, Weight
from qdeploy.quantize.gptq import Gptq, compensated

RNG = np.random.default_rng(17)


def correlated(count: int, width: int) -> np.ndarray:
    return RNG.standard_normal((count, width)) @ (RNG.standard_normal((width, width)) * 0.3 + np.eye(width))


@pytest.mark.parametrize("bits", [2, 4])
def test_the_error_of_the_output_is_smaller(bits: int):
    weight, x = RNG.standard_normal((16, 40)), correlated(600, 40)
    moment = (x.T @ x / len(x))[None]
    errors = []
    for result in (quantized(weight, bits), quantized(weight, bits, moment)):
        limit = 1 << (bits - 1)
        assert -limit <= result.codes.min() and result.codes.max() < limit
        errors.append(np.square(x @ (result.values() - weight).T).mean())
    assert errors[1] < 0.8 * errors[0]


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weight, scale = RNG.standard_normal((5, 12)), np.full(5, 0.3)
    result = compensated(weight, scale, 7, np.diag(RNG.uniform(1, 2, 12)))
    assert (result == np.clip(np.rint(weight / 0.3), -8, 7)).all()


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


def plain_gptq(
    weight: np.ndarray, moment: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, group: int
) -> np.ndarray:
    """GPTQ, arXiv 2210.17323, Algorithm 1, with blocks of one column, by its recursion on the inverse; act-order."""
    order = np.argsort(-np.diag(moment), kind="stable")
    left, out = weight[:, order].astype(np.float64), np.empty(weight.shape)
    inverse = np.linalg.inv(moment[np.ix_(order, order)] + 0.01 * np.diag(moment).mean() * np.eye(len(order)))
    for j, column in enumerate(order):
        step, middle = scale[:, column // group], zero[:, column // group]
        code = np.clip(np.rint(left[:, j] / step + middle), 0, (1 << bits) - 1)
        out[:, column] = (code - middle) * step
        error = (left[:, j] - out[:, column]) / inverse[0, 0]
        left[:, j + 1 :] -= np.outer(error, inverse[0, 1:])
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", ["middle", "group"])
def test_the_quantizer_is_as_good_as_a_plain_reference(bits: int, zeros: str):
    values, x = RNG.standard_normal((24, 96)).astype(np.float32), correlated(500, 96)
    moment = x.T @ x / len(x)
    own = Weight("w", plain(Buffer.of("w", values, "F32"), "f32"))
    quantizer = Gptq(zeros=zeros, calibrate="text")
    tensor = quantizer.quantize(own, [Statistics(moments=moment)], Grid(bits, 32, f"int{bits}"))
    codes = tensor.terms[0].values
    scale = codes.scale.values.data[0].read().astype(np.float64)
    zero = codes.zero.values.data[0].read().astype(np.float64)
    zero = np.broadcast_to(zero, scale.shape)
    reference = plain_gptq(values, moment, scale, zero, bits, 32)
    errors = [np.square(x @ (w - values).T).mean() for w in (tensor.decode(), reference)]
    assert errors[0] < 1.01 * errors[1]


def test_zero_points_of_groups_are_for_weights_off_zero():
    values, x = (RNG.standard_normal((24, 96)) + 2).astype(np.float32), correlated(500, 96)
    known = [Statistics(moments=x.T @ x / len(x))]
    errors = []
    for zeros in ("middle", "group"):
        own = Weight("w", plain(Buffer.of("w", values, "F32"), "f32"))
        tensor = Gptq(zeros=zeros, calibrate="text").quantize(own, known, Grid(4, 32, "int4"))
        errors.append(np.square(x @ (tensor.decode() - values).T).mean())
    assert errors[1] < 0.7 * errors[0]
