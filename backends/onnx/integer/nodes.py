"""Rows of integer graphs as exact ONNX operators.

Products are of unsigned codes on both sides (weights raised by 128, with that as their zero point): on x86 processors
without VNNI, ONNX Runtime adds other pairs up in saturating 16 bits, or, in ConvInteger, without a fast kernel. What
has 16 bits is multiplied as two bytes: x + 2^15 = 256 high + low, where `high` has the zero point 128.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.backends.onnx.integer import shifts
from qdeploy.backends.onnx.integer.functions import FUNCTIONS
from qdeploy.backends.onnx.integer.lowering import RAISE, IntegerLowering
from qdeploy.backends.onnx.integer.tflite import tflite_softmax
from qdeploy.backends.onnx.integer.windows import average_pool, reduced
from qdeploy.backends.onnx.nodes import emit
from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array

Emitter = Callable[[IntegerLowering, Node], None]
CONV = ("strides", "pads", "dilations", "group", "auto_pad", "kernel_shape")
_WORD = 1 << 15


def emit_strict(low: IntegerLowering, node: Node) -> None:
    """Lowers one node; raises UnsupportedError for an op that has no row."""
    rule = ROWS.get(node.op)
    if rule is None:
        raise low.refuse(node, "this op of an integer network has no form in ONNX", node.op)
    rule(low, node)


# ---- products


def conv_attrs(node: Node) -> dict[str, Any]:
    """What a convolution of ONNX takes."""
    return {key: node.attrs[key] for key in CONV if node.attrs.get(key) is not None}


def transposed_image(low: IntegerLowering, x: str, node: Node, back: bool = False, output: str = "") -> str:
    """An image as [N, C, *space]; `back`: as the node's layout has it."""
    if node.attrs.get("layout", "NCHW") == "NCHW":
        return x
    rank = low.rank(node.inputs[0])
    perm = [0, *range(2, rank), 1] if back else [0, rank - 1, *range(1, rank - 1)]
    return low.builder.node("Transpose", [x], output, perm=perm)


def filters(low: IntegerLowering, node: Node) -> Array:
    """The codes of a convolution's weight as [M, C / group, *kernel]."""
    codes = low.codes(node.inputs[1])
    return codes if node.attrs.get("layout", "NCHW") == "NCHW" else np.moveaxis(codes, -1, 1)


def _raised_weight(low: IntegerLowering, node: Node, codes: Array) -> list[str]:
    """A weight in unsigned codes, and its zero point; wider ones are refused."""
    if codes.min(initial=0) < -RAISE or codes.max(initial=0) >= RAISE:
        raise low.refuse(node, "a weight of more than 8 bits")
    name = f"{node.inputs[1]}.raised"
    return [
        low.held(name, (codes + RAISE).astype(np.uint8), "unsigned codes: products of them are exact everywhere"),
        low.builder.tensor(RAISE, "uint8"),
    ]


def _products(low: IntegerLowering, node: Node, multiply: Callable[[str, int], str]) -> str:
    """The sum of products with an activation of 8 bits, or of 16 as its two bytes."""
    name, zero, b = node.inputs[0], int(node.attrs.get("x_zero", 0)), low.builder  # type: ignore[arg-type]
    if low.types[name] in ("U8", "I8"):
        x, raised = low.unsigned(name)
        return multiply(x, zero + raised)
    if low.types[name] != "I16" or zero:
        raise low.refuse(node, "a product with an activation of this type", f"{low.types[name]}, zero point {zero}")
    word = b.node("Add", [low.wide(name), b.tensor(_WORD, "int32")])
    high = b.node("Div", [word, b.tensor(256, "int32")])
    parts = [low.cast(high, "U8"), low.cast(word, "U8")]  # a cast to fewer bits keeps the lowest
    upper = b.node("Mul", [multiply(parts[0], RAISE), b.tensor(256, "int32")])
    return b.node("Add", [upper, multiply(parts[1], 0)])


def _conv(low: IntegerLowering, node: Node) -> None:
    weight, zero = _raised_weight(low, node, filters(low, node))
    b = low.builder

    def multiply(x: str, x_zero: int) -> str:
        inputs = [transposed_image(low, x, node), weight, b.tensor(x_zero, "uint8"), zero]
        product: str = b.node("ConvInteger", inputs, "", **conv_attrs(node))
        return product

    total = _products(low, node, multiply)
    rank = low.rank(node.inputs[0])
    total = _biased(low, node, total, (-1, *[1] * (rank - 2)))
    low.give(node.outputs[0], transposed_image(low, total, node, back=True))


def _biased(low: IntegerLowering, node: Node, total: str, shape: Sequence[int]) -> str:
    if not (node.inputs[2:3] and node.inputs[2]):
        return total
    bias = low.builder.tensor(low.codes(node.inputs[2]).reshape(shape), "int32")
    biased: str = low.builder.node("Add", [total, bias])
    return biased


