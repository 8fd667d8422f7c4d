"""The block types of GGUF: one row each, which says where every number of a block lies and what it means.

A tensor row of K elements is K / `elements` blocks of `size` bytes each (ggml-common.h; gguf-py `quants.py`). A row of
the table nests as the numbers do: the codes, with a table, and a zero, a scale and an offset that may have a scale
again.

    Q4_0 Q5_0 Q8_0    (q - 2^(bits-1)) * d, d float16, one per 32 elements
    Q4_1 Q5_1         q * d + m
    Q2_K Q4_K Q5_K    q * (sc * d) - m * dmin, d and dmin float16, one per 256 elements; sc and m of 4 or 6 bits, one
                      per 16 or 32; the stored dmin is kept, so the table of m is negative
    Q3_K Q6_K         (q - 2^(bits-1)) * (sc * d), sc signed, one per 16
    IQ4_NL IQ4_XS     16 uneven levels
    IQ2_* IQ3_*       a code is a point of a grid, 8 or 4 elements at once; then signs, a scale of 4 bits, and d
    IQ1_*             the same with a grid of -1, 0, 1, moved by an eighth up or down
    TQ1_0 TQ2_0       (q - 1) * d; base 3 (ternary.py), or two bits
    MXFP4 NVFP4       e2m1 and a byte of scale per 32 or 16 elements

Products of these numbers are exact in float32, so that only the order of the last sum matters, and that is ggml's. Two
codes that no quantizer writes: an e8m0 scale of 255 is not a number, as in the OCP specification (ggml: 2^127); a scale
of NVFP4 has no sign and no NaN, as in ggml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.formats.gguf.bits import Move, Positions, UInt8, joined, lanes, moves, permute, span, words
from qdeploy.formats.gguf.grids import grid, signs
from qdeploy.formats.gguf.ternary import TernaryBlock
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, Rows, Shape, Table
from qdeploy.store.storage import storage_dtype

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Part:
    """The numbers of a block that belong together.

    Attributes:
        bits: Where they are, [numbers per block, width].
        table: A named number format, or the values of the codes: [levels], or [levels, n] where a code is n elements.
        storage: Storage type where the numbers are kept plain; "" keeps them as a bit stream.
        zero: One integer for all, or numbers of the block.
        scale: Numbers of the block.
        offset: Numbers of the block.
    """

    bits: Positions
    table: str | Array
    storage: str = ""
    zero: int | Part | None = None
    scale: Part | None = None
    offset: Part | None = None

    @property
    def layout(self) -> Layout:
        """How the numbers lie in normal form."""
        return PLAIN if self.storage else Layout("bits", self.bits.shape[1])

    @property
    def extent(self) -> int:
        """Elements per code."""
        return 1 if isinstance(self.table, str) or self.table.ndim == 1 else self.table.shape[1]

    @property
    def elements(self) -> int:
        """Decoded numbers per block."""
        return len(self.bits) * self.extent

    def walk(self, key: str = "codes") -> Iterator[tuple[str, Part]]:
        """Every stored part by its buffer's key, itself first."""
        yield key, self
        prefix = "" if key == "codes" else f"{key}."
        for name in ("zero", "scale", "offset"):
            child = getattr(self, name)
            if isinstance(child, Part):
                yield from child.walk(prefix + name)


