"""Weights and biases as the kernels read them: one layout for every instruction set.

    [O / 16][kh][kw][I / 4][16][4]  int8      O output channels padded to 16, I input channels to 4 (8 for 4 bits)
    4 bits: [O / 16][kh][kw][I / 8][16][4], low nibbles of quad 2g, high nibbles of quad 2g + 1, two's complement

so that unpacking 4 bits is a mask and a shift on whole vectors. Depthwise filters are [kh][kw][O].
"""

from __future__ import annotations

import numpy as np

from qdeploy.backends.tvm.targets import LANES
from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Array

QUAD = 4


def padded(extent: int, multiple: int) -> int:
    """The next multiple."""
    return -(-extent // multiple) * multiple


def is_small(weight: Array) -> bool:
    """Whether a weight is of a type of at most 4 bits."""
    return weight.dtype.name in ("int4", "int2", "uint2")


def pack(weight: Array, channels: int) -> Array:
    """Packs filters [O, kh, kw, I] for an input of at least I channels; 4 bits where the type has no more."""
    small = is_small(weight)
    codes = as_int8(weight)
    o, kh, kw, i = codes.shape
    inner = padded(max(i, channels), 2 * QUAD if small else QUAD)
    full = np.zeros((padded(o, LANES), kh, kw, inner), np.int8)
    full[:o, ..., :i] = codes
    blocks = full.reshape(-1, LANES, kh, kw, inner // QUAD, QUAD)  # [O/16, 16, kh, kw, I/4, 4]
    packed = blocks.transpose(0, 2, 3, 4, 1, 5)
    if not small:
        return np.ascontiguousarray(packed)
    low, high = (packed[:, :, :, start::2].view(np.uint8) & 15 for start in (0, 1))
    return np.asarray((low | (high << 4)).view(np.int8))


def pack_depthwise(weight: Array, channels: int) -> Array:
    """Brings filters [O, kh, kw, I] of one or more input channels each into [kh, kw, I, O], O padded."""
    codes = as_int8(weight)
    full = np.zeros((*codes.shape[1:], channels), np.int8)
    full[..., : len(codes)] = codes.transpose(1, 2, 3, 0)
    return full


def fold(bias: Array | None, weight: Array, offset: int) -> Array:
    """The bias of sum((x + offset) * weight) that makes it sum(x * weight) + bias: int32, O padded to 16.

    Only what int32 holds modulo 2^32 matters: the sum itself fits, as the graph's row says.
    """
    o = len(weight)
    total = np.zeros(padded(o, LANES), np.int64)
    if bias is not None:
        total[:o] = bias
    total[:o] -= offset * as_int8(weight).astype(np.int64).reshape(o, -1).sum(axis=1)
    return total.astype(np.int32)


def as_int8(weight: Array) -> Array:
    """Weights as int8; BadFileError where they do not fit."""
    wide = weight.astype(np.int64)
    if wide.size and not (wide.min() >= -128 and wide.max() <= 127):
        raise BadFileError("weights of an integer convolution that are not int8", found=f"{wide.min()}..{wide.max()}")
    return wide.astype(np.int8)


def spread(param: Array, extent: int, fill: int) -> Array:
    """A parameter per channel, int32, padded; one for all stays one."""
    if param.size == 1:
        return param.reshape(1).astype(np.int32)
    full = np.full(extent, fill, np.int32)
    full[: param.size] = param.ravel()
    return full
