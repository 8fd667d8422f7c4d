"""MobileNetV2 of HAWQ's repository (utils/models/q_mobilenetv2.py) as an integer graph.

    unit      quantize the stream; 1x1, ReLU6, quantize; 3x3 per channel, ReLU6, quantize; 1x1; to 16 bits, or, where
              image and channels stay, added to the stream as in a ResNet, without a limit and without ReLU
    ReLU6     on sums: at most round(6 / S_x / S_w) in its channel, formed in float32. Where all channels have the
              same limit behind the quantization, it is that of the codes; else min(z, c) = c - max(c - z, 0)
    head      quantize, 1x1, ReLU6, quantize to 16 bits, the mean of 7x7, quantize, 1x1

The last layer is a QuantConv2d, whose scales the checkpoint does not hold: the result is its sums, each class at a
scale of its own if weights were quantized per channel.
"""

from __future__ import annotations

import numpy as np

from qdeploy.formats.networks.hawq_network import FULL, Builder, Operand
from qdeploy.ir.dyadic import dyadics, quotient
from qdeploy.ir.integer_arithmetic import half_even


def mobilenet(build: Builder) -> Operand:
    """Returns the sums of the last layer; their scale is that of its input."""
    x = Operand("input", build.scale("quant_input", "act_scaling_factor"))
    x = _conv6(build, x, "init_block", "quant_act_int32", 2)
    for stage in (1, 2, 3, 4, 5):
        unit = 1
        while build.has(f"features.stage{stage}.unit{unit}.conv2"):
            x = _unit(build, x, f"features.stage{stage}.unit{unit}", 2 if unit == 1 and stage > 1 else 1)
            unit += 1
    x = build.act(x, "quant_act_before_final_block")
    x = _conv6(build, x, "features.final_block", "quant_act_int32_final")
    mean = build.add("IntegerAveragePool", (x.name,), "mean", kernel_shape=[7, 7], strides=[1, 1], rounding="floor")
    x = build.act(Operand(mean, x.scale), "quant_act_output")
    bits = build.config.of("output")
    weight = build.constant(build.integers("output", "weight_integer", bits, "int8"), "output/weight", bits)
    total = build.add("IntegerConv", (x.name, weight), "output/sum", kernel_shape=[1, 1])
    return Operand(build.add("Flatten", (total,), "logits"), x.scale)


def _unit(build: Builder, x: Operand, name: str, stride: int) -> Operand:
    """A linear bottleneck."""
    codes = build.act(x, f"{name}.quant_act")
    entry = "conv1" if build.has(f"{name}.conv1") else "conv2"
    channels = build.stored(f"{name}.{entry}", "weight_integer").shape[1 if entry == "conv1" else 0]
    if entry == "conv1":
        codes = _conv6(build, codes, f"{name}.conv1", f"{name}.quant_act1")
    codes = _conv6(build, codes, f"{name}.conv2", f"{name}.quant_act2", stride)
    total = build.conv(codes, f"{name}.conv3", 1)
    join = f"{name}.quant_act_int32"
    if stride != 1 or build.stored(f"{name}.conv3", "weight_integer").shape[0] != channels:
        return build.act(total, join)
    scale = build.scale(join, "act_scaling_factor")
    sides = [
        build.rescale(side, scale, f"{name}/{key}", **FULL).name for key, side in (("body", total), ("identity", x))
    ]
    return Operand(build.add("IntegerAdd", sides, f"{name}/sum"), scale)


def _conv6(build: Builder, x: Operand, module: str, act: str, stride: int = 1) -> Operand:
    """A convolution, ReLU6, and the quantization behind it."""
    total = build.conv(x, module, stride)
    weight = build.scale(module, "convbn_scaling_factor").astype(np.float32)
    ceil = np.rint(np.float32(6) / x.scale.astype(np.float32) / weight).astype(np.int64)
    ceil = np.broadcast_to(ceil, (build.stored(module, "weight_integer").shape[0],))
    m, e = dyadics(quotient(total.scale, float(build.scale(act, "act_scaling_factor")[0]), hawq=True))
    limits = np.unique(np.minimum(half_even(ceil * m.astype(np.int64), e.astype(np.int64)), 32767))
    if limits.size == 1:
        return build.act(total, act, relu=True, most=int(limits[0]))
    ceiling = build.constant(ceil.astype(np.int32).reshape(1, -1, 1, 1), f"{module}/ceil")
    minus = build.constant(np.array([-1], np.int32), f"{module}/minus")
    left = build.add("IntegerMul", (total.name, minus), f"{module}/negative")
    left = build.add("Relu", (build.add("IntegerAdd", (left, ceiling), f"{module}/left"),), f"{module}/left_over")
    left = build.add("IntegerMul", (left, minus), f"{module}/taken")
    limited = build.add("IntegerAdd", (left, ceiling), f"{module}/limited")
    return build.act(Operand(limited, total.scale), act, relu=True)
