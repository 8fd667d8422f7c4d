"""Codes in the order of a GPU kernel: arrangements of `rearranged.py`.

tiled KEY COLUMNS: I8 [K, N] <-> I8 [N, COLUMNS = K], two rows and 64 columns to a tile; `eetq.py` says how.
stacked KEY COUNT: [W, COUNT, N] <-> the transposes KEY.0 and so on, [N, W] each, of words as U8 [N, 4 W].
warped KEY COUNT: I32 [COUNT, N, W] <-> bit planes KEY.0 and so on, U8 [N, 4 W] each; `anyprec.py` says how.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import SourceTensor
from qdeploy.store.codec import Codec
from qdeploy.store.storage import storage_dtype

Words = npt.NDArray[Any]

_FLIP = np.int8(-128)
REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
"""Every byte with its bits in the other order."""


def tiled(part: SourceTensor, key: str, columns: str) -> Codec:
    """The codec of tiles."""
    wide, rows = int(columns), part.shape[1]
    common = math.gcd(rows // 2, part.shape[0])

    def unpack(raw: Words) -> tuple[Words]:
        pairs = np.ascontiguousarray(raw).reshape(-1, wide // 64, 2, 4, 8, 2).transpose(0, 2, 1, 3, 5, 4)
        return (pairs.reshape(-1, wide) ^ _FLIP,)

    def pack(codes: Words) -> Words:
        tiles = codes.reshape(-1, 2, wide // 64, 4, 2, 8).transpose(0, 2, 1, 3, 5, 4)
        return tiles.reshape(-1, rows) ^ _FLIP

    return Codec((key,), unpack, pack, group=rows // common, units=part.shape[0] // common)


def stacked(part: SourceTensor, key: str, count: str) -> Codec:
    """The codec of transposed matrices whose rows take turns."""
    keys, dtype = tuple(f"{key}.{i}" for i in range(int(count))), storage_dtype(part.dtype)
    octets = part.dtype == "I32"

    def unpack(raw: Words) -> tuple[Words, ...]:
        matrices = np.ascontiguousarray(raw.transpose(1, 2, 0))
        return tuple(matrices.view(np.uint8) if octets else matrices)

    def pack(*matrices: Words) -> Words:
        return np.stack([np.ascontiguousarray(m).view(dtype) for m in matrices]).transpose(2, 0, 1)

    return Codec(keys, unpack, pack, axis=2)


def warped(part: SourceTensor, key: str, count: str) -> Codec:
    """The codec of bit planes in the order of a warp."""
    keys, words = tuple(f"{key}.{i}" for i in range(int(count))), part.shape[2]
    cut = words // 32 * 32

    def unpack(raw: Words) -> tuple[Words, ...]:
        octets = np.ascontiguousarray(raw).view(np.uint8).reshape(*raw.shape, 4)[..., ::-1]
        chunks = [_transposed(c.reshape(*raw.shape[:2], -1, n, 4)) for c, n in _chunks(octets, cut, words)]
        return tuple(REVERSED[np.concatenate(chunks, axis=2)])

    def pack(*planes: Words) -> Words:
        octets = REVERSED[np.stack(planes)].reshape(len(planes), -1, words, 4)
        chunks = [_transposed(c.reshape(*c.shape[:2], -1, 4, n)) for c, n in _chunks(octets, cut, words)]
        whole = np.concatenate(chunks, axis=2).reshape(octets.shape)[..., ::-1]
        return np.ascontiguousarray(whole).view("<i4")[..., 0]

    return Codec(keys, unpack, pack, axis=1)


def _chunks(octets: Words, cut: int, words: int) -> list[tuple[Words, int]]:
    """The warps of 32 words, and what is left, with the words of each."""
    parts = [(octets[:, :, :cut], 32), (octets[:, :, cut:], words - cut)]
    return [(part, n) for part, n in parts if part.shape[2]]


def _transposed(chunks: Words) -> Words:
    """[p, n, chunks, a, b] -> [p, n, chunks * b * a]."""
    return chunks.swapaxes(3, 4).reshape(*chunks.shape[:2], -1)
