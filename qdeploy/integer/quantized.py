"""Quantize nodes of a source, as what they say: the scale of a value. QOperator nodes are read as the same.

QuantizeLinear      the value on a grid of the source           DequantizeLinear    nothing: codes with a scale
QLinear...          the float op between its codes and the grid of its result
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder
from qdeploy.integer.intervals import where
from qdeploy.integer.quantized_value import Grid, QuantizedValue, full_grid
from qdeploy.integer.weights import Coded
from qdeploy.ir.dtype import element_row
from qdeploy.ir.element import element_name
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array

TYPES = ("U8", "I8", "I16")
_SMALL = {"U4": "U8", "I4": "I8", "U2": "U8", "I2": "I8"}
"""Types of less than a byte, and the one that their codes are computed in."""


def source_grids(graph: Graph, array: Mapping[str, Array]) -> dict[str, Grid]:
    """The grid of every value that a QuantizeLinear node takes, where its scale is constant."""
    grids: dict[str, Grid] = {}
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and all(name in array for name in node.inputs[1:] if name):
            grids[node.inputs[0]] = _grid(node, array[node.inputs[1]], _optional(array, node.inputs[2:3]))
    return grids


def _optional(array: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    return array[names[0]] if names and names[0] else None


def _grid(node: Node, scale: Array, zero: Array | None) -> Grid:
    if scale.size != 1 or (zero is not None and zero.size != 1):
        raise UnsupportedError(
            "an activation with a scale per channel or block",
            where=where(node),
            found=list(scale.shape),
            allowed="one scale and one zero point",
        )
    name = str(node.attrs.get("output_dtype", "U8")) if zero is None else element_name(zero.dtype)
    point = 0 if zero is None else int(zero.reshape(()))
    number = float(scale.reshape(()))
    if not (number > 0 and np.isfinite(number)):
        raise UnsupportedError("a scale that is not positive", where=where(node), found=number)
    if name in _SMALL:
        return Grid(number, point, *element_row(name).limits, _SMALL[name])
    if name not in TYPES:
        raise UnsupportedError(
            "an activation of this type", where=where(node), found=name, allowed=", ".join((*TYPES, *_SMALL))
        )
    return full_grid(number, point, name)


def quantize(build: Builder, node: Node) -> None:
    """QuantizeLinear: onto the grid of the source."""
    name, output = node.inputs[0], node.outputs[0]
    if build.is_constant(name):
        raise UnsupportedError("a constant that is quantized while the network runs", where=where(node), found=name)
    grid = build.plan.source.get(name)
    if grid is None:
        raise UnsupportedError(
            "activation scales are computed while the network runs",
            where=where(node),
            found=", ".join(node.inputs[1:]),
            allowed="constant scales",
        )
    own = _grid(node, _constant(build, node, 1), _constant(build, node, 2) if node.inputs[2:3] else None)
    build.values[output] = build.requantize(build.value(name), own, name)


def dequantize(build: Builder, node: Node) -> None:
    """DequantizeLinear: codes with the scale of the source; of a constant, a weight."""
    name, output = node.inputs[0], node.outputs[0]
    scale = _constant(build, node, 1)
    zero = _constant(build, node, 2) if node.inputs[2:3] and node.inputs[2] else None
    if build.is_constant(name):
        build.note(output, _coded(build, node, scale, zero))
        return
    dtype = build.values[name].dtype if name in build.values else _input_type(build, name)
    grid = _grid(replace(node, attrs={"output_dtype": dtype}), scale, zero)
    x = build.values.get(name)
    if x is None:
        build.values[output] = QuantizedValue.on(grid, name)
    else:
        build.values[output] = QuantizedValue(x.name, np.array([grid.scale]), x.dtype, x.lo, x.hi, grid.zero)


def qlinear_layer(build: Builder, node: Node) -> None:
    """QLinearConv, QLinearMatMul and QGemm."""
    gemm, name = node.op == "QGemm", node.outputs[0]
    padded = (*node.inputs, *[""] * 9)[:9]
    y, bias = (padded[7:9], padded[6]) if gemm else (padded[6:8], padded[8])
    rows = node.op == "QLinearConv" or (gemm and node.attrs.get("transB", 0))
    x, w = _shown(build, node, padded[:3], f"{name}/x"), _shown(build, node, padded[3:6], f"{name}/w", 0 if rows else 1)
    inputs = (x, w, _shown_bias(build, node, bias, x, w, f"{name}/b")) if bias else (x, w)
    op = {"QLinearConv": "Conv", "QGemm": "Gemm"}.get(node.op, "MatMul")
    build.apply(Node(op, inputs, (f"{name}/y",), node.attrs, node.name))
    if y[0]:
        _quantized(build, node, y, f"{name}/y")
    else:
        build.values[name] = build.values[f"{name}/y"]


def _shown_bias(build: Builder, node: Node, bias: str, x: str, w: str, name: str) -> str:
    """An int32 bias at the scale of the products, under a name."""
    codes, weight = build.array(bias), build.coded(w)
    if codes is None or weight is None:
        raise UnsupportedError("a bias or weight that is not a constant", where=where(node), found=bias)
    scale = build.values[x].scale * weight.scale * float(node.attrs.get("alpha", 1.0))  # type: ignore[arg-type]
    build.note(name, Coded(codes.astype(np.int64), scale, 0))
    return name


def qlinear_binary(build: Builder, node: Node) -> None:
    """QLinearAdd and QLinearMul."""
    name = node.outputs[0]
    inputs = tuple(_shown(build, node, node.inputs[i : i + 3], f"{name}/{i}") for i in (0, 3))
    build.apply(Node("Add" if node.op == "QLinearAdd" else "Mul", inputs, (f"{name}/y",), {}, node.name))
    _quantized(build, node, (*node.inputs[6:8], "")[:2], f"{name}/y")


def qlinear_average(build: Builder, node: Node) -> None:
    """QLinearGlobalAveragePool."""
    if node.attrs.get("channels_last", 0):
        raise UnsupportedError("a pooling with channels last", where=where(node))
    name = node.outputs[0]
    x = _shown(build, node, node.inputs[:3], f"{name}/x")
    build.shapes[x] = build.shapes[node.inputs[0]]
    build.apply(Node("GlobalAveragePool", (x,), (f"{name}/y",), {}, node.name))
    _quantized(build, node, node.inputs[3:5], f"{name}/y")


def dynamic(build: Builder, node: Node) -> None:
    """What takes its scales from the data is refused."""
    raise UnsupportedError(
        "activation scales are computed while the network runs",
        where=where(node),
        found=node.op,
        todo="Give a float model and calibration data.",
    )


def _shown(build: Builder, node: Node, names: tuple[str, ...], name: str, axis: int = 0) -> str:
    """Codes with their scale and zero point, as a value under a name."""
    used = names if names[2:3] and names[2] else names[:2]
    dequantize(build, Node("DequantizeLinear", used, (name,), {"axis": axis}, node.name))
    return name


def _quantized(build: Builder, node: Node, names: tuple[str, ...], name: str) -> None:
    """The result on the grid of the source."""
    scale, zero = (_named(build, node, n) if n else None for n in names)
    source = build.values.get(node.inputs[0])
    kind = source.dtype if source is not None else "U8"
    if scale is None:
        raise UnsupportedError("a result without a scale", where=where(node))
    grid = _grid(replace(node, attrs={"output_dtype": kind}), scale, zero)
    build.values[node.outputs[0]] = build.requantize(build.value(name), grid, node.outputs[0])


def _coded(build: Builder, node: Node, scale: Array, zero: Array | None) -> Coded:
    codes = build.array(node.inputs[0])
    if codes is None:
        raise UnsupportedError("a weight that is quantized twice", where=where(node), found=node.inputs[0])
    if node.attrs.get("block_size", 0):
        raise UnsupportedError("a weight with scales per block", where=where(node), found=node.attrs["block_size"])
    declared: Any = node.attrs.get("axis", 1)
    axis = declared % max(codes.ndim, 1)
    wide = codes.astype(np.int64)
    if zero is not None:
        place = [-1 if zero.size > 1 and i == axis else 1 for i in range(wide.ndim)]
        wide = wide - zero.astype(np.int64).reshape(place)
    return Coded(wide, scale.astype(np.float64).reshape(-1), axis if scale.size > 1 else 0)


def _constant(build: Builder, node: Node, place: int) -> Array:
    return _named(build, node, node.inputs[place])


def _named(build: Builder, node: Node, name: str) -> Array:
    array = build.array(name)
    if array is None:
        raise UnsupportedError(
            "activation scales are computed while the network runs",
            where=where(node),
            found=name,
            allowed="constant scales and zero points",
        )
    return array


def _input_type(build: Builder, name: str) -> str:
    return next((value.dtype for value in build.graph.inputs if value.name == name), "U8")
