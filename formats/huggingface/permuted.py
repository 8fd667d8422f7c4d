"""Codes whose columns are stored in another order than the matrix has them: arrangements beside `rearranged.py`.

    indices OUTLIERS GROUP BITS RESIDUAL RUN KEYS    words [G, n, W] <-> codes in the order of the columns, one buffer
                                                     per key: bit streams of n rows, or one run of all codes (RUN 1)
    outliers COUNT KEY                               [1, n, COUNT] <-> a run of codes
    order                                            the order itself; it stands in the source's argument `order`

Stored column p of a matrix is column order[p]; the first OUTLIERS columns are stored elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface.rearranged import codec
from qdeploy.ir.tensor import Source, SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec
from qdeploy.store.storage import storage_dtype

Words = npt.NDArray[Any]


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a source is written back."""
    order = Permutation.from_text(str(source.args["order"])) if "order" in source.args else None
    texts = [str(source.args[str(i)]) for i in range(len(source.tensors))]
    return tuple(_codec(part, text, order) for part, text in zip(source.tensors, texts, strict=True))


def _codec(part: SourceTensor, arrangement: str, order: Permutation | None) -> Codec:
    kind = arrangement.partition(" ")[0]
    if kind not in ("indices", "outliers", "order"):
        return codec(part, arrangement)
    if order is None:
        _, outliers, group, *_ = arrangement.split()
        order = Permutation.identity(int(outliers) + int(group) * part.shape[0])
    return order.codec(part, arrangement)


@dataclass(frozen=True, eq=False)
class Permutation:
    """An order of columns.

    Attributes:
        columns: int64 [K]: which column each stored column is.
    """

    columns: Words

    @classmethod
    def identity(cls, count: int) -> Permutation:
        """Every column in its place."""
        return cls(np.arange(count))

    @classmethod
    def of(cls, stored: Words, where: str) -> Permutation:
        """Of a stored tensor; unsigned where it has 16 bits. BadFileError if it is no permutation."""
        columns = stored.view("<u2" if stored.itemsize == 2 else stored.dtype).astype(np.int64)
        if not np.array_equal(np.sort(columns), np.arange(len(columns))):
            raise BadFileError("an order of columns is no permutation", where=where, found=f"{len(columns)} columns")
        return cls(columns)

    @classmethod
    def from_text(cls, text: str) -> Permutation:
        """The inverse of `text`."""
        return cls(np.frombuffer(bytes.fromhex(text), "<u2").astype(np.int64))

    @property
    def text(self) -> str:
        """Two bytes per column, in hexadecimal digits."""
        return self.columns.astype("<u2").tobytes().hex()

    @cached_property
    def stored(self) -> Words:
        """int64 [K]: where each column is stored."""
        return np.argsort(self.columns)

    def codec(self, part: SourceTensor, arrangement: str) -> Codec:
        """The codec of a stored tensor; the arrangement is a line as above."""
        kind, *words = arrangement.split()
        if kind == "order":
            whole = self.columns.astype("<u2" if part.dtype == "I16" else "<i8").view(storage_dtype(part.dtype))
            return Codec((), lambda raw: (), lambda: whole)
        if kind == "outliers":
            return self._run((words[1],), int(words[0]), part, None)
        outliers, group, bits, residual, run = map(int, words[:5])
        return self._indices(tuple(words[5:]), outliers, group, (bits, residual), bool(run), part)

    def _indices(
        self, keys: tuple[str, ...], outliers: int, group: int, widths: tuple[int, int], run: bool, part: SourceTensor
    ) -> Codec:
        packed = _Packed(group, widths) if part.dtype == "I32" else None
        if run:
            return self._run(keys, -outliers, part, packed)
        columns, places = self.columns, self.stored
        each = widths if len(keys) == 2 else (widths[1] if keys[0] == "residual" else widths[0],)

        def unpack(raw: Words) -> tuple[Words, ...]:
            fields = _fields(raw, packed)
            return tuple(streams.pack(f[:, places], width) for f, width in zip(fields, each, strict=False))

        def pack(*rows: Words) -> Words:
            fields = [streams.unpack(r, len(columns), w)[:, columns] for r, w in zip(rows, each, strict=True)]
            return _words(fields, part, packed)

        return Codec(keys, unpack, pack, axis=1)

    def _run(self, keys: tuple[str, ...], count: int, part: SourceTensor, packed: _Packed | None) -> Codec:
        """Codes of the first `count` stored columns, or of those behind the first `-count`, as one run."""
        chosen = self.columns[:count] if count > 0 else self.columns[-count:]
        places, back = np.argsort(chosen), np.argsort(np.argsort(chosen))
        kinds = [np.dtype("<u2" if packed is None or w > 8 else "u1") for w in (packed.widths if packed else (16, 16))]

        def unpack(raw: Words) -> tuple[Words, ...]:
            fields = _fields(raw, packed)
            return tuple(f[:, places].astype(k).reshape(-1) for f, k in zip(fields, kinds, strict=False))[: len(keys)]

        def pack(*runs: Words) -> Words:
            return _words([run.reshape(-1, len(chosen))[:, back] for run in runs], part, packed)

        return Codec(keys, unpack, pack, axis=1, group=len(chosen))


