"""One builder per kind of step that accumulates or maps, each a TE computation of named blocks.

    feed     activations in the type that the target's inner product takes, padded
    nibbles  4-bit weights, one to the byte
    wunpack  weights in groups of as many input channels as the inner product takes
    conv     the sum of products (`acc` where no inner product is formed)
    rq       bias and chain: the step's output

The schedule (schedule.py) goes by these names. What no builder emits does not exist: a PrimFunc is one step, fused by
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdeploy.backends.tvm.arithmetic import Expr, apply, const
from qdeploy.backends.tvm.engine import te, tirx
from qdeploy.backends.tvm.program import Buffer
from qdeploy.backends.tvm.targets import LANES

Tensor = Any
Attrs = Mapping[str, Any]


def shape_of(tensor: Tensor) -> list[int]:
    """The shape of a tensor, as integers."""
    return [int(n) for n in tensor.shape]


def finished(acc: Callable[..., Expr], args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """The block `rq`: the chain over an int32 expression of the output's indices."""

    def element(*index: Expr) -> Expr:
        def read(place: int, axis: int) -> Expr:
            return args[place][index[axis] if int(args[place].shape[0]) > 1 else 0]

        value = apply(
            acc(*index),
            attrs["chain"],
            read,
            lambda place: broadcast(args[place], index).astype("int32"),
            lambda place, entry: args[place][entry],
        )
        return value.astype(out.dtype)

    return te.compute(out.shape, element, name="rq")


def broadcast(tensor: Tensor, index: tuple[Expr, ...]) -> Expr:
    """The element of a tensor for an index of what it is broadcast to."""
    shape = shape_of(tensor)
    last = index[len(index) - len(shape) :]
    return tensor[tuple(0 if n == 1 else i for n, i in zip(shape, last, strict=True))]


