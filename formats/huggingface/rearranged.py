"""How a stored tensor and one buffer become each other, by name: what the readers of single layers have in common.

An arrangement is a line of text that a source keeps for each of its tensors, so that writing back needs nothing else:

    same KEY                  the buffer is the stored tensor
    rows KEY COLUMNS          the same numbers in rows of COLUMNS
    stream KEY BYTES          words as a little-endian bit stream: the first BYTES of each row; the rest is zero
    fields KEY COUNT BITS     COUNT codes in each row of words, floor(32 / BITS) to a word and none across two
    columns KEY ROWS BITS     column g of the words is a bit stream over ROWS codes <-> rows of bit streams over columns
    spaced KEY ROWS BITS      the same, floor(32 / BITS) codes to a word
    swapped KEY BYTES         two codes of 4 bits to a byte, the first in the high half <-> rows of BYTES, first one low
    halves KEY                byte (i, k) holds codes (2 i, k) low and (2 i + 1, k) high <-> rows of bit streams
    narrowed KEY BITS         signed codes of BITS bits, one to a byte <-> bit streams
    ternary KEY               floats -1, 0, 1 and -0 <-> bit streams of the codes 0, 1, 2, 3
    negative KEY COLUMNS      the numbers with the other sign, in rows of COLUMNS
    strips KEY ROWS BITS SHIFTS   rows cut into as many strips as there are SHIFTS, which share words (`strips.py`)
    merged KEY                the last two axes as one
    shaped KEY SIZES          the same numbers, the axes behind the first with other sizes
    swizzled KEY ROWS GROUPS  tiles of 128 rows by 4 groups, row 32 j + i at [i, 4 j + group] <-> [ROWS, GROUPS]
    apart, books              several codebooks in one tensor (`vectors.py`)
    across, along, column     codes in any order of fields of a word (`fields.py`)
    tiled, warped, stacked    codes in the order of a kernel (`tiles.py`)
    trellis                   codes that overlap (`trellis.py`)
    flute, pairs              codes and tables of FLUTE's kernels (`flute.py`)
    octets KEY                a vector of words as bytes
    spqr, outliers            words of SpQR (`outliers.py`)
    turned KEY                the transpose
    flat KEY COLUMNS          the numbers of rows of COLUMNS as one run
    slices KEY ROWS KIND ...  [E, ...] <-> [E, ROWS, ...], every slice by itself as KIND KEY ... says
    kept HEX                  a few bytes that say what the others are: they are in the text itself
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface import fields, flute, outliers, vectors
from qdeploy.formats.huggingface.strips import strips
from qdeploy.formats.huggingface.tiles import stacked, tiled, warped
from qdeploy.formats.huggingface.trellis import trellis
from qdeploy.formats.huggingface.words import transposed
from qdeploy.ir.tensor import Source, SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec, verbatim
from qdeploy.store.storage import storage_dtype

Words = npt.NDArray[Any]


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a source is written back."""
    return tuple(codec(part, str(source.args[str(i)])) for i, part in enumerate(source.tensors))


def codec(part: SourceTensor, arrangement: str) -> Codec:
    """The codec of one stored tensor; the arrangement is a line as above."""
    kind, *words = arrangement.split()
    arranged: Codec = _KINDS[kind](part, *words)
    return arranged


def _same(part: SourceTensor, key: str) -> Codec:
    return verbatim(key)


def _rows(part: SourceTensor, key: str, columns: str, sign: int = 0) -> Codec:
    """[n, ...] <-> [n * m, columns], or one row for a number by itself."""
    wide, tail = int(columns), part.shape[1:]
    rows = math.prod(part.shape) // wide
    group, units = _steps(rows, part.shape[0] if part.shape else 1)
    flip = np.array(-0.0, storage_dtype(part.dtype)).view(f"u{storage_dtype(part.dtype).itemsize}") if sign else 0

    def unpack(raw: Words) -> tuple[Words]:
        return (_flipped(raw, flip).reshape(-1, wide),)

    return Codec((key,), unpack, lambda rows: _flipped(rows, flip).reshape(-1, *tail), group=group, units=units)