def _linear(low: IntegerLowering, node: Node) -> None:
    codes = low.codes(node.inputs[1])
    weight, zero = _raised_weight(low, node, np.ascontiguousarray(codes.T))
    b = low.builder

    def multiply(x: str, x_zero: int) -> str:
        return b.node("MatMulInteger", [x, weight, b.tensor(x_zero, "uint8"), zero])

    low.give(node.outputs[0], _biased(low, node, _products(low, node, multiply), (-1,)))


def _mat_mul(low: IntegerLowering, node: Node) -> None:
    zeros = [int(node.attrs.get(key, 0)) for key in ("a_zero", "b_zero")]  # type: ignore[arg-type]
    b, narrow = low.builder, all(low.types[name] in ("U8", "I8") for name in node.inputs)
    if narrow:
        sides = [low.unsigned(name) for name in node.inputs]
        x, y = (side for side, _ in sides)
        points = [b.tensor(zero + raised, "uint8") for zero, (_, raised) in zip(zeros, sides, strict=True)]
    else:
        x, y = (_less(low, low.wide(name), zero) for name, zero in zip(node.inputs, zeros, strict=True))
    y = transposed_matrix(low, node, y)
    low.give(node.outputs[0], b.node("MatMulInteger", [x, y, *points]) if narrow else b.node("MatMul", [x, y]))


def transposed_matrix(low: IntegerLowering, node: Node, y: str) -> str:
    """The right side of a product, transposed where the node says so."""
    if not node.attrs.get("transpose_b", 0):
        return y
    rank = low.rank(node.inputs[1])
    return low.builder.node("Transpose", [y], perm=[*range(rank - 2), rank - 1, rank - 2])


# ---- rescaling


def _requantize(low: IntegerLowering, node: Node) -> None:
    attrs: Any = node.attrs
    name, b = node.outputs[0], low.builder
    m, e = (low.codes(n) for n in node.inputs[1:3])
    m, e = np.broadcast_arrays(m.reshape(-1), e.reshape(-1))
    axis = attrs.get("axis", 1)
    m, e = (low.along(part, node.inputs[0], axis) for part in (m, e))
    x = low.wide(node.inputs[0], "I64")
    if attrs.get("x_zero", 0):
        x = b.node("Sub", [x, b.tensor(attrs["x_zero"], "int64")])
    if attrs.get("left_shift", 0):
        x = b.node("Mul", [x, b.tensor(1 << attrs["left_shift"], "int64")])
    codes = shifts.rescaled(b, x, m, e, attrs.get("rounding", "half_up"), attrs.get("zero", 0))
    bound = _bound(low, node) * float((m * np.exp2(-e)).max()) + abs(attrs.get("zero", 0)) + 1
    if bound < 1 << 31:
        ends = [b.tensor(attrs[key], "int32") for key in ("lo", "hi")]
        codes = b.node("Clip", [low.cast(codes, "I32"), *ends])
    else:
        codes = shifts.limited(b, codes, attrs["lo"], attrs["hi"])
    low.give(name, low.cast(codes, attrs["dtype"], name))


def _bound(low: IntegerLowering, node: Node) -> int:
    """How large the number is at most that a Requantize multiplies."""
    limits = np.iinfo(element_dtype(low.types[node.inputs[0]]))
    zero = int(node.attrs.get("x_zero", 0))  # type: ignore[arg-type]
    size = max(abs(int(end) - zero) for end in (limits.min, limits.max))
    return size << int(node.attrs.get("left_shift", 0))  # type: ignore[arg-type]


# ---- sums and means


def _less(low: IntegerLowering, x: str, zero: int, dtype: str = "int32") -> str:
    return low.builder.node("Sub", [x, low.builder.tensor(zero, dtype)]) if zero else x


def _add(low: IntegerLowering, node: Node) -> None:
    low.give(node.outputs[0], low.builder.node("Add", [low.wide(n) for n in node.inputs], node.outputs[0]))


def _mul(low: IntegerLowering, node: Node) -> None:
    zeros = [int(node.attrs.get(key, 0)) for key in ("a_zero", "b_zero")]  # type: ignore[arg-type]
    sides = [_less(low, low.wide(n), zero) for n, zero in zip(node.inputs, zeros, strict=True)]
    low.give(node.outputs[0], low.builder.node("Mul", sides, node.outputs[0]))


def _sum(low: IntegerLowering, node: Node) -> None:
    attrs: Any = node.attrs
    axes = low.builder.tensor(attrs["axes"], "int64")
    output = low.builder.node(
        "ReduceSum", [low.wide(node.inputs[0]), axes], node.outputs[0], keepdims=attrs.get("keepdims", 1)
    )
    low.give(node.outputs[0], output)


