"""Codes of `width` bits as a little-endian bit stream, each run of the last axis padded to a whole byte.

Code j occupies bits [j * width, (j + 1) * width) of its run. Eight codes are exactly `width` bytes, so a group of eight
lies in one 64-bit word for every width up to 8 (above, half a group does), and one word operation moves all of them:

    in a stream      field j starts at bit j * width
    unpacked         field j starts at bit j * 8: the word is eight bytes, one per code

To go from one pitch to the other, field j moves by j * (pitch - width) bits: first the fields with bit 2 of j set (by
four times the difference), then bit 1, then bit 0: three steps for eight codes, and the same in reverse on the way
back. A wider container (3 bits to 4) is the same with another pitch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError

UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]
Codes = npt.NDArray[Any]

_STEP = 1 << 15  # groups at a time: 256 KiB of words, which stays in the second-level cache


def row_bytes(count: int, width: int) -> int:
    """Bytes of a run of `count` codes."""
    return -(-count * width // 8)


def unpack(packed: UInt8, count: int, width: int) -> Codes:
    """Returns the codes of a bit stream.

    Args:
        packed: uint8 [..., ceil(count * width / 8)].
        count: Codes per run.
        width: Bits per code, 1 to 16.

    Returns:
        [..., count], uint8 up to 8 bits, uint16 above; may be a view of `packed`.

    Raises:
        BadArgumentError: The last axis is not that of `count` codes, or the width is out of range.
    """
    _check(packed, count, width)
    if width == 1:
        return np.unpackbits(packed, axis=-1, count=count, bitorder="little")
    if width in (8, 16):
        return np.ascontiguousarray(packed).view(f"<u{width // 8}")
    groups = -(-count // 8)
    stream = _fit(packed, groups * width)  # [runs * groups * width]
    codes = _split(stream) if width == 4 else _move(stream, width, 8) if width < 8 else _unpack_wide(stream, width)
    return codes.reshape(*packed.shape[:-1], groups * 8)[..., :count]


def pack(codes: Codes, width: int) -> UInt8:
    """Returns codes as a bit stream; the bits that pad a run are zero.

    Args:
        codes: Unsigned integers [..., count], each below 2 ** width.
        width: Bits per code, 1 to 16.

    Returns:
        uint8 [..., ceil(count * width / 8)]; may be a view of `codes`.
    """
    _check_width(width)
    count = codes.shape[-1]
    codes = codes.astype("<u1" if width <= 8 else "<u2", copy=False)
    if width == 1:
        return np.packbits(codes, axis=-1, bitorder="little")
    if width in (8, 16):
        return np.ascontiguousarray(codes).view(np.uint8)
    groups = -(-count // 8)
    fields = _fit(codes, groups * 8)  # [runs * groups * 8]
    stream = _join(fields) if width == 4 else _move(fields, 8, width) if width < 8 else _pack_wide(fields, width)
    return stream.reshape(*codes.shape[:-1], groups * width)[..., : row_bytes(count, width)]


def repack(packed: UInt8, count: int, width: int, new_width: int) -> UInt8:
    """Returns the same codes in fields of another width, at most 8 bits and no narrower than the codes.

    Args:
        packed: uint8 [..., ceil(count * width / 8)].
        count: Codes per run.
        width: Bits per code now.
        new_width: Bits per code then.

    Returns:
        uint8 [..., ceil(count * new_width / 8)]; `packed` itself if the widths are equal.
    """
    if not width <= new_width <= 8:
        raise BadArgumentError("codes only move to a wider field", found=new_width, allowed=f"{width} to 8")
    _check(packed, count, width)
    if new_width == width:
        return packed
    groups = -(-count // 8)
    stream = _move(_fit(packed, groups * width), width, new_width)
    return stream.reshape(*packed.shape[:-1], groups * new_width)[..., : row_bytes(count, new_width)]


def _check_width(width: int) -> None:
    if not 1 <= width <= 16:
        raise BadArgumentError("a code has 1 to 16 bits", found=width, allowed="1 to 16")


def _check(packed: UInt8, count: int, width: int) -> None:
    _check_width(width)
    if packed.shape[-1] != row_bytes(count, width):
        raise BadArgumentError(
            f"the run is not that of {count} codes of {width} bits",
            found=f"{packed.shape[-1]} bytes",
            allowed=str(row_bytes(count, width)),
        )


def _fit(array: Codes, length: int) -> Codes:
    """The runs end to end, each padded with zeros to `length`."""
    if array.shape[-1] == length:
        return np.ascontiguousarray(array).reshape(-1)
    padded = np.zeros((*array.shape[:-1], length), array.dtype)
    padded[..., : array.shape[-1]] = array
    return padded.reshape(-1)


def _split(stream: UInt8) -> UInt8:
    """The two nibbles of every byte as two bytes, low nibble first."""
    out = np.empty(stream.size, "<u2")
    for start in range(0, stream.size, _STEP):
        pairs = out[start : start + _STEP]
        pairs[:] = stream[start : start + _STEP]
        pairs |= pairs << 4
        pairs &= 0x0F0F
    return out.view(np.uint8)


def _join(nibbles: UInt8) -> UInt8:
    """Two nibbles per byte, the first one low: the inverse of `_split`."""
    pairs = nibbles.view("<u2")
    out = np.empty(pairs.size, np.uint8)
    for start in range(0, pairs.size, _STEP):
        part = pairs[start : start + _STEP]
        np.copyto(out[start : start + _STEP], part | part >> 4, casting="unsafe")
    return out


def _move(stream: UInt8, width: int, pitch: int) -> UInt8:
    """Groups of eight fields from one pitch to another: [groups * width] -> [groups * pitch] bytes."""
    groups = stream.size // width
    out = np.empty((groups, pitch), np.uint8)
    for start in range(0, groups, _STEP):
        part = out[start : start + _STEP]
        words = np.empty(len(part), np.uint64)
        _load(stream[start * width : (start + len(part)) * width], width, words)
        _shift(words, width, pitch, 8)
        _store(words, part)
    return out.reshape(-1)


def _shift(words: UInt64, width: int, pitch: int, fields: int) -> None:
    """Moves the fields of every word, in place; what lies above them is cleared."""
    moved = np.empty_like(words)
    shift = np.left_shift if pitch > width else np.right_shift
    for stay, distance, move in _steps(width, pitch, fields):
        shift(words, distance, out=moved)
        moved &= move
        words &= stay
        words |= moved


@cache
def _steps(width: int, pitch: int, fields: int) -> list[tuple[np.uint64, np.uint64, np.uint64]]:
    """Per step: the bits that stay, how far the others move, and where those then are."""
    narrow, wide = sorted((width, pitch))
    steps = []
    size = fields // 2  # fields that move together
    while size:
        cluster = (1 << narrow * size) - 1
        stay = sum(cluster << start * wide for start in range(0, fields, 2 * size))
        move = stay << size * (wide if pitch > width else narrow)
        steps.append((np.uint64(stay), np.uint64((wide - narrow) * size), np.uint64(move)))
        size //= 2
    return steps if pitch > width else steps[::-1]


def _load(stream: UInt8, stride: int, words: UInt64) -> None:
    """Sets each word to the eight bytes from every `stride`-th byte on; past the end of the stream there are zeros."""
    if stride in (1, 2, 4, 8) and stream.size == stride * len(words):
        words[:] = stream.view(f"<u{stride}")
        return
    safe = max(len(words) - 8, 0)  # the last words reach past the stream
    tail = np.zeros(8 * stride + 8, np.uint8)
    rest = stream[safe * stride :]
    tail[: rest.size] = rest
    words[:safe] = np.ndarray((safe,), "<u8", stream, strides=(stride,))
    words[safe:] = np.ndarray((len(words) - safe,), "<u8", tail, strides=(stride,))


def _store(words: UInt64, out: UInt8) -> None:
    """The low bytes of every word into the columns of [words, width]."""
    width = out.shape[1]
    if width in (1, 2, 4, 8):
        np.copyto(out.view(f"<u{width}")[:, 0], words, casting="unsafe")
        return
    octets = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    for i in range(width):
        out[:, i] = octets[:, i]


def _unpack_wide(stream: UInt8, width: int) -> Codes:
    """Nine to fifteen bits: [groups * width] bytes -> [groups * 8] codes, four to a word."""
    groups, (middle, odd) = stream.size // width, divmod(4 * width, 8)
    out = np.empty((2, groups, 4), "<u2")
    words = np.empty(groups, np.uint64)
    for half, first, skip in ((0, 0, 0), (1, middle, odd)):
        _load(stream[first:], width, words)
        words >>= np.uint64(skip)
        _shift(words, width, 16, 4)
        out[half] = words.astype("<u8", copy=False).view("<u2").reshape(groups, 4)
    return out.transpose(1, 0, 2).reshape(-1)


def _pack_wide(codes: Codes, width: int) -> UInt8:
    """The inverse of `_unpack_wide`."""
    middle, odd = divmod(4 * width, 8)
    halves = codes.view("<u8").reshape(-1, 2)  # four codes of 16 bits each
    out = np.zeros((len(halves), width), np.uint8)
    for half, first, skip in ((0, 0, 0), (1, middle, odd)):
        words = halves[:, half].astype(np.uint64)  # a copy: it is shifted in place
        _shift(words, 16, width, 4)
        words <<= np.uint64(skip)
        octets = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
        for i in range(-(-(4 * width + skip) // 8)):
            out[:, first + i] |= octets[:, i]
    return out.reshape(-1)
