"""How codes of several codebooks lie in one stored tensor: arrangements of `rearranged.py` that make several buffers.

    apart KEY COUNT BITS TRANSPOSED   signed codes [n, k, COUNT] (or [k, n, COUNT]) <-> COUNT bit streams of n rows
    books KEY COUNT                   [COUNT, ...] <-> COUNT buffers [1, ...]

The buffers are KEY.0, KEY.1, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]


def keys(key: str, count: int) -> tuple[str, ...]:
    """The names of the buffers."""
    return tuple(f"{key}.{i}" for i in range(count))


def apart(part: SourceTensor, key: str, count: str, bits: str, transposed: str) -> Codec:
    """The codec of signed codes that stand side by side."""
    width, axis = int(bits), int(transposed)
    columns = part.shape[1 - axis]
    half, mask = 1 << (width - 1), (1 << width) - 1

    def unpack(raw: Words) -> tuple[Words, ...]:
        if width % 8 and raw.size and not -half <= int(raw.min()) <= int(raw.max()) < half:
            raise BadFileError(
                "a code is out of range",
                where=f"{part.file}: {part.name}",
                found=f"{raw.min()} to {raw.max()}",
                allowed=f"{-half} to {half - 1}",
            )
        unsigned = raw.view(f"<u{raw.itemsize}") & mask
        grids = (unsigned[..., i].T if axis else unsigned[..., i] for i in range(int(count)))
        return tuple(streams.pack(np.ascontiguousarray(grid), width) for grid in grids)

    def pack(*rows: Words) -> Words:
        kind = np.dtype("<i1" if width <= 8 else "<i2")
        grids = [streams.unpack(stream, columns, width).view(kind) for stream in rows]
        signed = [(grid ^ kind.type(half)) - kind.type(half) for grid in grids] if width % 8 else grids
        return np.stack([grid.T if axis else grid for grid in signed], -1)

    return Codec(keys(key, int(count)), unpack, pack, axis=axis)


def books(part: SourceTensor, key: str, count: str) -> Codec:
    """The codec of stacked codebooks."""

    def unpack(raw: Words) -> tuple[Words, ...]:
        return tuple(raw[i : i + 1] for i in range(int(count)))

    return Codec(keys(key, int(count)), unpack, lambda *each: np.concatenate(each), units=int(count))
