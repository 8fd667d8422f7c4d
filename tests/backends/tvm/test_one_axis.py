"""Convolutions and pooling over one axis: compiled as images of one row, equal to the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from integer_networks import Net

from qdeploy.backends.tvm.plan import plan
from qdeploy.backends.tvm.targets import target
from qdeploy.ir.run import Weights


def conv(net: Net, x: str, out: int, inner: int, kernel: int, bits: int = 8, **attrs: Any) -> str:
    bias = net.constant(net.rng.integers(-2000, 2000, out).astype(np.int32))
    attrs.setdefault("pads", [kernel // 2] * 2)
    return net.add("IntegerConv", x, net.weights(out, inner, kernel, bits=bits), bias, **attrs)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_kind_over_one_axis_is_exact(compiled: Callable[..., Any], batch: int):
    """Strides, dilation, groups, depthwise, 4 bits, asymmetric padding, residual sums, constants per place, pooling."""
    net, outputs = Net(("batch", 12, 37), "I8"), []

    def add(x: str, out: int, *shape: int, **attrs: Any) -> str:
        output = net.requantize(conv(net, x, out, *shape, **attrs), 2**-9, out, dtype="I8", zero=-3)
        outputs.append(output)
        return output

    base = add("x", 20, 12, 5, x_zero=11)
    add(base, 24, 20, 3, dilations=[2], pads=[2, 2], x_zero=-3)
    add(base, 32, 20, 1, 4, strides=[2], pads=[0, 0], x_zero=-3)
    add(base, 20, 1, 3, group=20, strides=[2], x_zero=-3)
    add(base, 40, 1, 5, group=20, x_zero=-3)
    add(base, 12, 5, 3, group=4, x_zero=-3)
    add(base, 64, 10, 3, group=2, x_zero=-3)
    add(base, 7, 20, 4, pads=None, auto_pad="SAME_UPPER", strides=[3], x_zero=-3)
    outputs.append(net.add("MaxPool", base, kernel_shape=[3], strides=[2], pads=[1, 1]))
    pooled = net.add("IntegerAveragePool", base, kernel_shape=[4], strides=[3], pads=[1, 0], rounding="half_away")
    outputs.append(net.linear(net.add("Reshape", pooled, shape=[0, -1]), 5, 20 * 12))
    wide = [net.requantize(x, 0.5, 20, dtype="I16") for x in (base, conv(net, base, 20, 20, 3))]
    outputs.append(net.requantize(net.add("IntegerAdd", *wide), 0.3, dtype="I16"))
    total = net.add(
        "IntegerAdd", conv(net, base, 20, 20, 3), net.constant(np.arange(20 * 37, dtype=np.int32).reshape(1, 20, 37))
    )
    total = net.add("IntegerAdd", total, net.constant(np.arange(20, dtype=np.int32).reshape(20, 1)))
    outputs.append(net.requantize(total, 2**-10, 20, dtype="I8"))
    outputs.append(net.requantize(conv(net, base, 20, 20, 3), 2**-10, 37, axis=2, dtype="I8"))
    compiled(net.model(*outputs), axes={"batch": batch})


def test_what_follows_joins_the_kernel():
    """Rescaling, a residual sum and ReLU move nothing and are no kernels of their own."""
    net = Net(("batch", 16, 40), "I8")
    x = net.requantize(conv(net, "x", 32, 16, 5), 2**-9, 32, dtype="I8")
    h = net.requantize(conv(net, x, 32, 32, 3), 2**-9, 32, dtype="I16")
    total = net.add("Relu", net.add("IntegerAdd", h, net.requantize(x, 0.5, dtype="I16")))
    model = net.model(net.requantize(total, 0.25))
    steps = plan(model.graph, Weights(model), target("x86-64-v3").kernel, {"batch": 1}).steps
    assert [step.kind for step in steps if step.kind != "view"] == ["to_last", "conv", "conv", "to_plain"]
