"""Codes in the order of FLUTE's kernels, and tables of pairs: arrangements of `rearranged.py`.

    flute KEY BITS SIZE P    I16 [N * BITS / 16, K] <-> bit streams of N rows; SIZE numbers (1 or 2) to a code
    pairs KEY                [n, n, 2] <-> one table of n * n vectors [1, n * n, 1, 2]

Rows come in chunks of S * P, a chunk is S strips of P rows: S = 16 / BITS, and 16 for three bits. The codes of row p of
all strips, columns 2 k and 2 k + 1, stand together, each strip's as a pair: column 2 k + 1 in the low BITS, 2 k above.

    4, 2 bits   word [c * P + p, 2 k + a] has the pairs of strips a * S / 2 to (a + 1) * S / 2, the first lowest
    3 bits      the pairs of the strips in the order 0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15 are a run of
                96 bits in six words [plane, c, p, 2 k + a]; where planes 1 and 2 lie behind all of plane 0, chunk by
                chunk: 16 bits for a = 0 and 14 for a = 1, plane by plane, then the upper two bits of the latter

(Layout: flute-kernel 0.3, packing_utils.py and utils.py.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]

_STRIPS = {4: 4, 3: 16, 2: 8}
_ORDER = np.array([0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15])
_PLACES = np.argsort(_ORDER)


def height(bits: int, rows: int) -> int:
    """Rows of a chunk, with strips of so many rows."""
    return _STRIPS[bits] * rows


def _run() -> Words:
    """Where the 96 bits of a run lie in six words (plane, a): int64 [96]."""
    main = [32 * plane + bit for plane in range(3) for bit in (*range(16), *range(16, 30))]
    return np.array(main + [32 * plane + bit for plane in range(3) for bit in (30, 31)])


_RUN = _run()
_BITS = np.argsort(_RUN)


def flute(part: SourceTensor, key: str, bits: str, size: str, rows: str) -> Codec:
    """The codec of packed codes."""
    width, strip, columns = int(bits), int(rows), part.shape[1]
    chunk = height(width, strip)
    whole = width == 3

    def unpack(raw: Words) -> tuple[Words]:
        pairs = _three(raw, strip) if whole else _apart(raw, width, strip)
        if size == "2":
            return (streams.pack(pairs, 2 * width),)
        halves = np.stack((pairs >> width, pairs & ((1 << width) - 1)), axis=-1)
        return (streams.pack(halves.reshape(len(pairs), -1), width),)

    def pack(stream: Words) -> Words:
        if size == "2":
            pairs = streams.unpack(stream, columns // 2, 2 * width)
        else:
            codes = streams.unpack(stream, columns, width)
            pairs = codes[:, ::2] << np.uint8(width) | codes[:, 1::2]
        return _three_back(pairs, strip) if whole else _together(pairs, width, strip)

    if whole:
        return Codec((key,), unpack, pack, group=part.shape[0] // 3 * 16, units=part.shape[0])
    return Codec((key,), unpack, pack, group=chunk, units=strip)


def _apart(raw: Words, width: int, strip: int) -> Words:
    """Words of 4 or 2 bits -> pairs uint8 [N, K / 2]."""
    words = np.ascontiguousarray(raw).view("<u2").reshape(-1, strip, raw.shape[1] // 2, 2, 1)
    shifts = np.arange(0, 16, 2 * width, dtype=np.uint16)
    pairs = (words >> shifts & np.uint16((1 << 2 * width) - 1)).astype(np.uint8)
    return pairs.transpose(0, 3, 4, 1, 2).reshape(-1, raw.shape[1] // 2)


def _together(pairs: Words, width: int, strip: int) -> Words:
    half, wide = _STRIPS[width] // 2, pairs.shape[1]
    fields = pairs.reshape(-1, 2, half, strip, wide).transpose(0, 3, 4, 1, 2).astype(np.uint16)
    shifts = np.arange(0, 16, 2 * width, dtype=np.uint16)
    words: Words = np.bitwise_or.reduce(fields << shifts, axis=-1)
    return words.reshape(-1, 2 * wide).view("<i2")


def _three(raw: Words, strip: int) -> Words:
    """Words of 3 bits -> pairs uint8 [N, K / 2]; all of them."""
    wide, third = raw.shape[1] // 2, len(raw) // 3
    first = raw[:third].reshape(-1, 1, strip, wide, 2)
    rest = raw[third:].reshape(-1, 2, strip, wide, 2)
    words = np.concatenate((first, rest), axis=1).transpose(0, 2, 3, 1, 4)  # [c, p, k, plane, a]
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape[:3], 12)
    run = np.unpackbits(octets, axis=-1, bitorder="little")[..., _RUN]
    pairs = np.packbits(run.reshape(*run.shape[:3], 16, 6), axis=-1, bitorder="little")[..., 0]
    return np.ascontiguousarray(pairs[..., _PLACES].transpose(0, 3, 1, 2)).reshape(-1, wide)


def _three_back(pairs: Words, strip: int) -> Words:
    wide = pairs.shape[1]
    sorted_pairs = pairs.reshape(-1, 16, strip, wide).transpose(0, 2, 3, 1)[..., _ORDER]
    every = np.unpackbits(np.ascontiguousarray(sorted_pairs)[..., None], axis=-1, bitorder="little")[..., :6]
    run = every.reshape(*sorted_pairs.shape[:3], 96)[..., _BITS]
    octets = np.packbits(run, axis=-1, bitorder="little")
    words = octets.view("<i2").reshape(*octets.shape[:3], 3, 2).transpose(3, 0, 1, 2, 4)
    first = words[0].reshape(-1, 2 * wide)
    rest = np.ascontiguousarray(words[1:].transpose(1, 0, 2, 3, 4)).reshape(-1, 2 * wide)
    return np.concatenate((first, rest))


def pairs(part: SourceTensor, key: str) -> Codec:
    """The codec of a table of pairs."""
    count = part.shape[0]

    def unpack(raw: Words) -> tuple[Words]:
        return (raw.reshape(-1, count * count, 1, 2),)

    return Codec((key,), unpack, lambda rows: rows.reshape(-1, count, 2), units=count)
