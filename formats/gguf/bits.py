"""Fields of a block as the positions of their bits, and the moves that carry them into normal form and back.

Nearly every GGUF block is a permutation: each of its bits belongs to exactly one field. So a field is described by
where its bits are, least significant first, as an integer array [numbers, width] of positions counted from the block's
first byte (bit b of byte i is 8 * i + b); unpacking applies the permutation, packing its inverse, and nothing can be
lost.

A permutation of bits is carried out in bytes: all bits that go from one byte to another by the same shift move
together, and all pairs of bytes with the same shift and mask move in one numpy operation over many blocks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

_CHUNK_BYTES = 1 << 18
"""Blocks are transposed in pieces that stay in the second-level cache."""


def words(start: int, count: int, width: int, *shifts: int, word: int = 8) -> Positions:
    """The numbers at `shifts` in each of `count` little-endian words of `word` bits from byte `start`.

    Returns:
        [count * len(shifts), width], in the order of the words, then of the shifts; no shift means shift 0.
    """
    base = start * 8 + np.arange(count)[:, None, None] * word + np.array(shifts or (0,))[:, None]
    positions: Positions = base + np.arange(width)  # [count, shifts, width]
    return positions.reshape(-1, width)


def lanes(start: int, size: int, width: int, run: int) -> Positions:
    """The numbers of `size` bytes in runs: first the lowest `width` bits of each byte of a run, then the next, ...

    Returns:
        [size * 8 / width, width].
    """
    places = words(start, size, width, *range(0, 8, width)).reshape(size // run, run, 8 // width, width)
    return places.swapaxes(1, 2).reshape(-1, width)


def joined(low: Positions, *high: Positions) -> Positions:
    """Numbers whose lower bits are at `low` and whose upper bits are at `high`: [numbers, sum of widths]."""
    return np.hstack([low, *high])


class Move(NamedTuple):
    """Bytes `into` take the bits of `mask` from bytes `source`, shifted right (left where negative)."""

    into: slice | npt.NDArray[np.int64]
    source: slice | npt.NDArray[np.int64]
    shift: int
    mask: np.uint8


def span(bits: Positions) -> tuple[int, int]:
    """The first byte in which bits are, and one past the last."""
    return int(bits.min()) // 8, int(bits.max()) // 8 + 1


def moves(order: Positions) -> tuple[Move, ...]:
    """The moves after which bit i is what was bit order[i]; order has whole bytes."""
    masks: dict[tuple[int, int, int], int] = defaultdict(int)
    for i, position in enumerate(order.tolist()):
        masks[(position % 8 - i % 8, i // 8, position // 8)] |= 1 << i % 8
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (shift, into, source), mask in masks.items():
        groups[(shift, mask)].append((into, source))
    return tuple(
        Move(_places([into for into, _ in pairs]), _places([source for _, source in pairs]), shift, np.uint8(mask))
        for (shift, mask), pairs in groups.items()
    )


def _places(numbers: list[int]) -> slice | npt.NDArray[np.int64]:
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step > 0 and numbers == list(range(numbers[0], numbers[0] + step * len(numbers), step)):
        return slice(numbers[0], numbers[-1] + 1, step)
    return np.array(numbers)


def permute(blocks: UInt8, how: tuple[Move, ...], size: int) -> UInt8:
    """Returns blocks [n, bytes] with their bits moved, as [n, size]."""
    if len(how) == 1 and how[0].mask == 0xFF:  # whole bytes
        return np.ascontiguousarray(blocks[:, how[0].source])
    out = np.empty((len(blocks), size), np.uint8)
    step = max(64, _CHUNK_BYTES // max(1, blocks.shape[1]))
    for start in range(0, len(blocks), step):
        columns = np.ascontiguousarray(blocks[start : start + step].T)  # [bytes, blocks]: every move is on long runs
        out[start : start + step] = _moved(columns, how, size).T
    return out


def _moved(columns: UInt8, how: tuple[Move, ...], size: int) -> UInt8:
    moved = np.zeros((size, columns.shape[1]), np.uint8)
    for into, source, shift, mask in how:
        bits: npt.NDArray[Any] = columns[source]
        bits = bits >> np.uint8(shift) if shift >= 0 else bits << np.uint8(-shift)
        moved[into] |= bits & mask
    return moved