@dataclass(frozen=True, eq=False)
class Block:
    """A block type.

    Attributes:
        number: Its id in the file.
        size: Bytes per block.
        part: What is in it.
    """

    number: int
    size: int
    part: Part

    @property
    def elements(self) -> int:
        """Elements per block."""
        return self.part.elements

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        """Buffer key -> part."""
        return dict(self.part.walk())

    @property
    def keys(self) -> tuple[str, ...]:
        """The buffers that are made of a tensor of this type."""
        return tuple(self.parts)

    def unpack(self, raw: UInt8) -> tuple[Array, ...]:
        """Blocks [..., blocks * size] to the rows of every buffer, in the order of `keys`."""
        return tuple(self.field(raw, key) for key in self.keys)

    def field(self, raw: UInt8, key: str) -> Array:
        """Blocks [..., blocks * size] to the rows of one buffer: [..., blocks * its extent per block]."""
        part = self.parts[key]
        first, last = span(part.bits)
        blocks = raw.shape[-1] // self.size
        rows = permute(raw.reshape(-1, self.size)[:, first:last], self._forwards[key], part.bits.size // 8)
        return rows.reshape(*raw.shape[:-1], blocks * rows.shape[1]).view(storage_dtype(part.storage or "U8"))

    def pack(self, *rows: Array) -> UInt8:
        """The rows of every buffer back to blocks [..., blocks * size]."""
        octets = [part.bits.size // 8 for part in self.parts.values()]
        fields = [np.ascontiguousarray(r).view(np.uint8).reshape(-1, n) for r, n in zip(rows, octets, strict=True)]
        blocks = permute(np.concatenate(fields, axis=1), self._backwards, self.size)
        return blocks.reshape(*rows[0].shape[:-1], -1)

    @cached_property
    def _forwards(self) -> Mapping[str, tuple[Move, ...]]:
        return {key: moves(part.bits.reshape(-1) - 8 * span(part.bits)[0]) for key, part in self.parts.items()}

    @cached_property
    def _backwards(self) -> tuple[Move, ...]:
        return moves(np.argsort(np.concatenate([part.bits.reshape(-1) for part in self.parts.values()])))

    def codes(self, shape: Shape, rows: Mapping[str, Rows]) -> Codes:
        """The description of a tensor: grid of `shape`, whose last axis is a multiple of `elements`."""
        return _describe(self.part, "codes", (*shape[:-1], shape[-1] // self.elements), rows)


def _describe(part: Part, key: str, blocks: Shape, rows: Mapping[str, Rows]) -> Codes:
    prefix = "" if key == "codes" else f"{key}."
    lead, rank = blocks[:-1], len(blocks)
    grid_shape = (*lead, blocks[-1] * len(part.bits))
    decoded = (*lead, blocks[-1] * part.elements)
    octets = blocks[-1] * part.bits.size // 8 // storage_dtype(part.storage or "U8").itemsize
    data = Buffer(key, part.storage or "U8", (*lead, octets), rows[key])

    def param(name: str) -> Param | None:
        child = getattr(part, name)
        if isinstance(child, Part):
            tile = (*(1,) * len(lead), part.elements // child.elements)
            return Param(_describe(child, prefix + name, blocks, rows), tile)
        if child is None:
            return None
        constant = Buffer.of(prefix + name, np.full((1,) * rank, child, np.uint8), "U8")
        return Param(Codes(constant.shape, (constant,), PLAIN, "uint8"), decoded)

    table = part.table if isinstance(part.table, str) else Table(_codebook(prefix + "table", part.table, rank))
    return Codes(grid_shape, (data,), part.layout, table, param("zero"), param("scale"), param("offset"))


def _codebook(key: str, values: Array, rank: int) -> Buffer:
    block = (1,) * (rank - 1) + values.shape[1:] if values.ndim > 1 else ()
    return Buffer.of(key, values.reshape(1, len(values), *block), "I8" if values.dtype == np.int8 else "F32")


def _half(start: int) -> Part:
    return Part(words(start, 1, 16, word=16), "f16", "F16")


def _six_bits(start: int) -> tuple[Positions, Positions]:
    """Eight scales and eight minima of 6 bits in 12 bytes: four of each, and above them the top bits of the others."""

    def eight(at: int) -> Positions:
        return np.vstack([words(start + at, 4, 6), joined(words(start + 8, 4, 4, at), words(start + at, 4, 2, 6))])

    return eight(0), eight(4)


def _minimum(bits: Positions, start: int) -> Part:
    """Minima that are subtracted: `x + (-m) * dmin`, with -0 for 0 so that even the zeros have ggml's sign."""
    return Part(bits, -np.arange(1 << bits.shape[1], dtype=np.float32), scale=_half(start))


def _signed(bits: Positions, scale: Part) -> Part:
    """Signs of single elements: a set bit means minus."""
    return Part(bits, np.array([1, -1], np.int8), scale=scale)


def _odd(bits: Positions, unit: float, scale: Part) -> Part:
    """Scales that are odd multiples of a unit."""
    return Part(bits, (2 * np.arange(1 << bits.shape[1]) + 1).astype(np.float32) * np.float32(unit), scale=scale)


def _quarter(bits: Positions) -> Part:
    """IQ1's shift of a grid point by an eighth, as a zero: +1/8 is subtracting -1/8."""
    return Part(bits, np.array([-0.125, 0.125], np.float32))


def _unsigned_e4m3() -> Array:
    """NVFP4's scales: e4m3 without sign and without NaN."""
    code = np.arange(256) & 0x7F
    exponent, mantissa = code >> 3, (code & 7) / 8
    values = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    values[0x7F] = 0
    return values.astype(np.float32)


_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)  # iq4nl
_SCALES, _MINIMA = _six_bits(4)
_FIVE_K = joined(lanes(48, 128, 4, 32), lanes(16, 32, 1, 32))
_THREE_K = joined(lanes(32, 64, 2, 32), lanes(0, 32, 1, 32))
_SIX_K = joined(lanes(0, 128, 4, 64), lanes(128, 64, 2, 32))
_FIVE = joined(lanes(6, 16, 4, 16), words(2, 4, 1, *range(8))), joined(lanes(8, 16, 4, 16), words(4, 4, 1, *range(8)))
_XS_SCALE = joined(words(4, 4, 4, 0, 4), words(2, 1, 2, *range(0, 16, 2), word=16))
_IQ1_POINT = joined(words(2, 32, 8), words(34, 8, 3, 0, 3, 6, 9, word=16))
_IQ1_M_D = Part(words(48, 4, 4, 12, word=16).reshape(1, 16), "f16", "F16")
_IQ1_M_SCALE = words(48, 4, 3, 0, 3, 6, 9, word=16)

BLOCKS: dict[str, Block | TernaryBlock] = {
    "Q4_0": Block(2, 18, Part(lanes(2, 16, 4, 16), "uint4", zero=8, scale=_half(0))),
    "Q4_1": Block(3, 20, Part(lanes(4, 16, 4, 16), "uint4", scale=_half(0), offset=_half(2))),
    "Q5_0": Block(6, 22, Part(_FIVE[0], "uint5", zero=16, scale=_half(0))),
    "Q5_1": Block(7, 24, Part(_FIVE[1], "uint5", scale=_half(0), offset=_half(2))),
    "Q8_0": Block(8, 34, Part(words(2, 32, 8), "int8", "I8", scale=_half(0))),
    "Q2_K": Block(
        10,
        84,
        Part(
            lanes(16, 64, 2, 32),
            "uint2",
            scale=Part(words(0, 16, 4), "uint4", scale=_half(80)),
            offset=_minimum(words(0, 16, 4, 4), 82),
        ),
    ),
    "Q3_K": Block(
        11,
        110,
        Part(
            _THREE_K,
            "uint3",
            zero=4,
            scale=Part(joined(lanes(96, 8, 4, 8), lanes(104, 4, 2, 4)), "uint6", zero=32, scale=_half(108)),
        ),
    ),
    "Q4_K": Block(
        12,
        144,
        Part(lanes(16, 128, 4, 32), "uint4", scale=Part(_SCALES, "uint6", scale=_half(0)), offset=_minimum(_MINIMA, 2)),
    ),
    "Q5_K": Block(
        13, 176, Part(_FIVE_K, "uint5", scale=Part(_SCALES, "uint6", scale=_half(0)), offset=_minimum(_MINIMA, 2))
    ),
    "Q6_K": Block(
        14, 210, Part(_SIX_K, "uint6", zero=32, scale=Part(words(192, 16, 8), "int8", "I8", scale=_half(208)))
    ),
    "IQ2_XXS": Block(
        16,
        66,
        Part(
            words(2, 8, 8, 0, 8, 16, 24, word=64),
            grid("IQ2_XXS"),
            "U8",
            scale=Part(
                words(2, 8, 7, 32, 39, 46, 53, word=64),
                signs(),
                scale=_odd(words(2, 8, 4, 60, word=64), 1 / 8, _half(0)),
            ),
        ),
    ),
    "IQ2_XS": Block(
        17,
        74,
        Part(
            words(2, 32, 9, word=16),
            grid("IQ2_XS"),
            scale=Part(words(2, 32, 7, 9, word=16), signs(), scale=_odd(words(66, 8, 4, 0, 4), 1 / 8, _half(0))),
        ),
    ),
    "IQ3_XXS": Block(
        18,
        98,
        Part(
            words(2, 64, 8),
            grid("IQ3_XXS"),
            "U8",
            scale=Part(
                words(66, 8, 7, 0, 7, 14, 21, word=32),
                signs(),
                scale=_odd(words(66, 8, 4, 28, word=32), 1 / 4, _half(0)),
            ),
        ),
    ),
    "IQ1_S": Block(
        19,
        50,
        Part(
            _IQ1_POINT,
            grid("IQ1_S"),
            zero=_quarter(words(34, 8, 1, 15, word=16)),
            scale=_odd(words(34, 8, 3, 12, word=16), 1, _half(0)),
        ),
    ),
    "IQ4_NL": Block(20, 18, Part(lanes(2, 16, 4, 16), _LEVELS, scale=_half(0))),
    "IQ3_S": Block(
        21,
        110,
        Part(
            joined(words(2, 64, 8), words(66, 8, 1, *range(8))),
            grid("IQ3_S"),
            scale=_signed(words(74, 32, 1, *range(8)), _odd(words(106, 4, 4, 0, 4), 1, _half(0))),
        ),
    ),
    "IQ2_S": Block(
        22,
        82,
        Part(
            joined(words(2, 32, 8), words(66, 8, 2, 0, 2, 4, 6)),
            grid("IQ2_S"),
            scale=_signed(words(34, 32, 1, *range(8)), _odd(words(74, 8, 4, 0, 4), 1 / 8, _half(0))),
        ),
    ),
    "IQ4_XS": Block(
        23, 136, Part(lanes(8, 128, 4, 16), _LEVELS, scale=Part(_XS_SCALE, "uint6", zero=32, scale=_half(0)))
    ),
    "IQ1_M": Block(
        29,
        56,
        Part(
            joined(words(0, 32, 8), words(32, 16, 3, 0, 4)),
            grid("IQ1_S"),
            zero=_quarter(words(32, 16, 1, 3, 7)),
            scale=_odd(_IQ1_M_SCALE, 1, _IQ1_M_D),
        ),
    ),
    "TQ1_0": TernaryBlock(),
    "TQ2_0": Block(35, 66, Part(lanes(0, 64, 2, 32), "ternary", scale=_half(64))),
    "MXFP4": Block(39, 17, Part(lanes(1, 16, 4, 16), "e2m1", scale=Part(words(0, 1, 8), "e8m0", "F8_E8M0"))),
    "NVFP4": Block(40, 36, Part(lanes(4, 32, 4, 8), "e2m1", scale=Part(words(0, 4, 8), _unsigned_e4m3(), "U8"))),
}
"""Every block type, by name."""
