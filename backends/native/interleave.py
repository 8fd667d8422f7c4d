"""Codes [rows, columns] to bytes and back, for every kind of term (layout.py; runtime/src/format.h has the pictures).

Rows are a multiple of 16, columns a multiple of 32. Every function is pure; what it gives has the row block as its
first axis, so that row blocks [a, b) of a term are bytes [a, b) of its first axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native.layout import ROWS, TILE

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def nibbles(codes: Bytes) -> Bytes:
    """uint8 below 16 -> [rb, columns / 8, 64]: byte 4 r + j: low nibble column j, high nibble column 4 + j."""
    units = codes.reshape(-1, ROWS, codes.shape[1] // 8, 2, 4)  # [rb, row, unit, half, j]
    packed = units[..., 0, :] | units[..., 1, :] << 4
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(len(units), -1, 64)


def from_nibbles(packed: Bytes) -> Bytes:
    """The inverse of `nibbles`."""
    units = packed.reshape(len(packed), -1, ROWS, 4).transpose(0, 2, 1, 3)  # [rb, row, unit, j]
    return np.stack((units & 15, units >> 4), axis=3).reshape(len(packed) * ROWS, -1)


def pairs(codes: Bytes) -> Bytes:
    """uint8 below 4 -> [rb, columns / 16, 64]: byte 4 r + j: bits 2 f, 2 f + 1 are column 4 f + j."""
    units = codes.reshape(-1, ROWS, codes.shape[1] // 16, 4, 4)  # [rb, row, unit, f, j]
    packed = units[..., 0, :] | units[..., 1, :] << 2 | units[..., 2, :] << 4 | units[..., 3, :] << 6
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(len(units), -1, 64)


def from_pairs(packed: Bytes) -> Bytes:
    """The inverse of `pairs`."""
    units = packed.reshape(len(packed), -1, ROWS, 4).transpose(0, 2, 1, 3)  # [rb, row, unit, j]
    return np.stack([units >> 2 * f & 3 for f in range(4)], axis=3).reshape(len(packed) * ROWS, -1)


def whole_bytes(codes: Bytes) -> Bytes:
    """uint8 -> [rb, columns / 4, 64]: byte 4 r + j: column j."""
    units = codes.reshape(-1, ROWS, codes.shape[1] // 4, 4)  # [rb, row, unit, j]
    return np.ascontiguousarray(units.transpose(0, 2, 1, 3)).reshape(len(units), -1, 64)


def from_whole_bytes(packed: Bytes) -> Bytes:
    """The inverse of `whole_bytes`."""
    units = packed.reshape(len(packed), -1, ROWS, 4).transpose(0, 2, 1, 3)
    return units.reshape(len(packed) * ROWS, -1)


def planes(codes: Bytes, count: int) -> list[Bytes]:
    """uint8 below 2**count -> one [rb, columns / 32, 64] per plane, most significant first.

    Byte 16 q + r: bit i of the low nibble is column 4 q + i, of the high nibble column 16 + 4 q + i.
    """
    units = codes.reshape(-1, ROWS, codes.shape[1] // 32, 2, 4, 4)  # [rb, row, unit, half, q, i]
    units = np.ascontiguousarray(units.transpose(0, 2, 4, 1, 3, 5))  # [rb, unit, q, row, half, i]
    bits = units.reshape(len(units), -1, 64, 8)
    return [
        np.packbits(bits >> np.uint8(shift) & np.uint8(1), axis=-1, bitorder="little")[..., 0]
        for shift in range(count - 1, -1, -1)
    ]


def from_planes(packed: list[Bytes], count: int) -> Bytes:
    """The inverse of `planes`; planes that are not given are zero."""
    total = np.zeros((*packed[0].shape, 8), np.uint8)
    for shift, plane in zip(range(count - 1, -1, -1), packed, strict=False):
        total |= np.unpackbits(plane[..., None], axis=-1, bitorder="little") << np.uint8(shift)
    units = total.reshape(len(total), -1, 4, ROWS, 2, 4)  # [rb, unit, q, row, half, i]
    return units.transpose(0, 3, 1, 4, 2, 5).reshape(len(total) * ROWS, -1)


def triples(codes: Bytes) -> Bytes:
    """uint8 below 8 -> [rb, columns / 32, 192]: low bits of columns 0..15 and 16..31 as `pairs`, then the top bits."""
    low = pairs(codes & np.uint8(3))
    top = (codes >> np.uint8(2)).reshape(-1, ROWS, codes.shape[1] // 32, 8, 4)  # [rb, row, unit, f, j]
    top = np.packbits(top, axis=3, bitorder="little")[:, :, :, 0].transpose(0, 2, 1, 3)  # [rb, unit, row, j]
    shape = (len(low), codes.shape[1] // 32)
    return np.concatenate((low.reshape(*shape, 128), top.reshape(*shape, 64)), axis=2)


def from_triples(packed: Bytes) -> Bytes:
    """The inverse of `triples`."""
    low = from_pairs(np.ascontiguousarray(packed[..., :128]).reshape(len(packed), -1, 64))
    top = packed[..., 128:].reshape(len(packed), -1, ROWS, 4).transpose(0, 2, 1, 3)  # [rb, row, unit, j]
    bits = np.stack([top >> f & 1 for f in range(8)], axis=3).reshape(low.shape)
    whole: Bytes = low | bits << np.uint8(2)
    return whole


def by_columns(numbers: Array) -> Array:
    """[rows, n] of any type -> [rb, n, 16]: floats by columns, params by groups."""
    return np.ascontiguousarray(numbers.reshape(-1, ROWS, numbers.shape[1]).transpose(0, 2, 1))


def from_columns(numbers: Array) -> Array:
    """The inverse of `by_columns`."""
    return np.ascontiguousarray(numbers.transpose(0, 2, 1)).reshape(-1, numbers.shape[1])


def entries(codes: Array) -> Array:
    """[books, rows, entries] -> [rb, entries, books, 16]."""
    blocks = codes.reshape(len(codes), -1, ROWS, codes.shape[2])  # [book, rb, row, entry]
    return np.ascontiguousarray(blocks.transpose(1, 3, 0, 2))


def from_entries(packed: Array) -> Array:
    """The inverse of `entries`."""
    count, width, books = packed.shape[:3]
    return np.ascontiguousarray(packed.transpose(2, 0, 3, 1)).reshape(books, count * ROWS, width)


def sign_tiles(columns: int) -> list[slice]:
    """The tiles of 512 columns of a bit stack's signs; the last may be shorter."""
    return [slice(first, min(first + TILE, columns)) for first in range(0, columns, TILE)]
