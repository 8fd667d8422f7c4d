"""Matrices of 32-bit words that hold packed codes, transposed: the codes of one weight row lie side by side.

A transpose runs at the speed of memory when the result is filled in strips of whole cache lines, and when the rows of
the strip that is read do not all fall into the same sets of the cache, as they do where the width is a power of two:
each strip is first copied to rows that are a little longer. That is two to five times as fast as numpy's own order.

Codes of four bits that are packed across the rows of the weight (AWQ) also have to be reordered inside the words: eight
words of eight nibbles are an 8 x 8 matrix, transposed by exchanging its off-diagonal blocks of 4, 2 and 1 nibbles
(Warren, Hacker's Delight, section 7-3), all columns at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Matrix = npt.NDArray[Any]

_STRIP = 128  # bytes: two cache lines
_APART = 64  # bytes that are added to the rows of a strip
_BLOCK_WORDS = 1 << 16  # 256 KiB: swapped in place while they are in the second-level cache
_SWAPS = ((4, 16, 0x0000FFFF), (2, 8, 0x00FF00FF), (1, 4, 0x0F0F0F0F))  # rows apart, bits apart, mask


def transpose(matrix: Matrix) -> Matrix:
    """Returns the transpose of a matrix as a contiguous array of the same type."""
    words = matrix.view(f"u{matrix.itemsize}")
    count, width = words.shape
    step = _STRIP // words.itemsize
    transposed = np.empty((width, count), words.dtype)
    strip = np.empty((step, width + _APART // words.itemsize), words.dtype)[:, :width]
    for start in range(0, count, step):
        part = strip[: count - start]
        part[:] = words[start : start + step]
        transposed[:, start : start + step] = part.T
    return transposed.view(matrix.dtype)


def transpose_nibbles(words: UInt32, order: tuple[int, ...]) -> UInt8:
    """Turns nibbles packed across columns into runs of nibbles, low one first.

    Args:
        words: uint32 [K, W]; nibble i of words[k, w] is the code of row 8 * w + order[i] at column k.
        order: A permutation of 0..7.

    Returns:
        uint8 [8 * W, ceil(K / 2)]: the codes of each row.
    """
    count, width = words.shape
    groups, step = -(-count // 8), _STRIP // 4
    transposed = np.empty((width, 8, groups), np.uint32)
    strip = np.empty((min(step, groups), 8, width + _APART // 4), np.uint32)[:, :, :width]
    for start in range(0, groups, step):
        block = strip[: groups - start]
        part = words[8 * start : 8 * (start + step)]
        if len(part) < 8 * len(block):
            block[-1] = 0
        for k in range(8):
            block[: len(part[k::8]), k] = part[k::8]
        _swap(block)
        for slot, row in enumerate(order):
            transposed[:, row, start : start + step] = block[:, slot].T
    return transposed.reshape(8 * width, groups).view(np.uint8)[:, : -(-count // 2)]


def untranspose_nibbles(rows: UInt8, count: int, order: tuple[int, ...]) -> UInt32:
    """The inverse of `transpose_nibbles`.

    Args:
        rows: uint8 [8 * W, ceil(K / 2)].
        count: K.
        order: A permutation of 0..7.

    Returns:
        uint32 [K, W].
    """
    width, groups, step = len(rows) // 8, -(-count // 8), _STRIP // 4
    transposed = _padded(rows, 4 * groups).view(np.uint32).reshape(width, 8, groups)
    words = np.empty((groups, 8, width), np.uint32)
    strip = np.empty((min(step, width), 8, groups + _APART // 4), np.uint32)[:, :, :groups]
    for start in range(0, width, step):
        part = strip[: width - start]
        for slot, row in enumerate(order):
            part[:, slot] = transposed[start : start + step, row]
        words[:, :, start : start + step] = part.transpose(2, 1, 0)
    _swap(words)
    return words.reshape(8 * groups, width)[:count]


def _swap(words: UInt32) -> None:
    """Transposes the 8 x 8 nibbles of every column of [groups, 8, width], in place."""
    groups, _, width = words.shape
    step = max(1, _BLOCK_WORDS // (8 * width or 1))
    for start in range(0, groups, step):
        block = words[start : start + step]
        for apart, shift, mask in _SWAPS:
            pairs = block.reshape(len(block), 8 // (2 * apart), 2, apart, width)
            _exchange(pairs[:, :, 0], pairs[:, :, 1], np.uint32(shift), np.uint32(mask))


def _exchange(first: UInt32, second: UInt32, shift: np.uint32, mask: np.uint32) -> None:
    """Exchanges the high fields of `first` with the low fields of `second`, in place."""
    moved = first >> shift
    moved ^= second
    moved &= mask
    second ^= moved
    moved <<= shift
    first ^= moved


def _padded(rows: UInt8, length: int) -> UInt8:
    if rows.shape[1] == length:
        return np.ascontiguousarray(rows)
    padded = np.zeros((len(rows), length), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded
