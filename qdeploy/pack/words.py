"""Matrices of 32-bit words that hold packed codes, turned so that the codes of one weight row lie side by side.

Memory moves in cache lines of 64 bytes. A transpose that fills the result in strips one line wide writes every line once,
which is two to three times as fast as numpy's own order; nothing else here is needed to run at the speed of memory.

Codes of four bits that are packed across the rows of the weight (AWQ) also have to be turned inside of the words: eight
words of eight nibbles are an 8 x 8 matrix, transposed by swapping its off-diagonal blocks of 4, 2 and 1 nibbles (Warren,
Hacker's Delight, section 7-3), all columns at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Matrix = npt.NDArray[Any]

_LINE = 64
_BLOCK_WORDS = 1 << 16  # 256 KiB: swapped in place while they are in the second-level cache
_SWAPS = ((4, 16, 0x0000FFFF), (2, 8, 0x00FF00FF), (1, 4, 0x0F0F0F0F))  # rows apart, bits apart, mask


def transpose(matrix: Matrix) -> Matrix:
    """Returns the transpose of a matrix as a contiguous array of the same type."""
    words = matrix.view(f"u{matrix.itemsize}")
    turned = np.empty(words.shape[::-1], words.dtype)
    strip = _LINE // words.itemsize
    for start in range(0, len(words), strip):
        turned[:, start : start + strip] = words[start : start + strip].T
    return turned.view(matrix.dtype)


def transpose_nibbles(words: UInt32, order: tuple[int, ...]) -> UInt8:
    """Turns nibbles packed across columns into runs of nibbles, low one first.

    Args:
        words: uint32 [K, W]; nibble i of words[k, w] is the code of row 8 * w + order[i] at column k.
        order: A permutation of 0..7.

    Returns:
        uint8 [8 * W, ceil(K / 2)]: the codes of each row.
    """
    count, width = words.shape
    groups = -(-count // 8)
    turned = np.empty((width, 8, groups), np.uint32)
    step = _LINE // 4
    for start in range(0, groups, step):
        block = np.zeros((min(step, groups - start), 8, width), np.uint32)
        part = words[8 * start : 8 * (start + step)]
        block.reshape(-1, width)[: len(part)] = part
        _swap(block)
        for slot, row in enumerate(order):
            turned[:, row, start : start + step] = block[:, slot].T
    return turned.reshape(8 * width, groups).view(np.uint8)[:, : -(-count // 2)]


def untranspose_nibbles(rows: UInt8, count: int, order: tuple[int, ...]) -> UInt32:
    """The inverse of `transpose_nibbles`.

    Args:
        rows: uint8 [8 * W, ceil(K / 2)].
        count: K.
        order: A permutation of 0..7.

    Returns:
        uint32 [K, W].
    """
    width, groups = len(rows) // 8, -(-count // 8)
    turned = _padded(rows, 4 * groups).view(np.uint32).reshape(width, 8, groups)
    words = np.empty((groups, 8, width), np.uint32)
    step = _LINE // 4
    for start in range(0, width, step):
        words[:, :, start : start + step] = turned[start : start + step, order].transpose(2, 1, 0)
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
