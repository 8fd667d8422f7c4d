"""CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of many bytes with numpy.

A CRC without its initial value is linear over GF(2): the CRC of a page is the sum (xor) of what each byte gives at its
distance from the end. So a page is cut into rows of 256 bytes whose bytes are looked up, one table per place in a row,
all rows at a time; then the 256 results are moved to the end of the page, again by look-ups. The initial value is added
last: it is a message of 32 ones in front.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native.layout import PAGE

Words = npt.NDArray[np.uint32]
_POLYNOMIAL = 0x82F63B78
_ROW = 256
_SLAB = 128  # pages at a time


def page_checksums(data: npt.NDArray[np.uint8]) -> Words:
    """The CRC-32C of every page of 65536 bytes; the last one may be short."""
    full, rest = divmod(len(data), PAGE)
    checksums = np.empty(full + (rest > 0), np.uint32)
    start = _moved(0xFFFFFFFF, PAGE)
    for first in range(0, full, _SLAB):
        part = data[first * PAGE : min(first + _SLAB, full) * PAGE]
        checksums[first : first + _SLAB][: len(part) // PAGE] = ~(_raw(part) ^ np.uint32(start))
    if rest:
        checksums[-1] = crc32c(data[full * PAGE :])
    return checksums


def crc32c(data: npt.NDArray[np.uint8] | bytes) -> int:
    """The CRC-32C of a run of bytes."""
    run = np.frombuffer(data, np.uint8)
    front = -len(run) % PAGE  # zeros in front change nothing but the initial value's distance, which is added apart
    padded = np.concatenate((np.zeros(front, np.uint8), run))
    total = 0
    for page in _raw(padded).tolist() if len(padded) else []:
        total = _moved(total, PAGE) ^ page
    return total ^ _moved(0xFFFFFFFF, len(run)) ^ 0xFFFFFFFF


def _raw(data: npt.NDArray[np.uint8]) -> Words:
    """CRCs of whole pages from an initial value of zero."""
    columns = np.ascontiguousarray(data.reshape(-1, _ROW).T)  # [256, rows]
    tables, rows = _tables()[::-1], np.zeros(columns.shape[1], np.uint32)
    for table, column in zip(tables, columns, strict=True):
        rows ^= np.take(table, column)
    parts = rows.reshape(-1, PAGE // _ROW)
    pages = np.zeros(len(parts), np.uint32)
    for place, moves in enumerate(_row_moves()):
        pages ^= _by_bytes(moves, parts[:, place])
    return pages


@cache
def _tables() -> Words:
    """[256, 256]: what a byte gives that has i bytes behind it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    tables = np.empty((_ROW, 256), np.uint32)
    tables[0] = table
    for i in range(1, _ROW):
        tables[i] = _step(tables[i - 1], table)
    return tables


def _step(crc: Words, table: Words) -> Words:
    moved: Words = (crc >> np.uint32(8)) ^ table[crc & np.uint32(255)]
    return moved


@cache
def _row_moves() -> Words:
    """[256 places of a row in a page, 4 bytes of its CRC, 256]: the same behind all the rows that follow."""
    bytes_of = np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32))[:, None]
    row = bytes_of
    for _ in range(_ROW):
        row = _step(row, _tables()[0])
    moves = np.empty((PAGE // _ROW, 4, 256), np.uint32)
    moves[-1] = bytes_of
    for place in range(PAGE // _ROW - 2, -1, -1):  # a move is linear: the move by one more row, by look-ups
        moves[place] = _by_bytes(row, moves[place + 1])
    return moves


def _by_bytes(move: Words, crcs: Words) -> Words:
    """Moves CRCs by the tables of their four bytes: move [4, 256]."""
    moved = np.zeros(crcs.shape, np.uint32)
    for k in range(4):
        moved ^= np.take(move[k], (crcs >> np.uint32(8 * k)) & np.uint32(255))
    return moved


@cache
def _power(exponent: int) -> tuple[int, ...]:
    """The images of the 32 bits under 2**exponent zero bytes."""
    if exponent == 0:
        return tuple(_step(np.array([1 << i for i in range(32)], np.uint32), _tables()[0]).tolist())
    half = _power(exponent - 1)
    return tuple(_image(half, bit) for bit in half)


def _image(matrix: tuple[int, ...], vector: int) -> int:
    total = 0
    for i, column in enumerate(matrix):
        if vector >> i & 1:
            total ^= column
    return total


def _moved(crc: int, count: int) -> int:
    """A CRC with `count` zero bytes behind it."""
    for exponent in range(count.bit_length()):
        if count >> exponent & 1:
            crc = _image(_power(exponent), crc)
    return crc
