"""Codes of `width` bits as `width` separate bit-planes, most significant first.

Element j of a run is bit j % 8 of byte j // 8 of each plane; runs are padded to a whole byte. A prefix of the planes is
a coarser code: this is the layout that can grow and shrink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError

UInt8 = npt.NDArray[np.uint8]


def unpack(planes: Sequence[UInt8], count: int, width: int) -> npt.NDArray[Any]:
    """Returns the codes whose leading planes are given; planes that are missing read as zero.

    Args:
        planes: At most `width` arrays uint8 [..., ceil(count / 8)], most significant first; at least one.
        count: Codes per run.
        width: Bits of a complete code, 1 to 16.

    Returns:
        [..., count], uint8 up to 8 bits, uint16 above.

    Raises:
        BadArgumentError: No plane, too many planes, or a run of another length.
    """
    if not 1 <= len(planes) <= width <= 16:
        raise BadArgumentError("the planes do not fit the code", found=f"{len(planes)} planes of {width} bits")
    codes: npt.NDArray[Any] = np.zeros((*planes[0].shape[:-1], count), np.uint8 if width <= 8 else np.uint16)
    for plane in planes:
        if plane.shape[-1] != -(-count // 8):
            raise BadArgumentError(f"the run is not that of {count} codes", found=f"{plane.shape[-1]} bytes")
        codes += codes  # a shift of bytes has no vector instruction, an addition has
        codes |= np.unpackbits(plane, axis=-1, count=count, bitorder="little")
    if len(planes) < width:
        codes <<= width - len(planes)
    return codes


def pack(codes: npt.NDArray[Any], width: int) -> tuple[UInt8, ...]:
    """Returns the planes of unsigned codes [..., count], each uint8 [..., ceil(count / 8)]; padding bits are zero."""
    return tuple(np.packbits(codes >> bit & 1, axis=-1, bitorder="little") for bit in reversed(range(width)))