@dataclass(frozen=True)
class _Packed:
    """Bit streams of an index and a residual index in turn, per row and group of columns."""

    group: int
    widths: tuple[int, int]

    @property
    def whole(self) -> int:
        """Bits of both."""
        return sum(self.widths)


def _fields(raw: Words, packed: _Packed | None) -> tuple[Words, ...]:
    """[G, n, W] -> the codes of each codebook, [n, G * group]."""
    if packed is None:
        return (_side_by_side(np.ascontiguousarray(raw).view("<u2")),)
    octets = np.ascontiguousarray(raw).view(np.uint8)[..., : streams.row_bytes(packed.group, packed.whole)]
    if packed.whole <= 16:
        both = streams.unpack(octets, packed.group, packed.whole).astype(np.uint32)
    else:
        bits = np.unpackbits(octets, axis=-1, count=packed.group * packed.whole, bitorder="little")
        wide = np.zeros((*octets.shape[:2], packed.group, 32), np.uint8)
        wide[..., : packed.whole] = bits.reshape(*octets.shape[:2], packed.group, packed.whole)
        both = np.packbits(wide, axis=-1, bitorder="little").view("<u4")[..., 0]
    main, residual = both & np.uint32((1 << packed.widths[0]) - 1), both >> np.uint32(packed.widths[0])
    return tuple(_side_by_side(field) for field in ((main, residual) if packed.widths[1] else (main,)))


def _words(fields: list[Words], part: SourceTensor, packed: _Packed | None) -> Words:
    """The inverse of `_fields`."""
    groups, count = part.shape[0], len(fields[0])
    apart = [np.ascontiguousarray(f.reshape(count, groups, -1).swapaxes(0, 1)) for f in fields]
    if packed is None:
        return apart[0].astype("<u2").view(storage_dtype(part.dtype))
    both = apart[0].astype("<u4")
    if len(apart) == 2:
        both |= apart[1].astype("<u4") << np.uint32(packed.widths[0])
    if packed.whole <= 16:
        stream = streams.pack(both.astype("<u2"), packed.whole)
    else:
        bits = np.unpackbits(both[..., None].view(np.uint8), axis=-1, bitorder="little")[..., : packed.whole]
        stream = np.packbits(bits.reshape(groups, count, -1), axis=-1, bitorder="little")
    words = np.zeros((groups, count, 4 * part.shape[2]), np.uint8)
    words[..., : stream.shape[-1]] = stream
    return words.view("<i4")


def _side_by_side(fields: Words) -> Words:
    """[G, n, group] -> [n, G * group]."""
    return fields.swapaxes(0, 1).reshape(fields.shape[1], -1)
