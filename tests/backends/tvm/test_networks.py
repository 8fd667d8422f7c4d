"""Compiled networks equal the interpreter to the last byte: `check` raises where one does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from integer_networks import Net, resnet8

from qdeploy.errors import ProofError, UnsupportedError

Compile = Callable[..., Any]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_residual_network_is_exact_in_every_width(compiled: Compile, bits: int):
    net = resnet8(bits, "I8" if bits == 8 else "U8")
    compiled(net.model(net.last))


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "tflite_double"])
def test_a_residual_block_is_exact_in_every_rounding(compiled: Compile, rounding: str):
    """Factors per channel and for all, of sums and of streams, with ties: some are powers of two."""
    net = Net(("batch", 16, 8, 8), "I8")
    wide = {"dtype": "I16", "rounding": rounding}
    h = net.requantize(net.conv("x", 32, 16), 2**-4, 32, **wide)
    side = net.requantize(net.conv("x", 32, 16, 1, pads=[0, 0, 0, 0]), 2**-2, **wide)
    stream = net.requantize(net.add("Relu", net.add("IntegerAdd", h, side)), 0.9, **wide)
    half = [net.constant(np.array([n], np.int32)) for n in (1 << 30, 31)]  # by 1/2
    low = net.add("Requantize", stream, *half, lo=0, hi=255, dtype="U8", rounding=rounding)
    compiled(net.model(stream, low))


def test_a_batch_is_exact(compiled: Compile):
    net = resnet8()
    compiled(net.model(net.last), axes={"batch": 3})


@pytest.mark.parametrize("target", ["x86-64-v3"])
def test_every_kind_of_convolution_is_exact_in_one_network(compiled: Compile, target: str):
    """Odd extents, dilation, strides, groups, depthwise with a multiplier, 16-bit activations, asymmetric padding."""
    net = Net(("batch", 6, 13, 11), "I8")
    outputs = []

    def add(x: str, out: int, inner: int, kernel: int = 3, **attrs: Any) -> str:
        value = net.requantize(net.conv(x, out, inner, kernel, **attrs), 2**-9, out, dtype="I8", zero=-3)
        outputs.append(value)
        return value

    base = add("x", 20, 6, x_zero=11)
    add(base, 24, 20, 3, dilations=[2, 2], pads=[2, 2, 2, 2], x_zero=-3)
    add(base, 32, 20, 1, strides=[2, 2], pads=[0, 0, 0, 0], bits=4, x_zero=-3)
    add(base, 20, 1, 3, group=20, strides=[2, 1], x_zero=-3)
    add(base, 40, 1, 5, group=20, x_zero=-3)
    add(base, 12, 5, 3, group=4, x_zero=-3)
    add(base, 64, 10, 3, group=2, x_zero=-3)
    add(base, 7, 20, 3, pads=[1, 0, 2, 1], auto_pad="NOTSET", x_zero=-3)
    add(base, 16, 20, 3, pads=None, auto_pad="SAME_UPPER", strides=[2, 2], x_zero=-3)
    wide = net.requantize(net.conv(base, 16, 20, x_zero=-3), 2**-6, 16, dtype="I16")
    add(wide, 16, 16, 3)
    compiled(net.model(*outputs), target=target)


def test_images_with_channels_last_are_exact(compiled: Compile):
    """As TFLite has them: depthwise filters, pooling, a mean over space."""
    net = Net(("batch", 10, 9, 3), "I8")
    nhwc = {"layout": "NHWC"}
    x = net.requantize(
        net.conv("x", 24, 3, 3, strides=[2, 2], x_zero=4, **nhwc),
        2**-9,
        24,
        axis=3,
        dtype="I8",
        rounding="tflite_double",
        zero=-128,
    )
    x = net.requantize(
        net.conv(x, 24, 1, 3, group=24, x_zero=-128, **nhwc),
        2**-7,
        24,
        axis=3,
        dtype="I8",
        rounding="tflite_double",
        zero=-128,
    )
    pooled = net.add(
        "IntegerAveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], rounding="half_away", **nhwc
    )
    mean = net.add("IntegerMean", x, axes=[1, 2], keepdims=0, rounding="half_away")
    flat = net.add("Reshape", pooled, shape=[1, -1])
    compiled(net.model(net.linear(mean, 11, 24, x_zero=-128), net.linear(flat, 5, 3 * 3 * 24, bits=4, x_zero=-128)))


def test_moves_tables_and_broadcasts_are_exact(compiled: Compile):
    net = Net(("batch", 8, 6, 6), "I8")
    table = net.constant(np.arange(256)[::-1].astype(np.uint8).view(np.int8))
    x = net.requantize(net.conv("x", 20, 8), 2**-9, 20, dtype="I8")
    y = net.requantize(net.conv("x", 12, 8), 2**-9, 12, dtype="I8")
    joined = net.add("Concat", x, y, axis=1)
    looked = net.add("Lookup", joined, table)
    turned = net.add("Transpose", looked, perm=[0, 2, 3, 1])
    cut = net.add("Slice", turned, starts=[1, 2], ends=[5, 30], axes=[1, 3], steps=[2, 3])
    padded = net.add(
        "Pad", cut, net.constant(np.array([0, 1, 0, 0, 0, 0, 2, 1])), net.constant(np.array([-7], np.int8))
    )
    pooled = net.add("MaxPool", joined, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    scaled = net.add("IntegerMul", joined, net.constant(net.rng.integers(-9, 9, (32, 1, 1)).astype(np.int8)), a_zero=3)
    total = net.add("IntegerSum", scaled, axes=[1], keepdims=1)
    both = net.add("IntegerAdd", net.add("Clip", net.conv(joined, 32, 32), min=-5000, max=4000), joined)
    compiled(net.model(padded, pooled, total, both, net.add("Flatten", looked)))


def test_an_attention_block_is_exact(compiled: Compile):
    """Linear layers, products of activations, softmax with a mask, layer norm, GELU."""
    net = Net(("batch", 9, 32), "I8")
    heads = {}
    for name in "qkv":
        x = net.requantize(net.linear("x", 32, 32), 2**-8, dtype="I8", axis=-1)
        split = net.add("Reshape", x, shape=[1, 9, 4, 8])
        heads[name] = net.add("Transpose", split, perm=[0, 2, 1, 3])
    scores = net.requantize(net.add("IntegerMatMul", heads["q"], heads["k"], transpose_b=1), 2**-2, dtype="I16")
    mask = net.constant((np.arange(9) < 7).astype(np.int32).reshape(1, 1, 1, 9))
    share = net.add("IntegerSoftmax", scores, mask, ln2=70, b=274, c=28000, left=4)
    mixed = net.requantize(net.add("IntegerMatMul", share, heads["v"]), 2**-8, dtype="I8")
    back = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), shape=[1, 9, 32])
    wide = net.requantize("x", 0.9, dtype="I16", axis=-1)
    total = net.add("IntegerAdd", net.requantize(net.linear(back, 32, 32), 2**-6, 32, dtype="I16", axis=-1), wide)
    weight, bias = (net.constant(net.rng.integers(1, 900, 32).astype(np.int32)) for _ in range(2))
    normal = net.add("IntegerLayerNorm", total, weight, bias, x_shift=1, epsilon=5, shift=12)
    inner = net.requantize(
        net.linear(net.requantize(normal, 2**-8, dtype="I8", axis=-1), 64, 32), 2**-3, 64, dtype="I16", axis=-1
    )
    bent = net.add("IntegerGelu", inner, b=900, c=1_300_000, shift=12)
    root = net.add("IntegerSqrt", net.add("Relu", total))
    rms = net.add("IntegerRMSNorm", total, weight, epsilon=3, shift=10)
    compiled(net.model(normal, bent, root, rms))


def test_the_softmax_of_tflite_is_exact(compiled: Compile):
    net = Net(("N", 40, 12), "I8")  # a batch by any name
    compiled(net.model(net.add("TfliteSoftmax", "x", multiplier=1717986918, left_shift=23, diff_min=-248)))


def test_a_library_that_computes_something_else_is_refused(compiled: Compile, tmp_path: Any):
    from dataclasses import replace

    from qdeploy.backends.tvm import BACKEND

    one, other = resnet8(seed=0), resnet8(seed=1)
    lowered = compiled(one.model(one.last))
    with pytest.raises(ProofError, match="something else"):
        BACKEND.check(one.model(one.last), tmp_path / "out", replace(lowered, graph=other.model(other.last)))


def test_an_op_without_a_kernel_is_named(compiled: Compile):
    net = Net(("batch", 4), "I8")
    with pytest.raises(UnsupportedError, match=r"Sigmoid|integer"):
        compiled(net.model(net.add("Sigmoid", "x")))


def test_an_unknown_target_is_named(compiled: Compile):
    net = resnet8()
    with pytest.raises(UnsupportedError, match="no such target"):
        compiled(net.model(net.last), target="sparc")
