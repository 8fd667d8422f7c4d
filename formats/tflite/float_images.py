"""Operators of float TFLite networks that change the extent of images.

TRANSPOSE_CONV gives the image that a convolution of the same window would have made its input from, so its padding is
that of this convolution; its filters are [M, h, w, C]. MediaPipe's Convolution2DTransposeBias is the same with other
operands, whose options are two or more int32: padding (1 same, 2 valid), stride along the width, along the height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.float_network import FloatImporter, FloatNetwork
from qdeploy.formats.tflite.schema import Operator

_SAME, _VALID = 0, 1
_CUSTOM_PADDING = {1: _SAME, 2: _VALID}
"""TfLitePadding, which counts from 1 -> Padding of the schema."""


def _resized(mode: str) -> FloatImporter:
    """RESIZE_*: corners meet corners, centres meet centres, or indices are scaled as they are."""

    def add(network: FloatNetwork, op: Operator) -> None:
        corners, centres = (bool(op.options.get(key)) for key in ("AlignCorners", "HalfPixelCenters"))
        if corners and centres:
            raise UnsupportedError("corners and centres aligned at once", where=network.where(op.outputs[0]))
        extents = network.shape(op.outputs[0])[1:3]
        n, _, _, channels = network.shape(op.inputs[0])
        if network.listed(op.inputs[1]) != list(extents):
            raise BadFileError("a result of another extent", where=network.where(op.outputs[0]), found=extents)
        way = "align_corners" if corners else "half_pixel" if centres else "asymmetric"
        attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": way}
        if mode == "nearest":
            attrs["nearest_mode"] = "round_prefer_ceil" if corners or centres else "floor"
        scales = np.array(
            [1, 1, *(a / b for a, b in zip(extents, network.shape(op.inputs[0])[1:3], strict=True))], np.float32
        )
        exact = [
            int(np.floor(np.float32(b) * s)) for b, s in zip(network.shape(op.inputs[0])[1:3], scales[2:], strict=True)
        ]
        if exact == list(extents):
            sizes = ["", network.floats(scales, f"{network.names[op.outputs[0]]}/scales")]
        else:  # extents that no float32 factor gives: all four are fixed
            fixed = np.array([n, channels, *extents], np.int64)
            sizes = ["", "", network.constant(fixed, f"{network.names[op.outputs[0]]}/sizes")]
        network.give(op, "Resize", (network.first(op.inputs[0]), *sizes), True, **attrs)

    return add


def _transpose_conv(network: FloatNetwork, op: Operator) -> None:
    """TRANSPOSE_CONV: extents, filters, image, bias."""
    o = op.options
    _transposed(network, op, op.inputs[2], op.inputs[1], op.inputs[3:4], (o["StrideH"], o["StrideW"]))


def _transpose_conv_bias(network: FloatNetwork, op: Operator) -> None:
    """Convolution2DTransposeBias: image, filters, bias."""
    numbers = np.frombuffer(op.custom[: len(op.custom) // 4 * 4], "<i4").tolist()
    if len(numbers) < 3 or numbers[0] not in _CUSTOM_PADDING or any(numbers[3:]):
        raise UnsupportedError("options that are not read", where=network.where(op.outputs[0]), found=numbers)
    padding, width, height = numbers[:3]
    image, filters = network.shape(op.inputs[0]), network.shape(op.inputs[1])
    same = _CUSTOM_PADDING[padding] == _SAME
    extents = [
        n * s if same else n * s + k - s for n, s, k in zip(image[1:3], (height, width), filters[1:3], strict=True)
    ]
    if list(network.shape(op.outputs[0])[1:3]) != extents:
        raise BadFileError("a result of another extent", where=network.where(op.outputs[0]), found=extents)
    _transposed(network, op, op.inputs[0], op.inputs[1], op.inputs[2:3], (height, width))


def _transposed(
    network: FloatNetwork, op: Operator, image: int, weight: int, bias: Sequence[int], strides: Sequence[int]
) -> None:
    filters, space = network.shape(weight), network.shape(image)
    extents = network.shape(op.outputs[0])[1:3]
    if len(filters) != 4 or filters[3] != space[3] or min(strides) < 1:
        raise BadFileError("filters that do not fit their image", where=network.where(weight), found=filters)
    low, high, more = [], [], []
    for n, k, step, after in zip(space[1:3], filters[1:3], strides, extents, strict=True):
        total = max(0, (n - 1) * step + k - after)
        low.append(total // 2)
        high.append(total - total // 2)
        more.append(after - ((n - 1) * step + k - total))
    if any(not 0 <= extra < step for extra, step in zip(more, strides, strict=True)):
        raise BadFileError("a result of an extent that cannot be", where=network.where(op.outputs[0]), found=extents)
    attrs: dict[str, Any] = {"kernel_shape": list(filters[1:3]), "strides": list(strides), "pads": [*low, *high]}
    attrs |= {"output_padding": more} if any(more) else {}
    inputs = [network.first(image), network.transposed(weight, [3, 0, 1, 2])]  # [M, h, w, C] -> [C, M, h, w]
    inputs += [network.last(i) for i in bias if i >= 0]
    network.give(op, "ConvTranspose", inputs, True, **attrs)


def _blocks(row: str) -> FloatImporter:
    def add(network: FloatNetwork, op: Operator) -> None:
        network.give(op, row, (network.first(op.inputs[0]),), True, blocksize=int(op.options["BlockSize"]))

    return add


IMAGES: dict[str, FloatImporter] = {
    "RESIZE_BILINEAR": _resized("linear"),
    "RESIZE_NEAREST_NEIGHBOR": _resized("nearest"),
    "TRANSPOSE_CONV": _transpose_conv,
    "CUSTOM Convolution2DTransposeBias": _transpose_conv_bias,
    "DEPTH_TO_SPACE": _blocks("DepthToSpace"),
    "SPACE_TO_DEPTH": _blocks("SpaceToDepth"),
}
"""What operators over images become."""
