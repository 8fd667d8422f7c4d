"""Codes whose rows are cut into strips that share words: row i of every strip lies in word row i (HQQ, quanto).

A matrix of ROWS rows is cut into as many strips of R = ceil(ROWS / strips) rows as a word holds codes; the code of
strip s stands at bit SHIFTS[s]. Rows that fill up the last strip are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec, Slabs
from qdeploy.store.origin import Origin
from qdeploy.store.storage import storage_dtype

Words = npt.NDArray[Any]


@dataclass(frozen=True)
class Strips:
    """The arrangement.

    Attributes:
        key: Of the buffer: U8 [rows, ceil(columns * width / 8)], a bit stream per row.
        rows: Rows of the matrix.
        height: Rows of a strip, and of the words.
        columns: Of both.
        width: Bits of a code.
        shifts: Where the code of each strip begins in a word.
        dtype: Storage type of the words.
        where: The stored tensor, for errors.
        below: Codes from here on do not occur; 0: all may.
    """

    key: str
    rows: int
    height: int
    columns: int
    width: int
    shifts: tuple[int, ...]
    dtype: str
    where: str = ""
    below: int = 0

    def unpack(self, raw: Words, strip: int) -> Words:
        """The codes of a strip in some rows of words."""
        unsigned = raw.view(f"<u{raw.itemsize}")
        shift, mask = unsigned.dtype.type(self.shifts[strip]), unsigned.dtype.type((1 << self.width) - 1)
        codes: npt.NDArray[np.uint8] = ((unsigned >> shift) & mask).astype(np.uint8)
        if self.below and codes.size and int(codes.max()) >= self.below:
            raise BadFileError(
                "a code is out of range", where=self.where, found=int(codes.max()), allowed=f"below {self.below}"
            )
        return codes

    def pack(self, strips: list[Words]) -> Words:
        """Words from the codes of all strips, which have the same rows."""
        word = storage_dtype(self.dtype)
        unsigned = np.dtype(f"<u{word.itemsize}")
        packed = np.zeros(strips[0].shape, unsigned)
        for codes, shift in zip(strips, self.shifts, strict=True):
            packed |= codes.astype(unsigned) << unsigned.type(shift)
        return packed.view(word)

    def codec(self) -> Codec:
        """The whole tensor in one step: how it is written again."""

        def unpack(raw: Words) -> tuple[Words]:
            codes = np.concatenate([self.unpack(raw, strip) for strip in range(len(self.shifts))])
            return (streams.pack(codes[: self.rows], self.width),)

        def pack(stream: Words) -> Words:
            codes = np.zeros((self.height * len(self.shifts), self.columns), np.uint8)
            codes[: self.rows] = streams.unpack(stream, self.columns, self.width)
            return self.pack(np.split(codes, len(self.shifts)))

        return Codec((self.key,), unpack, pack, group=self.rows, units=self.height)


@dataclass(frozen=True)
class StripRows:
    """Rows of the matrix on demand: only the words that hold them are read, and proven with all of their strips."""

    how: Strips
    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> Words:
        """Returns bit streams of rows [start, stop)."""
        height, pieces = self.how.height, []
        while start < stop:
            strip, low = divmod(start, height)
            high = min(height, low + stop - start)
            raw = self.source.slab(0, low, high)
            if not self.origin.covers(low, high):
                self._prove(low, high, raw)
            pieces.append(streams.pack(self.how.unpack(raw, strip), self.how.width))
            start += high - low
        size = streams.row_bytes(self.how.columns, self.how.width)
        return np.concatenate(pieces) if pieces else np.zeros((0, size), np.uint8)

    def _prove(self, low: int, high: int, raw: Words) -> None:
        strips = [self.how.unpack(raw, strip) for strip in range(len(self.how.shifts))]
        for strip, codes in enumerate(strips):
            codes[max(0, self.how.rows - strip * self.how.height - low) :] = 0  # padding is not kept
        self.origin.prove(low, high, raw, self.how.pack(strips))


def strips(part: SourceTensor, key: str, rows: int, width: int, places: Sequence[str]) -> Strips:
    """The arrangement of a stored tensor [R, columns]; `places` are the shifts, and then perhaps "below" and a code."""
    height, columns = part.shape
    shifts = tuple(int(place) for place in places if place.isdigit())
    below = shifts[-1] if "below" in places else 0
    shifts = shifts[:-1] if "below" in places else shifts
    return Strips(key, rows, height, columns, width, shifts, part.dtype, f"{part.file}: {part.name}", below)
