"""TFLite's softmax in fixed point (ir/ops/tflite.py) in ONNX, to the last bit.

Codes are of 8 bits, so that x - max has 256 values: exponentials are looked up. Their sum is at least 2^19 in Q12.19,
one being 1; the reciprocal is computed by the three Newton steps of the reference.
"""

from __future__ import annotations

import numpy as np

from qdeploy.backends.onnx.integer import shifts
from qdeploy.backends.onnx.integer.lowering import IntegerLowering
from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.ir.graph import Node
from qdeploy.ir.integer_arithmetic import half_up
from qdeploy.ir.ops.tflite import exp_negative
from qdeploy.ir.tensor import Array

_ONE = (1 << 31) - 1
_48_17, _32_17 = round(48 / 17 * 2**29), round(-32 / 17 * 2**29)  # Q2.29
_SUM_BITS = 12


def tflite_softmax(low: IntegerLowering, node: Node) -> None:
    """Softmax along the last axis: int8 at the scale 1/256, zero point -128."""
    b, name = low.builder, node.outputs[0]
    table = _exponentials(*(int(str(node.attrs[key])) for key in ("multiplier", "left_shift", "diff_min")))
    x = low.wide(node.inputs[0])
    top = b.node("ReduceMax", [x, b.tensor([-1], "int64")], keepdims=1)
    below = b.node("Sub", [top, x])  # 0..255
    summed = (table + (1 << _SUM_BITS - 1)) >> _SUM_BITS
    total = shifts.total(b, b.node("Gather", [b.tensor(summed), below]))
    factor, zeros = _reciprocal(b, total)
    product = _high(b, b.node("Gather", [b.tensor(table), below]), factor)
    by = b.node("Sub", [b.tensor(_SUM_BITS + 31 - 8, "int64"), zeros])
    half = b.node("Gather", [b.tensor(np.int64(1) << np.arange(62)), b.node("Sub", [by, b.tensor(1, "int64")])])
    rounded = shifts.shift_natural(b, b.node("Add", [product, half]), by)
    codes = shifts.limited(b, b.node("Sub", [rounded, b.tensor(128, "int64")]), -128, 127)
    low.give(name, low.cast(codes, "I8", name))


def _exponentials(multiplier: int, left_shift: int, diff_min: int) -> Array:
    """Exp of 0, -1, ..., -255 at the scale of x: int64 [256], Q0.31."""
    below = -np.arange(256, dtype=np.int64)
    counts = below >= diff_min
    scaled = half_up((np.where(counts, below, 0) << left_shift) * multiplier, np.array(31, np.int64))
    return np.where(counts, exp_negative(np.maximum(scaled, -(1 << 31))), 0)


def _high(b: GraphBuilder, x: str, y: str) -> str:
    return shifts.rounded(b, b.node("Mul", [x, y]), np.array(31), "half_up")


def _doubled(b: GraphBuilder, x: str, left: int) -> str:
    return shifts.limited(b, b.node("Mul", [x, b.tensor(1 << left, "int64")]), -(1 << 31), _ONE)


def _reciprocal(b: GraphBuilder, total: str) -> tuple[str, str]:
    """1 / total in Q0.31 for a total in Q12.19, and the leading zeros of the total as a uint32."""
    powers = b.tensor(np.int64(1) << np.arange(32))
    bits = b.node("Cast", [b.node("GreaterOrEqual", [total, powers])], to=7)  # [..., 32]
    zeros = b.node("Sub", [b.tensor(32, "int64"), shifts.total(b, bits)])
    raised = b.node("Mul", [total, b.node("Gather", [powers, zeros])])
    half = shifts.shift_natural(b, raised, np.array(1))  # (1 + fraction) / 2 for total = (1 + fraction) 2^...
    x = b.node("Add", [_high(b, half, b.tensor(_32_17, "int64")), b.tensor(_48_17, "int64")])
    for _ in range(3):
        rest = b.node("Sub", [b.tensor(1 << 29, "int64"), _high(b, half, x)])
        x = b.node("Add", [x, _doubled(b, _high(b, x, rest), 2)])
    return _doubled(b, x, 1), zeros
