"""The head of a GGUF file: everything before the bytes of the tensors (ggml/docs/gguf.md, versions 2 and 3).

    "GGUF"              magic
    u32                 version; 2 and 3 are the same layout
    u64                 number of tensors
    u64                 number of metadata entries
    entries             key: string, type: u32, value
    tensor infos        name: string, axes: u32, extents: u64 each (the fastest first), type: u32, offset: u64
    padding             zeros up to a multiple of `general.alignment` (32 unless an entry of that key says otherwise)
    tensor data         each tensor at its offset from here, a multiple of the alignment

    string              u64 length, then UTF-8
    value, by type     0 u8, 1 i8, 2 u16, 3 i16, 4 u32, 5 i32, 6 f32, 7 bool (a byte), 8 string, 10 u64, 11 i64, 12 f64;
                        9 array: element type u32, count u64, then the elements, which may be arrays

Everything is little-endian. A big-endian file shows a byte-swapped version; version 1 had 32-bit counts. Both are
refused by name. Nothing that the file declares is believed before it is compared with what is left of the file, so a
count or a length costs neither time nor memory that the file does not have itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.store.folder import File
from qdeploy.store.limits import most_tensors

HEAD_LIMIT = 100 << 20
"""Largest head that is parsed, as safetensors limits its own; vocabularies of 256 thousand tokens need about 15 MB."""
_NAME_LIMIT, _KEY_LIMIT, _RANK_LIMIT, _ALIGNMENT_LIMIT = 64, 65535, 4, 1 << 20
_ENTRY_LIMIT = 1 << 16  # what describes one takes more memory than the file spends on it
_STRING, _ARRAY, _NESTING = 8, 9, 8
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_LEAST_ENTRY, _LEAST_INFO = 8 + 4 + 1, 8 + 4 + 4 + 8
_PIECE = 1 << 20


@dataclass(frozen=True)
class Info:
    """A tensor as its file declares it.

    Attributes:
        name: Its name.
        shape: Slowest axis first: the reverse of how the file lists the extents.
        type: The id of its block type.
        offset: From the start of the tensor data.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Head:
    """A parsed head.

    Attributes:
        metadata: Key -> bool, int, float, str, a one-dimensional array, or a list of texts or of lists.
        tensors: In the order of the file.
        data: Where the tensor data begins, in bytes from the start of the file.
        alignment: Of the offsets.
        notes: What is not as the format wants it, and does no harm.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[Info, ...]
    data: int
    alignment: int
    notes: tuple[str, ...] = ()


def read_head(file: File) -> Head:
    """Parses the head of an open file.

    Raises:
        BadFileError: The file is not a GGUF, is truncated, or contradicts itself.
        UnsupportedError: Version 1, or big-endian.
    """
    cursor = _Cursor(file)
    tensors, entries = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(entries, _LEAST_ENTRY, "metadata entries", _ENTRY_LIMIT)):
        key = cursor.string("a metadata key", _KEY_LIMIT)
        if key in metadata:
            raise BadFileError("a metadata key occurs twice", where=file.name, found=key)
        metadata[key] = _value(cursor, key)
    infos: dict[str, Info] = {}
    for _ in range(cursor.count(tensors, _LEAST_INFO, "tensors", most_tensors(file.size))):
        info = _info(cursor)
        if info.name in infos:
            raise BadFileError("a tensor name occurs twice", where=file.name, found=info.name)
        infos[info.name] = info
    alignment = _alignment(metadata, file.name)
    begin, notes = -(-cursor.at // alignment) * alignment, tuple(cursor.notes)
    return Head(metadata, tuple(infos.values()), begin, alignment, notes)


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    magic, version = cursor.take(4, "the magic"), int(cursor.number("<u4", "the version"))
    if magic != b"GGUF":
        raise BadFileError("not a GGUF file", where=cursor.name, found=repr(magic), allowed="GGUF")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"GGUF version {swapped}, big-endian" if swapped < version else f"GGUF version {version}"
        raise UnsupportedError(
            f"{what} is not supported",
            where=cursor.name,
            allowed="version 2 or 3, little-endian",
            todo="Convert the model again with a current llama.cpp.",
        )
    return int(cursor.number("<u8", "the number of tensors")), int(cursor.number("<u8", "the number of entries"))


def _value(cursor: _Cursor, key: str) -> Any:
    kind = int(cursor.number("<u4", key))
    if kind == _STRING:
        return cursor.string(key)
    return _array(cursor, key, _NESTING) if kind == _ARRAY else _scalar(cursor, kind, key)


def _array(cursor: _Cursor, key: str, deepest: int) -> Any:
    kind, count = int(cursor.number("<u4", key)), int(cursor.number("<u8", key))
    if kind == _STRING:
        return [cursor.string(key) for _ in range(cursor.count(count, 8, key))]
    if kind == _ARRAY and deepest:
        return [_array(cursor, key, deepest - 1) for _ in range(cursor.count(count, 12, key))]
    if kind not in _SCALARS:
        raise BadFileError(
            "an array of an unknown type",
            where=f"{cursor.name}: {key}",
            found=kind,
            allowed=f"numbers, booleans, strings, or arrays, at most {_NESTING} deep",
        )
    dtype = np.dtype(_SCALARS[kind])
    data = cursor.take(cursor.count(count, dtype.itemsize, key) * dtype.itemsize, key)
    return np.frombuffer(data, dtype)


def _scalar(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind not in _SCALARS:
        raise BadFileError(
            "a metadata value of an unknown type", where=f"{cursor.name}: {key}", found=kind, allowed="0 to 12"
        )
    return cursor.number(_SCALARS[kind], key)


def _info(cursor: _Cursor) -> Info:
    name = cursor.string("a tensor name", _NAME_LIMIT, strict=True)
    where = f"{cursor.name}: {name}"
    if not name or "\0" in name:
        raise BadFileError("a tensor has no proper name", where=cursor.name, found=repr(name))
    rank = int(cursor.number("<u4", name))
    if rank > _RANK_LIMIT:
        raise BadFileError("a tensor has too many axes", where=where, found=rank, allowed=f"at most {_RANK_LIMIT}")
    shape = tuple(int(cursor.number("<u8", name)) for _ in range(rank))[::-1]
    if prod(shape) == 0 or prod(shape) >= 1 << 63:
        raise BadFileError("a tensor has an impossible shape", where=where, found=shape, allowed="1 to 2^63-1 elements")
    return Info(name, shape, int(cursor.number("<u4", name)), int(cursor.number("<u8", name)))


def _alignment(metadata: Mapping[str, Any], where: str) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > _ALIGNMENT_LIMIT:
        raise BadFileError(
            "an impossible alignment",
            where=f"{where}: general.alignment",
            found=alignment,
            allowed=f"a power of two up to {_ALIGNMENT_LIMIT}",
        )
    return alignment


class _Cursor:
    """Reads a file from its start, in pieces, and never beyond its end."""

    def __init__(self, file: File) -> None:
        self.name, self.at = file.name, 0
        self.notes: list[str] = []
        self._limit = min(file.size, HEAD_LIMIT)
        self._read: Callable[[int, int], bytes] = file.read
        self._whole = file.size <= HEAD_LIMIT
        self._piece, self._base = b"", 0

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        self._ensure(size, what)
        start = self.at - self._base
        if start + size > len(self._piece):
            self._base, start = self.at, 0
            self._piece = self._read(self.at, min(max(size, _PIECE), self._limit - self.at))
        self.at += size
        return self._piece[start : start + size]

    def number(self, dtype: str, what: str) -> Any:
        """The next number, as a Python bool, int or float."""
        form = np.dtype(dtype)
        data = self.take(form.itemsize, what)
        if form.kind == "b" and data[0] > 1:
            raise BadFileError("a truth value is neither 0 nor 1", where=f"{self.name}: {what}", found=data[0])
        return _UNPACK[dtype](data)[0]

    def string(self, what: str, limit: int = HEAD_LIMIT, strict: bool = False) -> str:
        """The next string; with `strict`, BadFileError where it is not UTF-8."""
        length = int(_UNPACK["<u8"](self.take(8, what))[0])
        if length > limit:
            raise BadFileError("a text is too long", where=f"{self.name}: {what}", found=length, allowed=f"<= {limit}")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if strict:
                raise BadFileError("a text is not UTF-8", where=f"{self.name}: {what}") from error
            note = f"a text of {what} is not UTF-8; the bytes that are none are replaced"
            if note not in self.notes:
                self.notes.append(note)
            return data.decode("utf-8", "replace")

    def count(self, count: int, least: int, what: str, limit: int = HEAD_LIMIT) -> int:
        """A declared count of things of at least `least` bytes each, once it is known that the file can hold them."""
        if count * least > self._limit - self.at:
            self._fail(what, f"{count} of at least {least} bytes each")
        if count > limit:
            raise BadFileError(
                "the head declares too many things", where=f"{self.name}: {what}", found=count, allowed=f"<= {limit}"
            )
        return count

    def _ensure(self, size: int, what: str) -> None:
        if size > self._limit - self.at:
            self._fail(what, f"{size} bytes")

    def _fail(self, what: str, found: str) -> None:
        where, left = f"{self.name}: {what}", f"<= {self._limit - self.at} bytes"
        if self._whole:
            raise BadFileError(
                "the head goes beyond the end of the file",
                where=where,
                found=found,
                allowed=left,
                todo="The file is truncated or damaged; fetch it again.",
            )
        raise BadFileError("the head is too large", where=where, found=found, allowed=f"{left} of {HEAD_LIMIT}")


_UNPACK = {
    dtype: struct.Struct("<" + letter).unpack for dtype, letter in zip(_SCALARS.values(), "BbHhIif?Qqd", strict=True)
}
