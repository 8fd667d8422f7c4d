"""Weights that the graph dequantizes: which initializers belong together, and what they mean.

    MatMulNBits (com.microsoft; K, N, bits, block_size)     W[n, k] = (q - zero) * scale per block of columns
        B            U8 [N, ceil(K / block), block * bits / 8], a little-endian stream along k, padded to whole blocks
        scales       [N, blocks], or flat
        zero_points  packed U8 [N, ceil(blocks * bits / 8)], or floats [N, blocks]; absent: 2 ** (bits - 1)
        g_idx        I32 [K]: the block of each column; absent: columns in order
    QMoE (com.microsoft; expert_weight_bits, block_size)    the same for every expert: B U8 [E, N, K * bits / 8], scales
                 [E, N] or [E, N, blocks], zero points packed along their last axis
    MatMulBnb4 (com.microsoft; K, N, block_size, quant_type)    W.flat[i] = table[code[i]] * absmax[i // block]
        B U8 [N * K / 2], first code in the high nibble; absmax [N * K / block]; tables of bitsandbytes: FP4 0, NF4 1
    DequantizeLinear(x, scale, zero; axis, block_size)      x in its own shape
        scale, zero  one number, one per index of an axis, or one per block along it

The tensor has the name of the packed initializer. Its scale and zero points are initializers too, and stay tensors of
their own only where a node uses them for something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats.stored import Array, Stored, source_of
from qdeploy.ir.tensor import ArrayRows, Buffer, Codes, Layout, Param, QTensor, Shape, Table, Term
from qdeploy.pack import bits as bit_stream
from qdeploy.store.codec import Codec, UnpackedRows

_FP4 = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_TABLES = ((*_FP4, *(-x for x in _FP4)), _NF4)
"""What codes are worth, by quant_type."""
FLOATS = ("F32", "F16", "BF16")
"""Element types of scales."""


def blocks_of_columns(weight: Stored, others: Mapping[str, Stored | None], attrs: Mapping[str, Any]) -> QTensor | None:
    """The weight [N, K] of a MatMulNBits node; None where the initializers are not of its layout.

    Args:
        weight: B.
        others: scale, zero and index; None where there is none.
        attrs: The node's attributes.
    """
    n, k, bits, block = (int(attrs.get(key, 0)) for key in ("N", "K", "bits", "block_size"))
    if min(n, k, block) < 1 or not 1 <= bits <= 8 or block * bits % 8:
        return None
    count = -(-k // block)
    scale, zero, index = others["scale"], others["zero"], others["index"]
    unpadded = n * bit_stream.row_bytes(k, bits)
    if weight.dtype.element != "U8" or weight.count not in (n * count * block * bits // 8, unpadded):
        return None
    if scale is None or scale.dtype.element not in FLOATS or scale.count != n * count:
        return None
    buffer = None if index is None else Buffer("index", "I32", (k,), index.buffer("index", (k,)).rows)
    if index is not None and (index.dtype.element != "I32" or index.count != k):
        return None
    tile = (1, 1) if index is not None else (1, block)
    zeros = _zero_points(zero, (n, count), bits)
    if zeros is None:
        return None
    zero_param = Param(zeros, (n, k) if zero is None else tile, None if zero is None else buffer)
    scales = Param(scale.codes("scale", (n, count)), tile, buffer)
    codes = Codes((n, k), (_columns(weight, n, k, bits),), Layout("bits", bits), f"uint{bits}", zero_param, scales)
    parts = [part for part in (weight, scale, zero, index) if part is not None]
    return QTensor((n, k), scale.dtype.element, (Term(codes),), source=source_of("onnx", "matmulnbits", parts))


def blocks_of_experts(weight: Stored, scale: Stored, zero: Stored | None, bits: int, block: int) -> QTensor | None:
    """The weights [E, N, K] of a QMoE node; None where the initializers are not of its layout."""
    if bits not in (2, 4, 8) or weight.dtype.element != "U8" or len(weight.shape) != 3 or min(weight.shape) < 1:
        return None
    count, n, packed = weight.shape
    k = packed * 8 // bits
    shape: Shape = scale.shape if len(scale.shape) == 3 else (*scale.shape, 1)
    block = k if shape[-1] == 1 else block
    if scale.dtype.element not in FLOATS or block < 1 or shape != (count, n, -(-k // block)):
        return None
    tile, whole = (1, 1, block), (count, n, k)
    if zero is None:
        middle = Buffer("zero", "U8", (1, 1, 1), ArrayRows(np.array([[[1 << (bits - 1)]]], np.uint8)))
        zeros = Param(Codes((1, 1, 1), (middle,), Layout("plain"), "uint8"), whole)
    else:
        rows = (count, n, bit_stream.row_bytes(shape[-1], bits))
        if zero.dtype.element != "U8" or zero.count != math.prod(rows):
            return None
        zeros = Param(Codes(shape, (zero.buffer("zero", rows),), Layout("bits", bits), f"uint{bits}"), tile)
    layout, scales = Layout("bits", bits), Param(scale.codes("scale", shape), tile)
    codes = Codes(whole, (weight.buffer("codes", weight.shape),), layout, f"uint{bits}", zeros, scales)
    parts = [part for part in (weight, scale, zero) if part is not None]
    return QTensor(whole, scale.dtype.element, (Term(codes),), source=source_of("onnx", "qmoe", parts))


def blocks_of_table(weight: Stored, scale: Stored, k: int, n: int, block: int, kind: int) -> QTensor | None:
    """The weight [N, K] of a MatMulBnb4 node; None where the initializers are not of its layout."""
    if min(k, n, block) < 1 or n * k % block or block % 2 or kind not in (0, 1):
        return None
    grid, size = (n * k // block, block), block // 2
    if weight.dtype.element != "U8" or weight.count != n * k // 2:
        return None
    if scale.dtype.element not in FLOATS or scale.count != grid[0]:
        return None

    def swapped(raw: Array) -> Array:
        return (raw >> 4) | (raw << 4)

    def unpack(raw: Array) -> tuple[Array, ...]:
        return (swapped(raw).reshape(-1, size),)

    how = Codec(("codes",), unpack, lambda rows: swapped(rows).reshape(-1), units=size)
    buffer = Buffer("codes", "U8", (grid[0], size), UnpackedRows(how, "codes", weight.source, weight.origin))
    table = Table(Buffer.of("table", np.array([_TABLES[kind]], np.float32), "F32"))
    scales = Param(scale.codes("scale", (grid[0], 1)), (1, block))
    codes = Codes(grid, (buffer,), Layout("bits", 4), table, scale=scales)
    return QTensor((n, k), scale.dtype.element, (Term(codes),), source=source_of("onnx", "matmulbnb4", [weight, scale]))


def _zero_points(zero: Stored | None, grid: Shape, bits: int) -> Codes | None:
    if zero is None:
        middle = np.array([[1 << (bits - 1)]], np.uint8)
        return Codes((1, 1), (Buffer("zero", "U8", (1, 1), ArrayRows(middle)),), Layout("plain"), "uint8")
    if zero.dtype.element in FLOATS:
        return zero.codes("zero", grid) if zero.count == math.prod(grid) else None
    packed = (grid[0], bit_stream.row_bytes(grid[1], bits))
    if zero.dtype.element != "U8" or zero.count != math.prod(packed):
        return None
    return Codes(grid, (zero.buffer("zero", packed),), Layout("bits", bits), f"uint{bits}")


def _columns(weight: Stored, n: int, k: int, bits: int) -> Buffer:
    """The codes of K columns per row: what pads the last block is dropped, and shown to come back."""
    stored, kept = weight.count // n, bit_stream.row_bytes(k, bits)
    if stored * 8 == k * bits:
        return weight.buffer("codes", (n, kept))

    def unpack(raw: Array) -> tuple[Array, ...]:
        rows = raw.reshape(-1, stored)[:, :kept].copy()
        if k * bits % 8:
            rows[:, -1] &= (1 << (k * bits % 8)) - 1
        return (rows,)

    def pack(rows: Array) -> Array:
        return np.pad(rows, ((0, 0), (0, stored - kept))).reshape(-1)

    how = Codec(("codes",), unpack, pack, units=stored)
    return Buffer("codes", "U8", (n, kept), UnpackedRows(how, "codes", weight.source, weight.origin))


def dequantized(x: Stored, scale: Stored, zero: Stored | None, axis: int, block: int) -> QTensor | None:
    """An initializer that a DequantizeLinear node takes; None where its parameters do not fit it."""
    if not x.dtype.dequantized or scale.dtype.element not in FLOATS or not x.count:
        return None
    if zero is not None and zero.dtype != x.dtype:
        raise BadFileError(
            "a zero point of another type than its codes", where=zero.name, found=zero.dtype.name, allowed=x.dtype.name
        )
    if zero is not None and zero.shape != scale.shape:
        return None
    grid = x.shape or (1,)
    placed = _tiles(grid, scale.shape, axis, block)
    if placed is None:
        return None
    tile, param_shape = placed
    zeros = None if zero is None else Param(zero.codes("zero", param_shape), tile)
    codes = x.codes("codes", grid, zero=zeros, scale=Param(scale.codes("scale", param_shape), tile))
    parts = [part for part in (x, scale, zero) if part is not None]
    return QTensor(x.shape, scale.dtype.element, (Term(codes),), source=source_of("onnx", "dequantizelinear", parts))


def _tiles(grid: Shape, param: Shape, axis: int, block: int) -> tuple[Shape, Shape] | None:
    """The tile of a parameter, and the shape of its grid."""
    if math.prod(param) == 1 and len(param) <= 1 and not block:
        return grid, (1,) * len(grid)
    if not -len(grid) <= axis < len(grid):
        return None
    axis %= len(grid)
    if block:
        blocks = tuple(-(-n // block) if i == axis else n for i, n in enumerate(grid))
        return (tuple(block if i == axis else 1 for i in range(len(grid))), blocks) if param == blocks else None
    if param != (grid[axis],):
        return None
    return (
        tuple(1 if i == axis else n for i, n in enumerate(grid)),
        tuple(n if i == axis else 1 for i, n in enumerate(grid)),
    )