def _flipped(array: Words, flip: Any) -> Words:
    return (array.view(flip.dtype) ^ flip).view(array.dtype) if isinstance(flip, np.ndarray | np.generic) else array


def _negative(part: SourceTensor, key: str, columns: str) -> Codec:
    return _rows(part, key, columns, 1)


def _steps(rows: int, units: int) -> tuple[int, int]:
    """The fewest rows of a buffer and units of a tensor that belong together."""
    common = math.gcd(rows, units)
    return (rows // common, units // common) if common else (1, 1)


def _stream(part: SourceTensor, key: str, size: str) -> Codec:
    """Words [..., n] <-> U8 [..., size]."""
    count, dtype = int(size), storage_dtype(part.dtype)
    whole = part.shape[-1] * dtype.itemsize

    def unpack(raw: Words) -> tuple[Words]:
        return (np.ascontiguousarray(raw).view(np.uint8)[..., :count],)

    def pack(rows: Words) -> Words:
        return _padded(rows, whole).view(dtype)

    return Codec((key,), unpack, pack)


def _padded(rows: Words, whole: int) -> Words:
    if rows.shape[-1] == whole:
        return np.ascontiguousarray(rows)
    wide = np.zeros((*rows.shape[:-1], whole), rows.dtype)
    wide[..., : rows.shape[-1]] = rows
    return wide


def _fields(part: SourceTensor, key: str, count: str, bits: str) -> Codec:
    """I32 [n, words] <-> U8 [n, ceil(count * bits / 8)]."""
    codes, width = int(count), int(bits)

    def unpack(raw: Words) -> tuple[Words]:
        return (streams.pack(_from_words(raw, width)[:, :codes], width),)

    def pack(rows: Words) -> Words:
        return _to_words(streams.unpack(rows, codes, width), width).view("<i4")

    return Codec((key,), unpack, pack)


def _from_words(raw: Words, width: int) -> Words:
    """Words [n, w] -> codes uint8 [n, w * floor(32 / width)]."""
    shifts = np.arange(0, 32 // width * width, width, dtype=np.uint32)
    codes = (np.ascontiguousarray(raw).view("<u4")[..., None] >> shifts) & np.uint32((1 << width) - 1)
    return codes.astype(np.uint8).reshape(len(raw), -1)


def _to_words(codes: Words, width: int) -> Words:
    """Codes [n, k] -> words uint32 [n, ceil(k / floor(32 / width))]."""
    per = 32 // width
    count = -(-codes.shape[1] // per)
    wide = _padded(codes, count * per).astype(np.uint32).reshape(len(codes), count, per)
    shifts = np.arange(0, per * width, width, dtype=np.uint32)
    packed: Words = np.bitwise_or.reduce(wide << shifts, axis=2)
    return packed


def _columns(part: SourceTensor, key: str, rows: str, bits: str) -> Codec:
    """I32 [ceil(rows * bits / 32), G] <-> U8 [rows, ceil(G * bits / 8)]."""
    width, count = int(bits), part.shape[1]
    common = math.gcd(32, width)

    def unpack(raw: Words) -> tuple[Words]:
        stream = np.ascontiguousarray(raw.T).view(np.uint8)
        codes = streams.unpack(stream, len(raw) * 32 // width, width)
        return (streams.pack(np.ascontiguousarray(codes.T), width),)

    def pack(stream: Words) -> Words:
        codes = np.ascontiguousarray(streams.unpack(stream, count, width).T)
        words = -(-codes.shape[1] * width // 32)
        return _padded(streams.pack(codes, width), 4 * words).view("<i4").T

    return Codec((key,), unpack, pack, group=32 // common, units=width // common, rows=int(rows))


def _spaced(part: SourceTensor, key: str, rows: str, bits: str) -> Codec:
    """I32 [ceil(rows / floor(32 / bits)), G] <-> U8 [rows, ceil(G * bits / 8)]."""
    width, count = int(bits), part.shape[1]

    def unpack(raw: Words) -> tuple[Words]:
        return (streams.pack(np.ascontiguousarray(_from_words(raw.T, width).T), width),)

    def pack(stream: Words) -> Words:
        return _to_words(streams.unpack(stream, count, width).T, width).view("<i4").T

    return Codec((key,), unpack, pack, group=32 // width, rows=int(rows))


def _swapped(part: SourceTensor, key: str, size: str) -> Codec:
    """U8 [n, ...], high half first <-> U8 [rows, size], low half first."""
    wide, tail = int(size), part.shape[1:]
    rows = math.prod(part.shape) // wide
    group, units = _steps(rows, part.shape[0])

    def swap(raw: Words) -> Words:
        swapped: Words = (raw << np.uint8(4)) | (raw >> np.uint8(4))
        return swapped

    def unpack(raw: Words) -> tuple[Words]:
        return (swap(raw).reshape(-1, wide),)

    return Codec((key,), unpack, lambda rows: swap(rows).reshape(-1, *tail), group=group, units=units)


def _halves(part: SourceTensor, key: str) -> Codec:
    """U8 [N / 2, K] <-> U8 [N, ceil(K / 2)]."""
    columns = part.shape[1]

    def unpack(raw: Words) -> tuple[Words]:
        codes = np.stack((raw & 15, raw >> 4), axis=1).reshape(-1, columns)
        return (streams.pack(codes, 4),)

    def pack(stream: Words) -> Words:
        codes = streams.unpack(stream, columns, 4)
        packed: Words = codes[::2] | (codes[1::2] << np.uint8(4))
        return packed

    return Codec((key,), unpack, pack, group=2)


def _narrowed(part: SourceTensor, key: str, bits: str) -> Codec:
    """I8 [n, K] <-> U8 [n, ceil(K * bits / 8)], two's complement."""
    width, columns = int(bits), part.shape[1]
    half, mask = np.int8(1 << (width - 1)), np.uint8((1 << width) - 1)

    def unpack(raw: Words) -> tuple[Words]:
        if raw.size and (raw.min() < -int(half) or raw.max() >= int(half)):
            raise BadFileError(
                "a code is out of range",
                where=f"{part.file}: {part.name}",
                found=f"{raw.min()} to {raw.max()}",
                allowed=f"{-int(half)} to {int(half) - 1}",
            )
        return (streams.pack(raw.view(np.uint8) & mask, width),)

    def pack(stream: Words) -> Words:
        codes = streams.unpack(stream, columns, width).view(np.int8)
        return (codes ^ half) - half

    return Codec((key,), unpack, pack)


def _ternary(part: SourceTensor, key: str) -> Codec:
    """Floats [n, K] <-> U8 [n, ceil(K / 4)]."""
    columns, dtype = part.shape[-1], storage_dtype(part.dtype)
    levels = np.array([-1, 0, 1, -0.0], np.float32).astype(dtype)

    def unpack(raw: Words) -> tuple[Words]:
        numbers = raw.astype(np.float32)
        if not np.isin(numbers, (-1, 0, 1)).all():
            raise BadFileError(
                "a code is out of range", where=f"{part.file}: {part.name}", found="other numbers", allowed="-1, 0, 1"
            )
        codes = (numbers + 1).astype(np.uint8)
        codes[(numbers == 0) & np.signbit(numbers)] = 3
        return (streams.pack(codes, 2),)

    return Codec((key,), unpack, lambda stream: levels[streams.unpack(stream, columns, 2)])


def _merged(part: SourceTensor, key: str) -> Codec:
    """[..., a, b] <-> [..., a * b]."""
    last = part.shape[-2:]

    def unpack(raw: Words) -> tuple[Words]:
        return (raw.reshape(*raw.shape[:-2], last[0] * last[1]),)

    return Codec((key,), unpack, lambda rows: rows.reshape(*rows.shape[:-1], *last))


def _shaped(part: SourceTensor, key: str, *sizes: str) -> Codec:
    """[n, ...] <-> [n, *sizes]."""
    tail, wide = part.shape[1:], tuple(map(int, sizes))

    def unpack(raw: Words) -> tuple[Words]:
        return (raw.reshape(-1, *wide),)

    return Codec((key,), unpack, lambda rows: rows.reshape(-1, *tail))


def _flat(part: SourceTensor, key: str, columns: str) -> Codec:
    """[n, COLUMNS] <-> [n * COLUMNS]."""
    wide = int(columns)
    return Codec((key,), lambda raw: (raw.reshape(-1),), lambda run: run.reshape(-1, wide), group=wide)


def _octets(part: SourceTensor, key: str) -> Codec:
    """Words [n] <-> U8 [n * bytes of a word]."""
    word = storage_dtype(part.dtype)
    return Codec((key,), lambda raw: (raw.view(np.uint8),), lambda octets: octets.view(word), group=word.itemsize)


def _swizzled(part: SourceTensor, key: str, rows: str, groups: str) -> Codec:
    """[32 * a, 16 * b] <-> [rows, groups], rows = at most 128 a, groups = at most 4 b; what fills tiles up is zero."""
    across, count = part.shape[1] // 16, int(groups)

    def unpack(raw: Words) -> tuple[Words]:
        tiles = raw.reshape(-1, across, 32, 4, 4).transpose(0, 3, 2, 1, 4)
        return (np.ascontiguousarray(tiles.reshape(-1, 4 * across)[:, :count]),)

    def pack(numbers: Words) -> Words:
        high = -(-len(numbers) // 128)
        whole = np.zeros((128 * high, 4 * across), numbers.dtype)
        whole[: len(numbers), :count] = numbers
        return whole.reshape(high, 4, 32, across, 4).transpose(0, 3, 2, 1, 4).reshape(32 * high, 16 * across)

    return Codec((key,), unpack, pack, group=128, units=32, rows=int(rows))


def _kept(part: SourceTensor, data: str = "") -> Codec:
    whole = np.frombuffer(bytes.fromhex(data), np.uint8).view(storage_dtype(part.dtype)).reshape(part.shape or (1,))
    return Codec((), lambda raw: (), lambda: whole)


def _slices(part: SourceTensor, key: str, rows: str, kind: str, *words: str) -> Codec:
    inner, count = codec(replace(part, shape=part.shape[1:]), " ".join((kind, key, *words))), int(rows)

    def unpack(raw: Words) -> tuple[Words]:
        whole = raw if len(raw) else np.zeros((1, *raw.shape[1:]), raw.dtype)
        return (np.stack([inner.unpack(each)[0][:count] for each in whole])[: len(raw)],)

    return Codec((key,), unpack, lambda stacked: np.stack([inner.pack(each) for each in stacked]))


def _strips(part: SourceTensor, key: str, rows: str, bits: str, *shifts: str) -> Codec:
    return strips(part, key, int(rows), int(bits), shifts).codec()


_KINDS: dict[str, Callable[..., Codec]] = {
    "same": _same,
    "rows": _rows,
    "stream": _stream,
    "fields": _fields,
    "columns": _columns,
    "spaced": _spaced,
    "swapped": _swapped,
    "halves": _halves,
    "narrowed": _narrowed,
    "ternary": _ternary,
    "negative": _negative,
    "strips": _strips,
    "merged": _merged,
    "shaped": _shaped,
    "flat": _flat,
    "octets": _octets,
    "apart": vectors.apart,
    "books": vectors.books,
    "across": fields.across,
    "along": fields.along,
    "column": fields.column,
    "tiled": tiled,
    "warped": warped,
    "stacked": stacked,
    "trellis": trellis,
    "flute": flute.flute,
    "pairs": flute.pairs,
    "spqr": outliers.spqr,
    "outliers": outliers.arranged,
    "turned": lambda part, key: transposed(key),
    "swizzled": _swizzled,
    "slices": _slices,
    "kept": _kept,
}