def _mean(low: IntegerLowering, node: Node) -> None:
    attrs: Any = node.attrs
    counts: list[Any] = [low.shapes[node.inputs[0]][axis] for axis in attrs["axes"]]
    if not all(isinstance(n, int) and n > 0 for n in counts):
        raise low.refuse(node, "a mean over an axis of free extent", counts)
    axes = low.builder.tensor(attrs["axes"], "int64")
    total = low.builder.node("ReduceSum", [low.wide(node.inputs[0], "I64"), axes], keepdims=attrs.get("keepdims", 1))
    quotient = shifts.divided(low.builder, total, int(np.prod(counts)), attrs.get("rounding", "floor"))
    low.give(node.outputs[0], low.cast(quotient, low.types[node.outputs[0]], node.outputs[0]))


def _max_pool(low: IntegerLowering, node: Node) -> None:
    if low.types[node.inputs[0]] in ("U8", "I8"):
        moved(low, node)
        return
    if node.attrs.get("ceil_mode", 0):
        raise low.refuse(node, "a pooling of more than 8 bits with ceil_mode")
    name = node.outputs[0]
    greatest = reduced(low, node, low.wide(node.inputs[0]), "Max", -(1 << 31))
    low.give(name, greatest if low.types[name] == "I32" else low.cast(greatest, low.types[name], name))


# ---- limits and moves


def _limited(low: IntegerLowering, node: Node) -> None:
    """Relu and Clip."""
    name, source, b = node.outputs[0], node.inputs[0], low.builder
    limits: list[Any] = [0, None] if node.op == "Relu" else [node.attrs.get("min"), node.attrs.get("max")]
    if low.types[name] == "I64":
        low.give(name, shifts.limited(b, low.plain(source), *limits))
        return
    kind = "I32" if low.types[name] == "I16" else low.types[name]
    dtype = element_dtype(kind)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    ends = ["" if n is None else b.tensor(np.clip(int(n), least, most), dtype.name) for n in limits]
    x = low.wide(source, kind)
    low.give(
        name,
        b.node("Clip", [x, *ends], name)
        if kind == low.types[name]
        else low.cast(b.node("Clip", [x, *ends]), "I16", name),
    )


class _Given:
    """A scope for nodes whose inputs are values of ONNX already."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder

    def value(self, name: str) -> str:
        return name

    def is_weight(self, name: str) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


def moved(low: IntegerLowering, node: Node) -> None:
    """What only moves or compares codes: the operator itself, over the form in which the codes are there."""
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    raised = all(low.is_raised(name) for name in data)
    inputs = [low.unsigned(name)[0] if raised else low.plain(name) for name in data]
    inputs += [low.plain(name) if name else "" for name in node.inputs[len(data) :]]
    output = low.label(node.outputs[0]) if raised else node.outputs[0]
    emit(_Given(low.builder), replace(node, inputs=tuple(inputs), outputs=(output,)))
    (low.give_unsigned if raised else low.give)(node.outputs[0], output)


def _pad(low: IntegerLowering, node: Node) -> None:
    """Pad by a code, in 32 bits where there are 16, which ONNX Runtime does not pad."""
    name, b, kind = node.outputs[0], low.builder, low.types[node.inputs[0]]
    fill = int(low.codes(node.inputs[2]).reshape(())) if node.inputs[2:3] and node.inputs[2] else 0
    pads, *axes = (low.plain(n) for n in (node.inputs[1], *node.inputs[3:]))
    if low.is_raised(node.inputs[0]):
        x, raised = low.unsigned(node.inputs[0])
        padded = b.node("Pad", [x, pads, b.tensor(fill + raised, "uint8"), *axes], low.label(name))
        low.give_unsigned(name, padded)
    elif kind == "I16":
        inside = b.node("Pad", [low.wide(node.inputs[0]), pads, b.tensor(fill, "int32"), *axes])
        low.give(name, low.cast(inside, "I16", name))
    else:
        value = b.tensor(fill, element_dtype(kind).name)
        low.give(name, b.node("Pad", [low.plain(node.inputs[0]), pads, value, *axes], name))


def _positions(low: IntegerLowering, node: Node) -> None:
    """0 .. T - 1 for ids [B, T]."""
    b = low.builder
    length = b.node("Shape", [low.plain(node.inputs[0])], start=1, end=2)
    scalar = b.node("Squeeze", [length])
    low.give(node.outputs[0], b.node("Range", [b.tensor(0, "int64"), scalar, b.tensor(1, "int64")]))


ROWS: Mapping[str, Emitter] = {
    "IntegerConv": _conv,
    "IntegerLinear": _linear,
    "IntegerMatMul": _mat_mul,
    "Requantize": _requantize,
    "IntegerAdd": _add,
    "IntegerMul": _mul,
    "IntegerSum": _sum,
    "IntegerMean": _mean,
    "MaxPool": _max_pool,
    "IntegerAveragePool": average_pool,
    "Relu": _limited,
    "Clip": _limited,
    "Pad": _pad,
    "Positions": _positions,
    **dict.fromkeys(
        ("Reshape", "Transpose", "Flatten", "Concat", "Slice", "Squeeze", "Unsqueeze", "Identity", "Gather"), moved
    ),
    **FUNCTIONS,
    "TfliteSoftmax": tflite_softmax,
}
"""How each row is lowered."""
