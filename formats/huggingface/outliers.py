"""Words of SpQR as buffers: arrangements of `rearranged.py`; `spqr.py` says what they mean.

spqr COLUMNS                        I64 [n] <-> codes, scale, zero: bit streams of rows; scale.zero, scale.scale,
                                    zero.zero, zero.scale: F16, a row for 16 rows
outliers SPAN ROWS COLUMNS COUNT    I32 [n] <-> where: a bit per element; added: F16 [COUNT], row by row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Shape, SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec
from qdeploy.store.safetensors import TensorEntry

Words = npt.NDArray[Any]

_TILE, _BITS, _AT = 16, 3, 54
_ORDER = ("scale.scale", "zero.scale", "scale.zero", "zero.zero")
"""What the float16 of a tile are, from its first row on."""
KEYS = ("codes", "scale", "zero", *_ORDER)


def spqr(part: SourceTensor, columns: str) -> Codec:
    """The codec of words with a row of a tile each."""
    groups = int(columns) // _TILE

    def unpack(raw: Words) -> tuple[Words, ...]:
        tiles = raw.view("<u8").reshape(-1, groups, _TILE)
        fields = (tiles[..., None] >> (_BITS * np.arange(18)).astype(np.uint64) & np.uint64(7)).astype(np.uint8)
        rows = fields.transpose(0, 2, 1, 3).reshape(-1, groups, 18)  # [n, groups, scale, zero, codes]
        octets = (tiles[..., ::2] >> np.uint64(_AT) & np.uint64(255)).astype(np.uint8)
        above = np.ascontiguousarray(octets).view("<f2")  # [n / 16, groups, 4]
        small = (rows[..., 2:].reshape(len(rows), groups * _TILE), rows[..., 0], rows[..., 1])
        packed = (streams.pack(np.ascontiguousarray(field), _BITS) for field in small)
        return (*packed, *(np.ascontiguousarray(above[..., i]) for i in range(4)))

    def pack(*rows: Words) -> Words:
        codes = streams.unpack(rows[0], groups * _TILE, _BITS).reshape(-1, groups, _TILE)
        scale, zero = (streams.unpack(each, groups, _BITS)[..., None] for each in rows[1:3])
        fields = np.concatenate((scale, zero, codes), axis=-1).astype(np.uint64)
        words = np.bitwise_or.reduce(fields << (_BITS * np.arange(18)).astype(np.uint64), axis=-1)  # [n, groups]
        tiles = words.reshape(-1, _TILE, groups).swapaxes(1, 2)
        octets = np.stack(rows[3:], axis=-1).astype("<f2").view(np.uint8)  # [n / 16, groups, 8]
        whole = tiles | np.repeat(octets, 2, axis=-1).astype(np.uint64) << np.uint64(_AT)
        return np.asarray(whole.reshape(-1).view("<i8"))

    return Codec(KEYS, unpack, pack, units=groups * _TILE, each=(_TILE, _TILE, _TILE, 1, 1, 1, 1))


@dataclass(frozen=True, eq=False)
class Outliers:
    """Which words are outliers, and of which element.

    Attributes:
        rows: Row of each outlier, in the order of the matrix.
        places: Where each stands among the words.
        count: How many there are.
    """

    rows: Words
    places: Words
    count: int

    @classmethod
    def of(cls, offsets: Words, entry: TensorEntry, shape: Shape, span: int) -> Outliers:
        """By the offsets of rows (span 1), or of 16 rows; BadFileError where they contradict the words."""
        words, starts = entry.shape[0], offsets.astype(np.int64)
        steps = starts[1:] - starts[:-1]
        if starts[0] != 0 or starts[-1] != words or steps.min() < 0 or (steps % span).any():
            raise BadFileError(
                "offsets of outliers are no ascending ones",
                where=entry.name,
                found=f"{starts[0]} to {starts[-1]}",
                allowed=f"0 to {words}, steps of {span}",
            )
        rows = np.repeat(np.arange(len(steps)), steps)
        if span > 1:
            turn = np.arange(words) - np.repeat(starts[:-1], steps)
            rows = rows * span + turn % span
        raw = entry.slab(0, 0, words).view("<u4")
        columns = raw & np.uint32(0xFFFF)
        if words and int(columns.max()) >= shape[1]:
            raise BadFileError(
                "an outlier lies outside of its row",
                where=entry.name,
                found=int(columns.max()),
                allowed=f"below {shape[1]}",
            )
        places = np.flatnonzero(raw) if span > 1 else np.arange(words)  # a word of zeros fills up
        order = np.lexsort((columns[places], rows[places]))
        places = places[order]
        elements = rows[places].astype(np.int64) * shape[1] + columns[places]
        if (np.diff(elements) == 0).any():
            raise BadFileError("an element has two outliers", where=entry.name)
        return cls(rows[places], places, len(places))


def outliers(count: int, shape: Shape, span: int, known: Outliers | None = None) -> Codec:
    """The codec of outliers; `known` is needed to read them only."""
    high, wide = shape

    def unpack(raw: Words) -> tuple[Words, Words]:
        if not raw.size:
            return np.empty((0, -(-wide // 8)), np.uint8), np.empty(0, "<f2")
        words, mask = raw.view("<u4"), np.zeros(shape, np.uint8)
        if known is None:
            raise BadFileError("outliers without offsets")
        chosen = words[known.places]
        mask[known.rows, chosen & np.uint32(0xFFFF)] = 1
        return streams.pack(mask, 1), (chosen >> np.uint32(16)).astype(np.uint16).view("<f2")

    def pack(mask: Words, added: Words) -> Words:
        rows, columns = np.nonzero(streams.unpack(mask, wide, 1))
        words = columns.astype(np.uint32) | added.view("<u2").astype(np.uint32) << np.uint32(16)
        if span == 1:
            return words.view("<i4")
        per_row = np.bincount(rows, minlength=high)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        longest = per_row.reshape(-1, span).max(axis=1)
        starts = np.cumsum(longest * span) - longest * span
        whole = np.zeros(int(longest.sum()) * span, np.uint32)
        whole[starts[rows // span] + within * span + rows % span] = words
        return whole.view("<i4")

    return Codec(("where", "added"), unpack, pack, each=(high, count), units=1 << 62)


def arranged(part: SourceTensor, span: str, rows: str, columns: str, count: str) -> Codec:
    """The codec of outliers by its line of text, for writing."""
    return outliers(int(count), (int(rows), int(columns)), int(span))
