"""The words of GPTQ as rows of codes, and back.

Codes only need their words transposed. Zero-points also change their axis, and in the first version of the format one
is subtracted from each. For 2, 4 and 8 bits that is a single subtraction mod 2^32 per word (0x55555555, 0x11111111,
0x01010101): below a zero-point of 0 the borrow runs into the next field, and only the addition of the same constant to
the whole word takes it back. For 3 bits, whose fields straddle words, each field is decremented separately, mod 8.
GPTQModel does the same, in both directions. Fields behind the last zero-point hold 0 before the subtraction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.pack import bits as streams
from qdeploy.pack.words import transpose
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]

_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def ramp(columns: int, group: int) -> Words:
    """Returns the g_idx of columns that belong to groups in order: int32 [columns]."""
    return (np.arange(columns, dtype=np.int64) // group).astype("<i4")


def fields(words: Words, bits: int) -> Words:
    """Returns the fields of int32 [G, words] as they are stored: uint8 [G, words * 32 // bits]."""
    return streams.unpack(words.view(np.uint8), words.shape[1] * 32 // bits, bits)


def codes_codec(columns: int, bits: int) -> Codec:
    """qweight, int32 [words, N], and codes, uint8 [N, ceil(columns * bits / 8)]."""
    size = streams.row_bytes(columns, bits)

    def unpack(raw: Words) -> tuple[Words]:  # I32 [words, n] -> U8 [n, size]
        return (transpose(raw).view(np.uint8)[:, :size],)

    def pack(rows: Words) -> Words:
        return transpose(_whole_words(rows).view("<i4"))

    return Codec(("codes",), unpack, pack, axis=1)


def zeros_codec(rows: int, groups: int, bits: int, minus_one: bool) -> Codec:
    """qzeros, int32 [groups, words], and zero-points, uint8 [rows, ceil(groups * bits / 8)]."""
    step, words = (32, 3) if bits == 3 else (32 // bits, 1)
    mask = (1 << bits) - 1

    def unpack(raw: Words) -> tuple[Words]:  # I32 [G, words] -> U8 [n, ceil(G * bits / 8)]
        if minus_one and bits in _ONES:
            raw = (raw.view("<u4") + np.uint32(_ONES[bits])).view("<i4")
        codes = fields(raw, bits)
        if minus_one and bits not in _ONES:
            codes = (codes + 1) & mask
        return (streams.pack(transpose(codes), bits),)

    def pack(packed: Words) -> Words:
        codes = transpose(streams.unpack(packed, groups, bits))  # [G, n]
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % step)))  # unused fields hold 0 before the subtraction
        if minus_one and bits not in _ONES:
            codes = (codes - 1) & mask
        raw = _whole_words(streams.pack(codes, bits)).view("<u4")
        return (raw - np.uint32(_ONES[bits]) if minus_one and bits in _ONES else raw).view("<i4")

    return Codec(("zero",), unpack, pack, axis=1, group=step, units=words, rows=rows)


def _whole_words(stream: Words) -> Words:
    missing = -stream.shape[1] % 4
    return np.pad(stream, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(stream)
