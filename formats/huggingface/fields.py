"""Codes in any order of fields of a word: arrangements of `rearranged.py`.

    across KEY ROWS BITS SHIFTS    words [K, W]: field i, at bit SHIFTS[i], of word (k, w) is the code of row
                                   len(SHIFTS) * w + i at column k <-> bit streams over the K columns of ROWS rows
    along KEY COUNT BITS SHIFTS    words [n, W]: the same within a row <-> bit streams over COUNT columns of n rows
    column KEY ROWS BITS SHIFTS    words [W] <-> bit streams of one code in ROWS rows

What fills up the last word is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.pack.words import transpose_nibbles, untranspose_nibbles
from qdeploy.store.codec import Codec
from qdeploy.store.storage import storage_dtype

Words = npt.NDArray[Any]


def across(part: SourceTensor, key: str, rows: str, bits: str, *places: str) -> Codec:
    """The codec of words across the rows."""
    width, shifts, height, count = int(bits), tuple(map(int, places)), int(rows), part.shape[0]
    per, word = len(shifts), storage_dtype(part.dtype)
    if width == 4 and word.itemsize == 4:
        order = tuple(np.argsort(shifts).tolist())
        return Codec(
            (key,),
            lambda raw: (transpose_nibbles(raw.view("<u4"), order),),
            lambda stream: untranspose_nibbles(_filled(stream, per), count, order).view(word),
            axis=1,
            group=per,
            rows=height,
        )

    def unpack(raw: Words) -> tuple[Words]:
        return (streams.pack(np.ascontiguousarray(_split(raw, width, shifts).T), width),)

    def pack(stream: Words) -> Words:
        return _join(streams.unpack(_filled(stream, per), count, width).T, shifts, word)

    return Codec((key,), unpack, pack, axis=1, group=per, rows=height)


def along(part: SourceTensor, key: str, count: str, bits: str, *places: str) -> Codec:
    """The codec of words within the rows."""
    width, shifts, columns, word = int(bits), tuple(map(int, places)), int(count), storage_dtype(part.dtype)
    whole = part.shape[-1] * len(shifts)

    def unpack(raw: Words) -> tuple[Words]:
        return (streams.pack(_split(raw, width, shifts)[:, :columns], width),)

    def pack(stream: Words) -> Words:
        codes = np.zeros((len(stream), whole), np.uint8)
        codes[:, :columns] = streams.unpack(stream, columns, width)
        packed: Words = _join(codes, shifts, word)
        return packed

    return Codec((key,), unpack, pack)


def column(part: SourceTensor, key: str, rows: str, bits: str, *places: str) -> Codec:
    """The codec of words of a vector."""
    width, shifts, word = int(bits), tuple(map(int, places)), storage_dtype(part.dtype)
    per = len(shifts)

    def unpack(raw: Words) -> tuple[Words]:
        return (_split(raw[None], width, shifts).reshape(-1, 1),)

    def pack(codes: Words) -> Words:
        packed: Words = _join(_filled(codes, per).reshape(1, -1), shifts, word)[0]
        return packed

    return Codec((key,), unpack, pack, group=per, rows=int(rows))


def _split(words: Words, width: int, shifts: tuple[int, ...]) -> Words:
    """Words [n, W] -> codes uint8 [n, W * len(shifts)]."""
    unsigned = np.ascontiguousarray(words).view(f"<u{words.itemsize}")[..., None]
    fields: Words = unsigned >> np.array(shifts, unsigned.dtype) & unsigned.dtype.type((1 << width) - 1)
    return fields.astype(np.uint8).reshape(len(words), -1)


def _join(codes: Words, shifts: tuple[int, ...], word: np.dtype[Any]) -> Words:
    """Codes [n, W * len(shifts)] -> words [n, W]."""
    unsigned = np.dtype(f"<u{word.itemsize}")
    fields = codes.reshape(len(codes), -1, len(shifts)).astype(unsigned) << np.array(shifts, unsigned)
    packed: Words = np.bitwise_or.reduce(fields, axis=2).view(word)
    return packed


def _filled(rows: Words, per: int) -> Words:
    """Rows up to a whole number of words."""
    missing = -len(rows) % per
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows
