"""Planning of what accumulates: convolutions, linear layers and products of activations."""

from __future__ import annotations

import math

import numpy as np

from qdeploy.backends.tvm.packing import QUAD, as_int8, fold, is_small, pack, pack_depthwise, padded
from qdeploy.backends.tvm.planner import Open, Place, Planner, Shape, blocks_of, integer, integers
from qdeploy.backends.tvm.targets import LANES, PORTABLE, Kernel
from qdeploy.backends.tvm.winograd_fit import form
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.conv import borders
from qdeploy.ir.tensor import Array

_READ = 0.4
EIGHT_BITS = ("uint8", "int8")


def plan_conv(planner: Planner, node: Node) -> None:
    """IntegerConv, grouped and depthwise too; over one axis, of an image of one row."""
    last = node.attrs.get("layout", "NCHW") == "NCHW"
    weight, bias = _parameters(planner, node)
    if weight.ndim not in (3, 4):
        raise UnsupportedError(
            "the TVM backend takes convolutions over one or two axes", where=node.name, found=f"{weight.ndim - 2} axes"
        )
    filters = np.moveaxis(weight, 1, -1) if last else weight  # [O, *kernel, I]
    shape = planner.shapes[node.outputs[0]]
    place = Place("", shape, last)
    n, *positions, o = place.stored
    kernel = filters.shape[1:-1]
    row = [1] * (2 - len(kernel))
    strides, dilations = (integers(node, name) or [1] * len(kernel) for name in ("strides", "dilations"))
    planar = _planar(planner, node.inputs[0], filters, last) and dilations[-1] == 1 and integer(node, "group", 1) == 1
    if planar:
        x = planner.plain(node.inputs[0])
    else:
        x = planner.channels_last(node.inputs[0]) if last else planner.place(node.inputs[0])
    space = x.shape[2:] if last else x.stored[1:-1]
    border = borders(
        space,
        kernel,
        strides,
        dilations,
        str(node.attrs.get("auto_pad", "NOTSET")),
        node.attrs.get("pads"),  # type: ignore[arg-type]
    )
    attrs = {
        "kernel": [*row, *kernel],
        "strides": row + strides,
        "dilations": row + dilations,
        "before": [0] * len(row) + [b for b, _ in border],
        "positions": row + positions,
        "groups": integer(node, "group", 1),
        "planar": planar,
    }
    filters = filters.reshape(len(filters), *row, *filters.shape[1:])  # [O, kh, kw, I]
    if planar:
        image = planner.view(x.buffer, (n, filters.shape[3], *row, *space))
        filters = filters.swapaxes(2, 3)  # [O, kh, I, kw]
    else:
        image = planner.view(x.buffer, (n, *row, *planner.operand(x).shape[1:]))
    step = _opened(planner, image, filters, bias, integer(node, "x_zero"), attrs, (n, *row, *positions, blocks_of(o)))
    step.place, step.final = place, (n, *positions, blocks_of(o))
    planner.set(node.outputs[0], step)


def _planar(planner: Planner, name: str, filters: Array, last: bool) -> bool:
    """Whether a row of a filter in one channel is what is multiplied at once, as in images of few channels.

    It is where that takes no more products than all channels of one place do, and the image lies in planes already.
    """
    channels, width, quad = filters.shape[-1], filters.shape[-2], 2 * QUAD if is_small(filters) else QUAD
    lies = not planner.place(name).last if last else channels == 1
    return lies and channels * padded(width, quad) <= width * padded(channels, quad)


def plan_linear(planner: Planner, node: Node) -> None:
    """IntegerLinear, as a convolution of one row of positions."""
    weight, bias = _parameters(planner, node)
    x = planner.place(node.inputs[0])
    x = planner.plain(node.inputs[0]) if x.last else x
    *outer, stored = planner.operand(x).shape
    rows = math.prod(outer)
    flat = planner.view(x.buffer, (1, 1, rows, stored))
    attrs = {
        "kernel": [1, 1],
        "strides": [1, 1],
        "dilations": [1, 1],
        "before": [0, 0],
        "positions": [1, rows],
        "groups": 1,
        "planar": False,
    }
    out = blocks_of(len(weight))
    step = _opened(planner, flat, weight[:, None, None], bias, integer(node, "x_zero"), attrs, (1, 1, rows, out))
    step.place, step.final = Place("", planner.shapes[node.outputs[0]]), (*outer, out)
    planner.set(node.outputs[0], step)


