"""Codes below `base` as the digits of one byte per `digits` codes, the first code the least significant.

A byte is sum(code[i] * base ** i), so 3 / 5 holds five ternary codes in 243 of its 256 values. A run whose length is
not a multiple of `digits` ends in a byte whose missing digits are zero.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError

UInt8 = npt.NDArray[np.uint8]


def unpack(packed: UInt8, count: int, base: int, digits: int) -> UInt8:
    """Returns the digits of every byte; digits above the last are dropped, so each is below `base` for any byte.

    Args:
        packed: uint8 [..., ceil(count / digits)].
        count: Codes per run.
        base: At least 2.
        digits: Codes per byte; base ** digits is at most 256.

    Returns:
        uint8 [..., count].

    Raises:
        BadArgumentError: The digits do not fit a byte, or the last axis is not that of `count` codes.
    """
    table = _digits(base, digits)
    if packed.shape[-1] != -(-count // digits):
        raise BadArgumentError(
            f"the run is not that of {count} codes", found=f"{packed.shape[-1]} bytes", allowed=str(-(-count // digits))
        )
    codes: UInt8 = table[packed]  # [..., bytes, digits]
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * digits)[..., :count]


def pack(codes: npt.NDArray[Any], base: int, digits: int) -> UInt8:
    """Returns codes [..., count], each below `base`, as uint8 [..., ceil(count / digits)]."""
    _digits(base, digits)
    count = codes.shape[-1]
    octets = np.zeros((*codes.shape[:-1], -(-count // digits)), np.uint8)
    for i in range(digits):
        column = codes[..., i::digits].astype(np.uint8, copy=False)
        octets[..., : column.shape[-1]] += column * np.uint8(base**i)
    return octets


@cache
def _digits(base: int, digits: int) -> UInt8:
    """[256, digits]: the digits of every byte."""
    if base < 2 or digits < 1 or base**digits > 256:
        raise BadArgumentError(
            "the digits do not fit a byte", found=f"{digits} of base {base}", allowed="base ** digits <= 256"
        )
    powers = base ** np.arange(digits)
    table: UInt8 = (np.arange(256)[:, None] // powers % base).astype(np.uint8)
    table.setflags(write=False)
    return table
