"""Codes of 8 bits in the tiles of a GPU kernel: an arrangement of `rearranged.py`.

tiled KEY COLUMNS: I8 [K, N] <-> I8 [N, COLUMNS = K], two rows and 64 columns to a tile; `eetq.py` says how.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import SourceTensor
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]

_FLIP = np.int8(-128)


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
