"""TQ1_0, the only block type of GGUF that does not permute bits: 256 ternary codes in 52 bytes, and a float16 scale.

    48 bytes   five codes each: byte j of the first 32 holds elements j, j + 32, ..., j + 128;
               byte j of the next 16 holds elements 160 + j, 160 + j + 16, ..., 160 + j + 64
     4 bytes   four codes each: byte j holds elements 240 + j, 240 + j + 4, 240 + j + 8, 240 + j + 12
     2 bytes   d, float16; the value is (code - 1) * d

A byte is a fraction of 256: with t the number whose base-3 digits are the codes, the first the most significant and a
missing fifth one zero, it is ceil(t * 256 / 243), so that multiplying by 3 pushes the digits out at the top one by one.
In normal form five codes are a plain base-3 number. Bytes that are no such value (13 of 256) have the same codes as
one that is; packing the codes does not give them back, so the residue keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Buffer, Codes, Layout, Param, Rows, Shape
from qdeploy.pack import radix

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]

_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # first byte, bytes, codes per byte
_DIGITS = ((np.arange(256) * 3 ** np.arange(5)[:, None] % 256 * 3) >> 8).astype(np.uint8)  # [5, 256], by byte
_OCTETS = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)  # by number


class TernaryBlock:
    """The block type; the same face as `gguf_blocks.Block`."""

    number, elements, size = 34, 256, 54
    keys = ("codes", "scale")

    def unpack(self, raw: UInt8) -> tuple[Array, ...]:
        """Blocks [..., blocks * 54] to codes U8 [..., ceil(256 * blocks / 5)] and scales F16 [..., blocks]."""
        return self.field(raw, "codes"), self.field(raw, "scale")

    def field(self, raw: UInt8, key: str) -> Array:
        """One of the two."""
        count = raw.shape[-1] // self.size
        blocks = raw.reshape(*raw.shape[:-1], count, self.size)
        if key == "scale":
            return np.ascontiguousarray(blocks[..., 52:]).view("<f2")[..., 0]
        codes = np.empty((*blocks.shape[:-1], self.elements), np.uint8)
        at = 0
        for first, width, digits in _RUNS:
            run = blocks[..., first : first + width]
            for digit in _DIGITS[:digits]:
                codes[..., at : at + width] = digit[run]
                at += width
        return radix.pack(codes.reshape(*raw.shape[:-1], count * self.elements), 3, 5)

    def pack(self, *rows: Array) -> UInt8:
        """Codes and scales back to blocks."""
        packed, scale = rows
        codes = radix.unpack(packed, scale.shape[-1] * self.elements, 3, 5).reshape(*scale.shape, self.elements)
        blocks = np.empty((*scale.shape, self.size), np.uint8)
        blocks[..., 52:] = np.ascontiguousarray(scale)[..., None].view(np.uint8)
        at = 0
        for first, width, digits in _RUNS:
            number = np.zeros((*scale.shape, width), np.uint8)
            for i in range(digits):
                number += codes[..., at : at + width] * np.uint8(3 ** (4 - i))
                at += width
            blocks[..., first : first + width] = _OCTETS[number]
        return blocks.reshape(*packed.shape[:-1], -1)

    def codes(self, shape: Shape, rows: Mapping[str, Rows]) -> Codes:
        """The description of a tensor of `shape`."""
        lead, columns = shape[:-1], shape[-1]
        scales = (*lead, columns // self.elements)
        scale = Codes(scales, (Buffer("scale", "F16", scales, rows["scale"]),), Layout("plain"), "f16")
        data = Buffer("codes", "U8", (*lead, -(-columns // 5)), rows["codes"])
        tile = (*(1,) * len(lead), self.elements)
        return Codes(shape, (data,), Layout("radix", base=3, digits=5), "ternary", scale=Param(scale, tile))