def plan_mat_mul(planner: Planner, node: Node) -> None:
    """IntegerMatMul of two values: [..., M, K] and [..., K, N], or [..., N, K] with transpose_b."""
    a, b = (planner.plain(name) for name in node.inputs)
    shape = planner.shapes[node.outputs[0]]
    attrs = {name: integer(node, name) for name in ("a_zero", "b_zero", "transpose_b")}
    place = Place("", shape)
    planner.set(node.outputs[0], Open("mat_mul", [a.buffer, b.buffer], attrs, shape, place, shape, "int32"))


def _parameters(planner: Planner, node: Node) -> tuple[Array, Array | None]:
    weight = planner.constant(node.inputs[1])
    if weight is None:
        raise UnsupportedError(
            "weights that the network computes",
            where=node.name or node.outputs[0],
            todo="A product of two activations is IntegerMatMul.",
        )
    return weight, planner.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None


def _opened(
    planner: Planner, x: str, filters: Array, bias: Array | None, zero: int, attrs: dict[str, object], shape: Shape
) -> Open:
    """The open step of a convolution in the form that its groups allow."""
    groups, inner = int(attrs["groups"]), filters.shape[3]  # type: ignore[call-overload]
    image = planner.program.operand(x)
    per_group = len(filters) // groups
    quad = 2 * QUAD if is_small(filters) else QUAD
    blocked = groups == 1 or (per_group % LANES == 0 and inner % quad == 0)
    kernel = _kernel(planner.kernel, image.dtype, zero) if blocked else PORTABLE
    offset = kernel.offset[image.dtype == "int8"] if kernel.feed in EIGHT_BITS else -zero
    fill = zero + offset
    kind = "conv" if blocked else "depthwise" if inner == 1 else "grouped"
    if blocked:
        weight = pack(filters, image.shape[3] if groups == 1 and not attrs["planar"] else 0)
    else:
        weight = pack_depthwise(filters, padded(len(filters), LANES))
    inputs = [x, planner.data(weight), planner.data(fold(bias, as_int8(filters), fill))]
    attrs |= {
        "offset": offset,
        "fill": fill,
        "feed": kernel.feed,
        "group": kernel.group,
        "intrinsic": kernel.intrinsic,
        **_tiles(kernel, shape),
        "small": blocked and is_small(filters),
        "filters": len(filters),
        "width": inner * groups,
        "winograd": None,
    }
    if blocked and kernel.filtering and _plain(attrs) and image.dtype in EIGHT_BITS:
        limits = np.iinfo(image.dtype)
        attrs["winograd"] = form(
            _widened(filters, image.shape[3]), shape, (limits.min + offset, limits.max + offset), kernel.positions
        )
    return Open(kind, inputs, attrs, shape, Place("", ()), (), "int32")


def _plain(attrs: dict[str, object]) -> bool:
    """Whether a convolution is one that minimal filtering takes."""
    facts = [attrs[name] for name in ("kernel", "strides", "dilations", "groups", "planar")]
    return facts == [[3, 3], [1, 1], [1, 1], 1, False]


def _widened(filters: Array, channels: int) -> Array:
    """Filters with as many input channels as their packed form."""
    inner = filters.shape[3]
    return np.pad(as_int8(filters), [(0, 0)] * 3 + [(0, max(0, channels - inner))])


def _tiles(kernel: Kernel, shape: Shape) -> dict[str, int]:
    """Output positions of a tile, their row padded to whole tiles, and blocks of channels of a tile.

    A tile reads every weight once, which costs as much as _READ of a position.
    """
    width, blocks = shape[2], shape[3] // LANES
    tile = min(range(1, kernel.positions + 1), key=lambda n: padded(width, n) * (1 + _READ / n))
    return {"tile": tile, "row": padded(width, tile), "blocks": kernel.blocks if blocks % kernel.blocks == 0 else 1}


def _kernel(kernel: Kernel, dtype: str, zero: int) -> Kernel:
    """The target's inner product, where it takes these activations; else one of wider numbers."""
    if dtype in EIGHT_BITS or (dtype == "int16" and zero == 0 and kernel.feed == "int16"):
        return kernel
    return Kernel("", "int16" if dtype == "int16" and zero == 0 else "int32", 1, PORTABLE.positions)
