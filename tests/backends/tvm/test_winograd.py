"""Minimal filtering equals the convolution to the last byte, in both orders of its loops, or is not chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_networks import Net

from qdeploy.backends.tvm.plan import plan
from qdeploy.backends.tvm.targets import TARGETS
from qdeploy.backends.tvm.winograd_fit import form
from qdeploy.ir.run import Weights

Compile = Callable[..., Any]
INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
FILTER = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def layer(height: int, width: int, inner: int, out: int, bits: int = 8, dtype: str = "U8", **attrs: Any) -> Net:
    net = Net(("batch", inner, height, width), dtype)
    net.last = net.requantize(net.conv("x", out, inner, bits=bits, **attrs), 2**-9, out)  # type: ignore[attr-defined]
    return net


def forms(net: Net) -> list[Any]:
    """How the convolutions of a network are filtered for AVX2."""
    model = net.model(net.last)  # type: ignore[attr-defined]
    program = plan(model.graph, Weights(model), TARGETS["x86-64-v3"].kernel, {"batch": 1})
    return [step.attrs["winograd"] for step in program.steps if step.kind == "conv"]


@pytest.mark.parametrize(
    ("order", "size", "channels", "attrs"),
    [
        ("chunks", (13, 18), (16, 32), {"dtype": "I8", "x_zero": -7}),
        ("chunks", (9, 10), (32, 16), {"bits": 4, "pads": [0, 1, 2, 1]}),
        ("channels", (7, 5), (48, 64), {"x_zero": 3}),
        ("channels", (4, 4), (32, 48), {"bits": 4, "dtype": "I8", "x_zero": 90}),
    ],
)
def test_filtered_convolutions_are_exact_for_a_batch(
    compiled: Compile, order: str, size: tuple[int, int], channels: tuple[int, int], attrs: dict[str, Any]
):
    net = layer(*size, *channels, **attrs)
    assert [result and result["order"] for result in forms(net)] == [order]
    compiled(net.model(net.last), axes={"batch": 2})  # type: ignore[attr-defined]


@pytest.mark.parametrize("attrs", [{"strides": [2, 2]}, {"dilations": [2, 2], "pads": [2] * 4}, {"kernel": 5}])
def test_other_convolutions_are_left_as_they_are(attrs: dict[str, Any]):
    assert forms(layer(12, 12, 32, 32)) != [None]
    assert forms(layer(12, 12, 32, 32, **attrs)) == [None]


def test_filters_whose_sums_might_leave_int32_are_left_as_they_are(compiled: Compile):
    """All weights -128, all inputs 255: 4 y needs 2^32 from 1828 channels on."""
    worst = np.full((16, 3, 3, 2048), -128, np.int8)
    assert form(worst, (1, 8, 8, 16), (0, 255), 5) is None
    assert form(worst // 8, (1, 8, 8, 16), (0, 255), 5) is not None
    net = Net(("batch", 2048, 8, 8))
    weight = net.constant(worst.transpose(0, 3, 1, 2))
    total = net.add("IntegerConv", "x", weight, net.constant(np.zeros(16, np.int32)), pads=[1] * 4)
    net.last = net.requantize(total, 2**-14, 16, dtype="I16")  # type: ignore[attr-defined]
    assert forms(net) == [None]
    compiled(net.model(net.last))  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 4]), st.sampled_from([(0, 255), (-128, 127), (-255, 0)]))
def test_no_input_brings_a_sum_beyond_the_bound(seed: int, bits: int, limits: tuple[int, int]):
    """Inputs picked against the filters, in int64: each sum on the way stays in int32, the last is the product's."""
    rng = np.random.default_rng(seed)
    top = (1 << (bits - 1)) - 1
    filters = rng.choice([-top - 1, top], (16, 3, 3, 512)).astype(np.int8 if bits == 8 else ml_dtypes.int4)
    filters[:, :, :, rng.integers(0, 512) :] = 0
    if form(filters, (1, 8, 8, 16), limits, 5) is None:
        return
    codes = filters.astype(np.int64)
    transformed = np.einsum("fa,oabi,gb->ofgi", FILTER, codes, FILTER)
    place = rng.integers(0, 4, 2)
    reach = np.einsum("a,b->ab", INPUT[place[0]], INPUT[place[1]])[..., None] * np.sign(transformed[0, *place])
    inputs = np.where(reach > 0, limits[1], limits[0])
    sent = np.einsum("fa,abi,gb->fgi", INPUT, inputs, INPUT)
    assert abs(sent).max() < 1 << 15
    sums = (sent * transformed).sum(axis=-1)
    for step in (sums, np.einsum("af,ofg->oag", OUTPUT, sums), np.einsum("af,ofg,bg->oab", OUTPUT, sums, OUTPUT)):
        assert abs(step).max() < 1 << 31
    wanted = [[(inputs[a : a + 3, b : b + 3] * codes).sum(axis=(1, 2, 3)) for b in (0, 1)] for a in (0, 1)]
    np.testing.assert_array_equal(np.moveaxis(np.array(wanted), -1, 0) * 4, step)