def elementwise(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """A chain alone."""
    return finished(lambda *index: broadcast(args[0], index).astype("int32"), args, attrs, out)


# ---- convolutions ----------------------------------------------------------------------------------------------------


def feed(x: Tensor, attrs: Attrs, positions: tuple[int, int], channels: int) -> tuple[Tensor, list[int]]:
    """The activations of a convolution, and its strides over them.

    Filters of one position with a stride read only what they need; what lies there as it is needed is not copied.
    """
    n, height, width, stored_channels = shape_of(x)
    (kh, kw), strides, (top, left) = attrs["kernel"], attrs["strides"], attrs["before"]
    dilations = attrs["dilations"]
    single = kh == kw == 1
    pace, steps = (strides, [1, 1]) if single else ([1, 1], strides)
    tall, broad = (
        (p - 1) * s + (k - 1) * d + 1 for p, s, k, d in zip(positions, steps, (kh, kw), dilations, strict=True)
    )
    last = [(tall - 1) * pace[0] - top, (broad - 1) * pace[1] - left]
    inside = top == left == 0 and last[0] < height and last[1] < width and channels <= stored_channels
    if inside and pace == [1, 1] and x.dtype == attrs["feed"] and not attrs["offset"]:
        return x, steps
    offset, fill, dtype = attrs["offset"], attrs["fill"], attrs["feed"]

    def element(b: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        row, column = i * pace[0] - top, j * pace[1] - left
        value = x[b, row, column, c]
        value = (value.astype("int32") + const(offset)).astype(dtype) if offset else value.astype(dtype)
        tests = [row >= 0] * bool(top) + [row < height] * (last[0] >= height)
        tests += (
            [column >= 0] * bool(left)
            + [column < width] * (last[1] >= width)
            + [c < stored_channels] * (channels > stored_channels)
        )
        return tirx.if_then_else(tirx.all(*tests), value, const(fill, dtype)) if tests else value

    return te.compute((n, tall, broad, channels), element, name="feed"), steps


def planes(x: Tensor, attrs: Attrs, positions: tuple[int, int], width: int) -> Tensor:
    """The activations of a convolution over an image [N, C, H, W], of which `width` of a row are read at once."""
    n, channels, height, image_width = shape_of(x)
    (down, right), (top, left), offset = attrs["strides"], attrs["before"], attrs["offset"]
    tall = (positions[0] - 1) * down + (attrs["kernel"][0] - 1) * attrs["dilations"][0] + 1
    broad = -(-((positions[1] - 1) * right + width) // LANES) * LANES

    def element(b: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        row, column = i - top, j - left
        value = (x[b, c, row, column].astype("int32") + const(offset)).astype(attrs["feed"])
        inside = tirx.all(row >= 0, row < height, column >= 0, column < image_width)
        return tirx.if_then_else(inside, value, const(attrs["fill"], attrs["feed"]))

    return te.compute((n, channels, tall, broad), element, name="feed")


def unpacked(w: Tensor, attrs: Attrs) -> Tensor:
    """Weights in groups of `group` input channels, in the type that the inner product takes."""
    blocks, kh, kw, quads = shape_of(w)[:4]
    if attrs["small"]:
        low, sign = const(15, "int8"), const(8, "int8")

        def nibble(o: Expr, a: Expr, b: Expr, k: Expr, lane: Expr, r: Expr) -> Expr:
            byte = w[o, a, b, k // 2, lane, r]
            return tirx.if_then_else(k % 2 == 0, ((byte & low) ^ sign) - sign, byte >> const(4, "int8"))

        quads *= 2
        w = te.compute((blocks, kh, kw, quads, LANES, 4), nibble, name="nibbles")
    group = attrs["group"]
    if group == 4:
        return w
    each = 4 // group
    return te.compute(
        (blocks, kh, kw, quads * each, LANES, group),
        lambda o, a, b, k, lane, r: w[o, a, b, k // each, lane, (k % each) * group + r].astype("int16"),
        name="wunpack",
    )


def conv(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """A convolution over blocks of 16 output channels; positions of a row are padded to whole tiles.

    Where the image lies in planes, channels are what `kw` counts, and `k` the places of a row.
    """
    x, weight, bias = args[:3]
    w = unpacked(weight, attrs)
    n, height, _, o = out.shape
    (down, right), group, groups = attrs["dilations"], attrs["group"], attrs["groups"]
    _, kh, kw, inner = shape_of(w)[:4]
    inner *= group
    a, b = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    k = te.reduce_axis((0, inner), "k")
    per_group = attrs["filters"] // groups
    if attrs["planar"]:
        x, (tall, broad) = planes(x, attrs, (height, attrs["row"]), inner), attrs["strides"]
    else:
        x, (tall, broad) = feed(x, attrs, (height, attrs["row"]), inner * groups)

    def read(m: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        if attrs["planar"]:
            return x[m, b, i * tall + a * down, j * broad + k]
        first = (c // LANES * LANES // per_group) * inner if groups > 1 else 0
        return x[m, i * tall + a * down, j * broad + b * right, first + k]

    def product(m: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        value = read(m, i, j, c)
        factor = w[c // LANES, a, b, k // group, c % LANES, k % group]
        return te.sum(value.astype("int32") * factor.astype("int32"), axis=[a, b, k])

    acc = te.compute((n, height, attrs["row"], o), product, name="conv")
    return finished(lambda *i: acc[i] + bias[i[3]], args, attrs, out)


def depthwise(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Filters over one input channel each, or over few of a group: lanes are output channels."""
    x, w, bias = args[:3]
    n, height, width, o = out.shape
    kh, kw, inner, _ = shape_of(w)
    groups, filters, (down, right) = attrs["groups"], attrs["filters"], attrs["dilations"]
    per_group = filters // groups
    x, (tall, broad) = feed(x, attrs, (height, width), o if per_group == inner == 1 else attrs["width"])
    a, b = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    k = te.reduce_axis((0, inner), "k")

    def product(m: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        channel = c if per_group == inner == 1 else tirx.min(c, filters - 1) // per_group * inner + k
        value = x[m, i * tall + a * down, j * broad + b * right, channel]
        return te.sum(value.astype("int32") * w[a, b, k, c].astype("int32"), axis=[a, b, k])

    acc = te.compute((n, height, width, o), product, name="acc")
    return finished(lambda *i: acc[i] + bias[i[3]], args, attrs, out)


def mat_mul(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """The product of two activations over their last two axes."""
    a, b = args[:2]
    k = te.reduce_axis((0, shape_of(a)[-1]), "k")

    def product(*index: Expr) -> Expr:
        *outer, i, j = index
        left = broadcast(a, (*outer, i, k)).astype("int32") - const(attrs["a_zero"])
        place = (*outer, j, k) if attrs["transpose_b"] else (*outer, k, j)
        return te.sum(left * (broadcast(b, place).astype("int32") - const(attrs["b_zero"])), axis=[k])

    acc = te.compute(out.shape, product, name="acc")
    return finished(lambda *i: acc[i], args, attrs, out)
