"""Operators of OpenVINO, one function each (docs.openvino.ai, operation sets 1 to 15)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.formats.openvino.document import Layer
from qdeploy.formats.openvino.graph import Network

Importer = Callable[[Network, Layer], None]


def _same(op: str, **attrs: Any) -> Importer:
    """An operator that ONNX has, too, over the same inputs."""

    def importer(net: Network, layer: Layer) -> None:
        if layer.data.get("auto_broadcast", "numpy") not in ("numpy", "none"):
            raise UnsupportedError(
                "this way to broadcast is not read", where=net.where(layer), found=layer.data["auto_broadcast"]
            )
        net.add(layer, op, net.inputs(layer), **attrs)

    return importer


def _convert(net: Network, layer: Layer) -> None:
    target = {"f": "F32", "b": "BOOL" if layer.data["destination_type"] == "boolean" else "F32"}.get(
        layer.data["destination_type"][0], "I64"
    )
    if net.element(layer.inputs[0]) == target:
        net.alias(layer, layer.inputs[0])
    else:
        net.add(layer, "Cast", net.inputs(layer), to=target)


def _matmul(net: Network, layer: Layer) -> None:
    x, weight = net.inputs(layer)
    transposed = [layer.data.get(f"transpose_{side}", "false").lower() in ("true", "1") for side in "ab"]
    if transposed[0]:
        x = _swapped(net, layer, 0, x)
    if transposed[1] and layer.inputs[1] in net.weights.names and net.rank(layer.inputs[1]) == 2:
        net.add(layer, "Linear", [x, weight])
        return
    net.add(layer, "MatMul", [x, _swapped(net, layer, 1, weight) if transposed[1] else weight])


def _swapped(net: Network, layer: Layer, place: int, name: str) -> str:
    """A value with its last two axes exchanged."""
    rank = net.rank(layer.inputs[place])
    perm = [*range(rank - 2), rank - 1, rank - 2]
    return net.add(layer, "Transpose", [name], net.fresh(layer, f"turned{place}"), perm=perm)


def _reshape(net: Network, layer: Layer) -> None:
    copies_zeros = layer.data.get("special_zero", "false").lower() in ("true", "1")
    attrs: dict[str, Any] = {} if copies_zeros else {"allowzero": 1}
    if net.is_constant(layer.inputs[1]):
        shape = net.static(layer, 1)
        net.add(layer, "Reshape", net.inputs(layer)[:1], shape=shape, **(attrs if 0 in shape else {}))
    else:
        net.add(layer, "Reshape", net.inputs(layer), **attrs)


def _transpose(net: Network, layer: Layer) -> None:
    order = net.static(layer, 1) or list(reversed(range(net.rank(layer.inputs[0]))))
    net.add(layer, "Transpose", net.inputs(layer)[:1], perm=order)


def _slice(net: Network, layer: Layer) -> None:
    data, starts, ends, steps, *axes = net.inputs(layer)
    places = range(1, len(layer.inputs))
    if all(net.is_constant(layer.inputs[place]) for place in places):
        start, end, step = (net.static(layer, place) for place in (1, 2, 3))
        along = net.static(layer, 4) if axes else list(range(len(start)))
        net.add(layer, "Slice", [data], starts=start, ends=end, axes=along, steps=step)
    else:
        along_name = axes[0] if axes else _counting(net, layer)
        net.add(layer, "Slice", [data, starts, ends, along_name, steps])


def _counting(net: Network, layer: Layer) -> str:
    count = net.shape(layer.inputs[1])[0]
    return net.array(net.fresh(layer, "axes"), np.arange(count, dtype=np.int64), "I64")


def _concat(net: Network, layer: Layer) -> None:
    net.add(layer, "Concat", net.inputs(layer), axis=int(layer.data["axis"]))


def _softmax(net: Network, layer: Layer) -> None:
    net.add(layer, "Softmax", net.inputs(layer), axis=int(layer.data.get("axis", "1")))


def _gather(net: Network, layer: Layer) -> None:
    batch = int(layer.data.get("batch_dims", "0"))
    if batch:
        raise UnsupportedError(
            "a look-up within batches is not read", where=net.where(layer), found=f"batch_dims {batch}", allowed="0"
        )
    net.add(layer, "Gather", net.inputs(layer)[:2], axis=net.integers(layer, 2))


def _broadcast(net: Network, layer: Layer) -> None:
    mode = layer.data.get("mode", "numpy")
    if mode not in ("numpy", "bidirectional"):
        raise UnsupportedError("this way to broadcast is not read", where=net.where(layer), found=mode)
    net.add(layer, "Expand", net.inputs(layer)[:2])


def _reducer(op: str) -> Importer:
    def importer(net: Network, layer: Layer) -> None:
        keep = int(layer.data.get("keep_dims", "false").lower() in ("true", "1"))
        net.add(layer, op, net.inputs(layer)[:1], axes=net.static(layer, 1), keepdims=keep)

    return importer


def _axes(op: str) -> Importer:
    """Squeeze and Unsqueeze."""

    def importer(net: Network, layer: Layer) -> None:
        attrs: dict[str, Any] = {"axes": net.static(layer, 1)} if len(layer.inputs) > 1 else {}
        net.add(layer, op, net.inputs(layer)[:1], **attrs)

    return importer


def _swish(net: Network, layer: Layer) -> None:
    x, *beta = net.inputs(layer)
    inner = net.add(layer, "Mul", [x, beta[0]], net.fresh(layer, "scaled")) if beta else x
    net.add(layer, "Mul", [x, net.add(layer, "Sigmoid", [inner], net.fresh(layer, "gate"))])


def _gelu(net: Network, layer: Layer) -> None:
    mode = layer.data.get("approximation_mode", "ERF").upper()
    net.add(layer, "Gelu", net.inputs(layer)[:1], approximate="tanh" if mode == "TANH" else "none")


def _clamp(net: Network, layer: Layer) -> None:
    net.add(layer, "Clip", net.inputs(layer), min=float(layer.data["min"]), max=float(layer.data["max"]))


def _hswish(net: Network, layer: Layer) -> None:
    net.add(layer, "HardSwish", net.inputs(layer))


def _split(net: Network, layer: Layer) -> None:
    axis = net.integers(layer, 1)
    ports = sorted(layer.outputs)
    sizes = net.static(layer, 2) if layer.kind == "VariadicSplit" else []
    begin = 0
    extent = net.shape(layer.inputs[0])[axis]
    for place, port in enumerate(ports):
        size = sizes[place] if sizes else extent // int(layer.data["num_splits"])
        size = extent - sum(n for n in sizes if n >= 0) if size == -1 else size
        window = {"starts": [begin], "ends": [begin + size], "axes": [axis]}
        net.add(layer, "Slice", net.inputs(layer)[:1], net.name((layer.number, port)), **window)
        begin += size


def _power(net: Network, layer: Layer) -> None:
    """A square is a product: exact, where powers in general are not."""
    x, exponent = net.inputs(layer)
    constant = net.constants.get(layer.inputs[1][0])
    squared = constant is not None and constant.stored.count == 1 and float(constant.stored.array().reshape(-1)[0]) == 2
    net.add(layer, "Mul" if squared else "Pow", [x, x] if squared else [x, exponent])


OPERATORS: dict[str, Importer] = {
    "Abs": _same("Abs"),
    "Add": _same("Add"),
    "Broadcast": _broadcast,
    "Ceiling": _same("Ceil"),
    "Clamp": _clamp,
    "Concat": _concat,
    "Convert": _convert,
    "Cos": _same("Cos"),
    "Divide": _same("Div"),
    "Elu": _same("Elu"),
    "Equal": _same("Equal"),
    "Erf": _same("Erf"),
    "Exp": _same("Exp"),
    "Floor": _same("Floor"),
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": _same("Greater"),
    "GreaterEqual": _same("GreaterOrEqual"),
    "HSwish": _hswish,
    "Less": _same("Less"),
    "LessEqual": _same("LessOrEqual"),
    "Log": _same("Log"),
    "LogicalAnd": _same("And"),
    "LogicalNot": _same("Not"),
    "LogicalOr": _same("Or"),
    "MatMul": _matmul,
    "Maximum": _same("Max"),
    "Minimum": _same("Min"),
    "Multiply": _same("Mul"),
    "Negative": _same("Neg"),
    "Power": _power,
    "Range": _same("Range"),
    "ReduceMax": _reducer("ReduceMax"),
    "ReduceMean": _reducer("ReduceMean"),
    "ReduceMin": _reducer("ReduceMin"),
    "ReduceSum": _reducer("ReduceSum"),
    "ReLU": _same("Relu"),
    "Reshape": _reshape,
    "Select": _same("Where"),
    "ShapeOf": _same("Shape"),
    "Sigmoid": _same("Sigmoid"),
    "Sign": _same("Sign"),
    "Sin": _same("Sin"),
    "Slice": _slice,
    "SoftMax": _softmax,
    "SoftPlus": _same("Softplus"),
    "Split": _split,
    "Sqrt": _same("Sqrt"),
    "Squeeze": _axes("Squeeze"),
    "Subtract": _same("Sub"),
    "Swish": _swish,
    "Tanh": _same("Tanh"),
    "Tile": _same("Tile"),
    "Transpose": _transpose,
    "Unsqueeze": _axes("Unsqueeze"),
    "VariadicSplit": _split,
}
"""By the type of the layer."""
