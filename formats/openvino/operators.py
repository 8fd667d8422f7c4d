"""Operators of OpenVINO, one function each (docs.openvino.ai, operation sets 1 to 15)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.formats.openvino.constants import FLOATS
from qdeploy.formats.openvino.document import Layer
from qdeploy.formats.openvino.graph import ELEMENTS, Network

Importer = Callable[[Network, Layer], None]

_WIDE = ("i32", "i64")
"""Integers that everything may become: values are int64 here, and do not wrap around as narrower ones would."""


def _same(op: str, **attrs: Any) -> Importer:
    """An operator that ONNX has, too, over the same inputs."""

    def importer(net: Network, layer: Layer) -> None:
        _refuse_broadcast(net, layer)
        net.add(layer, op, net.inputs(layer), **attrs)

    return importer


def _refuse_broadcast(net: Network, layer: Layer) -> None:
    way = layer.data.get("auto_broadcast", "numpy").lower()
    if way not in ("numpy", "none"):
        raise UnsupportedError("this way to broadcast is not read", where=net.where(layer), found=way)


def _convert(net: Network, layer: Layer) -> None:
    kind = layer.data["destination_type"]
    if kind not in ELEMENTS or (kind[0] in "iu" and kind not in _WIDE and not net.holds(layer.inputs[0], kind)):
        raise UnsupportedError(
            "a conversion to numbers that may not hold the values",
            where=net.where(layer),
            found=kind,
            allowed=", ".join(("boolean", *FLOATS, *_WIDE)),
        )
    target = ELEMENTS[kind]
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


def _elu(net: Network, layer: Layer) -> None:
    net.add(layer, "Elu", net.inputs(layer), alpha=float(layer.data["alpha"]))


def _divide(net: Network, layer: Layer) -> None:
    """Integers are rounded down, as Python does, unless the layer says otherwise: (a - a mod b) / b is exact."""
    _refuse_broadcast(net, layer)
    down = layer.data.get("m_pythondiv", "true").lower() in ("true", "1")
    a, b = net.inputs(layer)
    if down and net.element(layer.result) == "I64":
        rest = net.add(layer, "Mod", [a, b], net.fresh(layer, "rest"))
        a = net.add(layer, "Sub", [a, rest], net.fresh(layer, "multiple"))
    net.add(layer, "Div", [a, b])


def _gelu(net: Network, layer: Layer) -> None:
    mode = layer.data.get("approximation_mode", "ERF").upper()
    net.add(layer, "Gelu", net.inputs(layer)[:1], approximate="tanh" if mode == "TANH" else "none")


def _clamp(net: Network, layer: Layer) -> None:
    low, high = float(layer.data["min"]), float(layer.data["max"])
    if not low <= high:
        raise ValueError(f"limits {low} and {high}")
    net.add(layer, "Clip", net.inputs(layer), min=low, max=high)


def _hswish(net: Network, layer: Layer) -> None:
    net.add(layer, "HardSwish", net.inputs(layer))


def _split(net: Network, layer: Layer) -> None:
    """Split and VariadicSplit: a slice for each part."""
    axis, ports = net.integers(layer, 1), sorted(layer.outputs)
    extent = net.shape(layer.inputs[0])[axis]
    if layer.kind == "VariadicSplit":
        sizes = net.static(layer, 2)
    else:
        count = int(layer.data["num_splits"])
        sizes = [extent // count if extent % count == 0 else 0] * count
    rest = extent - sum(n for n in sizes if n >= 0)
    sizes = [rest if n == -1 else n for n in sizes]
    if extent < 0 or min(sizes) < 0 or sum(sizes) != extent or len(sizes) != len(ports):
        raise UnsupportedError(
            "parts that are not known to make up the whole",
            where=net.where(layer),
            found=f"{len(ports)} parts of {'a free axis' if extent < 0 else extent}: {sizes}",
            allowed="an axis of a fixed extent",
        )
    begin = 0
    for size, port in zip(sizes, ports, strict=True):
        window = {"starts": [begin], "ends": [begin + size], "axes": [axis]}
        net.add(layer, "Slice", net.inputs(layer)[:1], net.name((layer.number, port)), **window)
        begin += size


def _power(net: Network, layer: Layer) -> None:
    """A square is a product: exact, where powers in general are not."""
    x, exponent = net.inputs(layer)
    _refuse_broadcast(net, layer)
    constant = net.constants.get(layer.inputs[1][0])
    single = constant is not None and constant.stored.count == 1
    small = single and len(net.shape(layer.inputs[1])) <= net.rank(layer.inputs[0])  # else the result has more axes
    squared = constant is not None and small and float(constant.stored.array().reshape(-1)[0]) == 2
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
    "Divide": _divide,
    "Elu": _elu,
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
