"""Integer graphs on ONNX Runtime's kernels for 8-bit codes, with unsigned activations and signed weights.

    IntegerConv, Requantize                      QLinearConv
    IntegerLinear, Requantize                    QGemm (two axes), else MatMulInteger and QuantizeLinear
    IntegerMatMul, Requantize                    QLinearMatMul
    Requantize twice, IntegerAdd, Requantize     QLinearAdd
    IntegerMul, Requantize                       QLinearMul
    IntegerSum over the image, Requantize        QLinearGlobalAveragePool
    IntegerAveragePool                           QLinearAveragePool
    Requantize                                   Cast, QuantizeLinear

A factor m / 2^e is the scale of a weight or of one side, in float32; all other scales are 1. Each kernel rounds once,
to the nearest, halves to even, so that a result is at most one code off what the graph gives for the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from qdeploy.backends.onnx.integer.lowering import IntegerLowering
from qdeploy.backends.onnx.integer.nodes import conv_attrs, filters, transposed_image, transposed_matrix
from qdeploy.backends.onnx.integer.windows import window_borders
from qdeploy.backends.onnx.proto import MICROSOFT
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array

_BYTES = ("U8", "I8")


def absorbed(low: IntegerLowering) -> frozenset[str]:
    """Values that kernels of their users make on the way."""
    names: set[str] = set()
    for node in low.graph.nodes:
        if node.op == "Requantize" and _kernel(low, node) is not None:
            inner = low.makers[node.inputs[0]]
            names.add(inner.outputs[0])
            if inner.op == "IntegerAdd":
                names.update(name for name in inner.inputs if _side(low, name)[1] is not None)
    return frozenset(names)


def emit_fast(low: IntegerLowering, node: Node) -> bool:
    """Lowers a node by a kernel, if there is one."""
    if node.op == "IntegerAveragePool":
        return _average_pool(low, node)
    if node.op != "Requantize":
        return False
    kernel = _kernel(low, node)
    if kernel is not None:
        kernel(low, low.makers[node.inputs[0]], node)
        return True
    return _quantize(low, node)


Kernel = Callable[[IntegerLowering, Node, Node], None]


def _kernel(low: IntegerLowering, node: Node) -> Kernel | None:
    """The kernel of a Requantize and the node of its input; None where no kernel fits."""
    inner = low.makers.get(node.inputs[0])
    if inner is None or low.uses[node.inputs[0]] != 1 or low.types[node.outputs[0]] not in _BYTES:
        return None
    rule = _FITS.get(inner.op)
    if rule is None or not _factors(low, node)[0].all() or not 0 <= _zero(low, node) <= 255:
        return None
    fits, kernel = rule
    return kernel if fits(low, inner, node) else None


# ---- numbers


def _factors(low: IntegerLowering, node: Node) -> tuple[Array, int]:
    """The factors of a Requantize, float64 [1] or [C], and its axis."""
    attrs: Any = node.attrs
    m, e = (low.codes(name).reshape(-1).astype(np.float64) for name in node.inputs[1:3])
    return m * np.exp2(attrs.get("left_shift", 0) - e), attrs.get("axis", 1)


def _zero(low: IntegerLowering, node: Node) -> int:
    """The zero point of a result in unsigned codes."""
    return int(node.attrs.get("zero", 0)) + _raise(low, node.outputs[0])  # type: ignore[arg-type]


def _raise(low: IntegerLowering, name: str) -> int:
    return 128 if low.types[name] == "I8" else 0


def _attr(node: Node, key: str) -> int:
    return int(node.attrs.get(key, 0))  # type: ignore[arg-type]


def _finish(low: IntegerLowering, node: Node, output: str) -> None:
    """Limits the unsigned codes of a result, where they are narrower than their type, and gives them out."""
    name, b = node.outputs[0], low.builder
    lo, hi = (max(0, min(255, _attr(node, key) + _raise(low, name))) for key in ("lo", "hi"))
    if (lo, hi) != (0, 255):
        output = b.node("Clip", [output, b.tensor(lo, "uint8"), b.tensor(hi, "uint8")])
    low.give_unsigned(name, output)


def _codes(low: IntegerLowering, name: str, zero: int, scale: float = 1.0) -> list[str]:
    """Unsigned codes with their scale and zero point."""
    x, raised = low.unsigned(name)
    return [x, low.builder.tensor(scale, "float32"), low.builder.tensor(zero + raised, "uint8")]


def _result(low: IntegerLowering, node: Node) -> list[str]:
    return [low.builder.tensor(1.0, "float32"), low.builder.tensor(_zero(low, node), "uint8")]


def _weight(low: IntegerLowering, inner: Node, codes: Array, factors: Array, outputs: int) -> list[str]:
    """A weight in signed codes, with a scale per output.

    The zero points are not a shared constant: ONNX Runtime rewrites them together with the weight, and fails where two
    weights have the same.
    """
    name, b = f"{inner.inputs[1]}.int8", low.builder
    initializer = low.held(name, codes.astype(np.int8), "signed codes: with unsigned activations the fastest pair")
    shape = () if factors.size == 1 else (outputs,)
    zero = b.fresh(f"{name}.zero")
    b.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.int8), zero))
    return [initializer, b.tensor(factors.astype(np.float32).reshape(shape)), zero]


def _bias(low: IntegerLowering, inner: Node) -> list[str]:
    if not (inner.inputs[2:3] and inner.inputs[2]):
        return []
    return [low.builder.tensor(low.codes(inner.inputs[2]).astype(np.int32))]


# ---- kernels


def _layer_fits(low: IntegerLowering, inner: Node, node: Node) -> bool:
    codes = low.arrays.get(inner.inputs[1])
    factors, axis = _factors(low, node)
    rank = low.rank(inner.inputs[0])
    channel = 1 if inner.op == "IntegerConv" and inner.attrs.get("layout", "NCHW") == "NCHW" else rank - 1
    narrow = codes is not None and int(codes.min(initial=0)) >= -128 and int(codes.max(initial=0)) <= 127
    placed = factors.size == 1 or axis % rank == channel
    shaped = rank == 2 or (inner.op == "IntegerConv" and rank in (3, 4))
    return narrow and placed and shaped and low.types[inner.inputs[0]] in _BYTES and not _attr(node, "x_zero")


def _conv(low: IntegerLowering, inner: Node, node: Node) -> None:
    codes, (factors, _) = filters(low, inner), _factors(low, node)
    x = _codes(low, inner.inputs[0], _attr(inner, "x_zero"))
    x[0] = transposed_image(low, x[0], inner)
    weight = _weight(low, inner, codes, factors, len(codes))
    inputs = [*x, *weight, *_result(low, node), *_bias(low, inner)]
    output = low.builder.node("QLinearConv", inputs, **conv_attrs(inner))
    _finish(low, node, transposed_image(low, output, inner, back=True))


def _gemm(low: IntegerLowering, inner: Node, node: Node) -> None:
    codes, (factors, _) = low.codes(inner.inputs[1]), _factors(low, node)
    weight = _weight(low, inner, codes, factors, len(codes))
    inputs = [
        *_codes(low, inner.inputs[0], _attr(inner, "x_zero")),
        *weight,
        (_bias(low, inner) or [""])[0],
        *_result(low, node),
    ]
    _finish(low, node, low.builder.node("QGemm", inputs, domain=MICROSOFT, transB=1))


def _both_fit(low: IntegerLowering, inner: Node, node: Node) -> bool:
    """Two activations of 8 bits and one factor."""
    narrow = all(low.types[name] in _BYTES and name not in low.arrays for name in inner.inputs)
    return narrow and _factors(low, node)[0].size == 1 and not _attr(node, "x_zero")


def _mat_mul(low: IntegerLowering, inner: Node, node: Node) -> None:
    left = _codes(low, inner.inputs[0], _attr(inner, "a_zero"), float(_factors(low, node)[0][0]))
    right = _codes(low, inner.inputs[1], _attr(inner, "b_zero"))
    right[0] = transposed_matrix(low, inner, right[0])
    _finish(low, node, low.builder.node("QLinearMatMul", [*left, *right, *_result(low, node)]))


def _mul(low: IntegerLowering, inner: Node, node: Node) -> None:
    left = _codes(low, inner.inputs[0], _attr(inner, "a_zero"), float(_factors(low, node)[0][0]))
    right = _codes(low, inner.inputs[1], _attr(inner, "b_zero"))
    _finish(low, node, low.builder.node("QLinearMul", [*left, *right, *_result(low, node)], domain=MICROSOFT))


def _side(low: IntegerLowering, name: str) -> tuple[str, Node | None]:
    """The codes that one side of a sum is made of, and the Requantize between, if that can be left out."""
    maker = low.makers.get(name)
    if maker is None or maker.op != "Requantize" or low.types[name] != "I32" or low.uses[name] != 1:
        return name, None
    source, (factors, _) = maker.inputs[0], _factors(low, maker)
    if low.types.get(source) not in _BYTES or factors.size != 1 or _attr(maker, "zero"):
        return name, None
    limits, zero = np.iinfo(element_dtype(low.types[source])), _attr(maker, "x_zero")
    scaled = [(end - zero) * float(factors[0]) for end in (limits.min, limits.max)]
    free = _attr(maker, "lo") <= scaled[0] and scaled[1] <= _attr(maker, "hi")
    return (source, maker) if free else (name, None)


def _add_fits(low: IntegerLowering, inner: Node, node: Node) -> bool:
    sides = [_side(low, name)[0] for name in inner.inputs]
    narrow = all(low.types[name] in _BYTES and name not in low.arrays for name in sides)
    return narrow and _factors(low, node)[0].size == 1 and not _attr(node, "x_zero")


def _add(low: IntegerLowering, inner: Node, node: Node) -> None:
    whole, inputs = float(_factors(low, node)[0][0]), []
    for name in inner.inputs:
        source, between = _side(low, name)
        factor = float(_factors(low, between)[0][0]) if between else 1.0
        inputs += _codes(low, source, _attr(between, "x_zero") if between else 0, factor * whole)
    _finish(low, node, low.builder.node("QLinearAdd", [*inputs, *_result(low, node)], domain=MICROSOFT))


def _counted(low: IntegerLowering, inner: Node) -> int:
    """How many numbers an IntegerSum adds up; 0 where that is not known."""
    axes: Any = inner.attrs["axes"]
    counts: list[Any] = [low.shapes[inner.inputs[0]][axis] for axis in axes]
    return int(np.prod(counts)) if all(isinstance(n, int) and n > 0 for n in counts) else 0


def _mean_fits(low: IntegerLowering, inner: Node, node: Node) -> bool:
    axes: Any = inner.attrs["axes"]
    n, rank = _counted(low, inner), low.rank(inner.inputs[0])
    image = rank == 4 and sorted(axis % rank for axis in axes) in ([2, 3], [1, 2])
    zero = _attr(node, "x_zero")
    fine = image and n > 0 and zero % n == 0 and _factors(low, node)[0].size == 1
    return fine and low.types[inner.inputs[0]] in _BYTES


def _mean(low: IntegerLowering, inner: Node, node: Node) -> None:
    axes: Any = inner.attrs["axes"]
    n, last = _counted(low, inner), sorted(axis % 4 for axis in axes) == [1, 2]
    x = _codes(low, inner.inputs[0], _attr(node, "x_zero") // n, float(_factors(low, node)[0][0]) * n)
    b = low.builder
    output = b.node("QLinearGlobalAveragePool", [*x, *_result(low, node)], domain=MICROSOFT, channels_last=int(last))
    if not inner.attrs.get("keepdims", 1):
        output = b.node("Squeeze", [output, b.tensor([1, 2] if last else [2, 3], "int64")])
    _finish(low, node, output)


_FITS: Mapping[str, tuple[Callable[[IntegerLowering, Node, Node], bool], Kernel]] = {
    "IntegerConv": (_layer_fits, _conv),
    "IntegerLinear": (_layer_fits, _gemm),
    "IntegerMatMul": (_both_fit, _mat_mul),
    "IntegerMul": (_both_fit, _mul),
    "IntegerAdd": (_add_fits, _add),
    "IntegerSum": (_mean_fits, _mean),
}


# ---- without a kernel that does both


def _quantize(low: IntegerLowering, node: Node) -> bool:
    """Requantize to at most 16 bits: Cast and QuantizeLinear."""
    name, source, b = node.outputs[0], node.inputs[0], low.builder
    factors, axis = _factors(low, node)
    kind = low.types[name]
    if kind not in (*_BYTES, "I16") or not factors.all() or low.types[source] == "I64":
        return False
    x = low.wide(source)
    if _attr(node, "x_zero"):
        x = b.node("Sub", [x, b.tensor(_attr(node, "x_zero"), "int32")])
    scale = (1 / factors).astype(np.float32)
    dtype, zero = ("int16", _attr(node, "zero")) if kind == "I16" else ("uint8", _zero(low, node))
    if not np.iinfo(dtype).min <= zero <= np.iinfo(dtype).max:
        return False
    alike = factors.size == 1
    point = b.tensor(zero, dtype) if alike else b.tensor(np.full(factors.size, zero), dtype)
    attrs: dict[str, Any] = {} if alike else {"axis": axis % low.rank(source)}
    floats = low.cast(x, "F32")
    codes = b.node("QuantizeLinear", [floats, b.tensor(scale[0] if alike else scale, "float32"), point], "", **attrs)
    if kind != "I16":
        _finish(low, node, codes)
        return True
    lo, hi = _attr(node, "lo"), _attr(node, "hi")
    if (lo, hi) != (-32768, 32767):
        codes = low.cast(b.node("Clip", [low.cast(codes, "I32"), *(b.tensor(n, "int32") for n in (lo, hi))]), "I16")
    low.give(name, codes)
    return True


def _average_pool(low: IntegerLowering, node: Node) -> bool:
    name, source = node.outputs[0], node.inputs[0]
    attrs: Any = node.attrs
    if low.types[source] not in _BYTES or low.rank(source) != 4:
        return False
    border = window_borders(low, node)
    settings = {
        "kernel_shape": attrs["kernel_shape"],
        "pads": [pair[i] for i in (0, 1) for pair in border],
        "strides": attrs.get("strides") or [1, 1],
        "count_include_pad": 0,
        "ceil_mode": 0,
    }
    x = _codes(low, source, 0)
    x[0] = transposed_image(low, x[0], node)
    output = low.builder.node("QLinearAveragePool", [*x, x[1], x[2]], "", MICROSOFT, **settings)
    limits = np.iinfo(element_dtype(low.types[name]))
    ends = {
        "lo": limits.min if attrs.get("lo") is None else attrs["lo"],
        "hi": limits.max if attrs.get("hi") is None else attrs["hi"],
    }
    _finish(low, Node(node.op, node.inputs, node.outputs, ends), transposed_image(low, output, node, back=True))
    return True
