"""Codes that overlap in a ring of bits: the arrangement `trellis` of `rearranged.py`; `exl3.py` says how they lie.

trellis KEY BITS   I16 [K / 16, N / 16, 16 * BITS] <-> U16 [N, K], the state of each weight
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import SourceTensor
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]

_TILE = 16


def _order() -> Words:
    """Where weight t of a tile stands in it, input by input: int64 [256]."""
    lane, j = np.divmod(np.arange(_TILE * _TILE), 8)
    inputs = 2 * (lane % 4) + j % 2 + 8 * (j // 2 % 2)
    return np.asarray(inputs * _TILE + lane // 4 + 8 * (j // 4))


_ORDER = _order()
_PLACES = np.argsort(_ORDER)


def trellis(part: SourceTensor, key: str, bits: str) -> Codec:
    """The codec of trellis codes."""
    width, high = int(bits), part.shape[0]
    words = _TILE * width
    first = ((np.arange(_TILE * _TILE) + 1) * width - 16) % (16 * words)  # bit at which a state begins
    at, shift = np.divmod(first, 16)

    def unpack(raw: Words) -> tuple[Words]:
        ring = raw.view("<u2")[..., np.arange(words) ^ 1].astype(np.uint32)
        pairs = ring << np.uint32(16) | np.roll(ring, -1, axis=-1)
        states = (pairs[..., at] >> (16 - shift).astype(np.uint32)).astype(np.uint16)
        tiles = states[..., _PLACES].reshape(high, -1, _TILE, _TILE)  # [K / 16, n, input, output]
        return (np.ascontiguousarray(tiles.transpose(1, 3, 0, 2)).reshape(-1, high * _TILE),)

    def pack(rows: Words) -> Words:
        tiles = rows.reshape(-1, _TILE, high, _TILE).transpose(2, 0, 3, 1)
        states = np.ascontiguousarray(tiles.reshape(high, -1, _TILE * _TILE)[..., _ORDER])
        every = np.unpackbits(states.astype(">u2").view(np.uint8).reshape(*states.shape, 2), axis=-1)
        ring = np.packbits(every[..., 16 - width :].reshape(*states.shape[:2], -1), axis=-1)
        return ring.view(">u2").astype("<u2")[..., np.arange(words) ^ 1].view("<i2")

    return Codec((key,), unpack, pack, axis=1, group=_TILE)
