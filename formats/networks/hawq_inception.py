"""InceptionV3 of HAWQ's repository (utils/models/q_inceptionv3.py) as an integer graph.

convolution    sums, ReLU, quantize (q_convbn, q_activ)
unit           each branch quantizes the unit's input for itself; their results, of 16 bits, are brought to one scale
               each on its own, and joined
mean           of 3x3 with the zeros around the image counted, rounded down; quantize; a convolution of 1x1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdeploy.formats.networks.hawq_network import Builder, Operand

# A branch: one convolution, a mean, a maximum, or ("list", convolutions, whether the last one halves the image), or
# ("split", convolutions) with a 1x3 and a 3x1 behind them.
_MEAN, _MAX, _ONE = ("mean",), ("max",), ("one",)
_A = (_ONE, ("list", 2, False), ("list", 3, False), _MEAN)
_B = (_ONE, ("list", 3, False), ("list", 5, False), _MEAN)
_C = (_ONE, ("split", 1), ("split", 2), _MEAN)
_STAGES = (
    (_A, _A, _A),
    ((("list", 1, True), ("list", 3, True), _MAX), _B, _B, _B, _B),
    ((("list", 2, True), ("list", 4, True), _MAX), _C, _C),
)


def inception(build: Builder) -> Operand:
    """Returns the sums of the last layer."""
    name = "features.q_init_block"
    x = Operand("input", build.scale(f"{name}.q_input_activ", "act_scaling_factor"))
    for number, stride, padded in ((1, 2, False), (2, 1, False), (3, 1, True)):
        x = _conv(build, x, f"{name}.q_conv{number}", stride, padded)
    x = _conv(build, _max(build, x, f"{name}.q_pool1"), f"{name}.q_conv4")
    x = _max(build, _conv(build, x, f"{name}.q_conv5", 1, False), f"{name}.q_pool2")
    for i, units in enumerate(_STAGES, 1):
        for j, branches in enumerate(units, 1):
            unit = f"features.stage{i}.unit{j}"
            outputs = [_branch(build, x, f"{unit}.branches.branch{k}", how) for k, how in enumerate(branches, 1)]
            x = _joined(build, outputs, f"{unit}.q_rescaling_activ")
    mean = build.add("IntegerAveragePool", (x.name,), "mean", kernel_shape=[8, 8], strides=[1, 1], rounding="floor")
    x = build.act(Operand(mean, x.scale), "features.q_concat_activ")
    flat = Operand(build.add("Flatten", (x.name,), "flat"), x.scale)
    return build.layer(flat, "output.q_fc", "fc_scaling_factor")


def _conv(build: Builder, x: Operand, name: str, stride: int = 1, padded: bool = True) -> Operand:
    return build.act(build.conv(x, f"{name}.q_convbn", stride, padded), f"{name}.q_activ", relu=True)


def _max(build: Builder, x: Operand, name: str) -> Operand:
    return Operand(build.add("MaxPool", (x.name,), name, kernel_shape=[3, 3], strides=[2, 2]), x.scale)


def _joined(build: Builder, parts: Sequence[Operand], module: str) -> Operand:
    """Values of their own scales, joined at the scale of a module."""
    rescaled = [build.act(part, module, name=f"{module}/{i}") for i, part in enumerate(parts)]
    return Operand(build.add("Concat", [part.name for part in rescaled], module, axis=1), rescaled[0].scale)


def _branch(build: Builder, x: Operand, name: str, how: tuple[object, ...]) -> Operand:
    x = build.act(x, f"{name}.q_input_act")
    if how == _MAX:
        return _max(build, x, f"{name}.q_pool")
    if how == _ONE:
        return _conv(build, x, f"{name}.q_conv")
    if how == _MEAN:
        pads = build.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), f"{name}.q_pool/pads")
        padded = build.add("Pad", (x.name, pads), f"{name}.q_pool/padded")
        mean = build.add(
            "IntegerAveragePool", (padded,), f"{name}.q_pool", kernel_shape=[3, 3], strides=[1, 1], rounding="floor"
        )
        return _conv(build, build.act(Operand(mean, x.scale), f"{name}.q_pool_act"), f"{name}.q_conv")
    count, halves = int(str(how[1])), how[2:] == (True,)
    for i in range(1, count + 1):
        last = halves and i == count
        x = _conv(build, x, f"{name}.q_conv_list.q_conv{i}", 2 if last else 1, not last)
    if how[0] == "list":
        return x
    return _joined(
        build, [_conv(build, x, f"{name}.q_conv{kernel}") for kernel in ("1x3", "3x1")], f"{name}.q_rescaling_activ"
    )
