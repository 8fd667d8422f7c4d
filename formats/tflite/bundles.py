"""Containers around TFLite networks of language models: where their sections lie.

    .litertlm (LiteRT-LM; schema/core/litertlm_header_schema.fbs there)
        0   "LITERTLM"
        8   uint32 major, minor, patch, padding
        24  uint64 end of the header
        32  FlatBuffers LiteRTLMMetaData{system_metadata, section_metadata{objects}}, up to that end
        object{items, begin_offset, end_offset, data_type}; an item is {key, kind of value, value}; type 9 is a string
    .task (MediaPipe): a zip of entries that are stored as they are: TF_LITE_PREFILL_DECODE, TOKENIZER_MODEL, ...

Offsets are of the file. Nothing is followed that leaves the header.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.store.archives import open_zip
from qdeploy.store.folder import File

MAGIC = b"LITERTLM"
_KINDS = (
    "NONE",
    "GenericBinaryData",
    "Deprecated",
    "TFLiteModel",
    "SP_Tokenizer",
    "LlmMetadataProto",
    "HF_Tokenizer_Zlib",
    "TFLiteWeights",
    "EmbeddingMetadataProto",
    "ExecutorMetadataProto",
)
_TASK_KINDS = {"TOKENIZER_MODEL": "SP_Tokenizer", "METADATA": "LlmMetadataProto"}
_STRING, _MOST = 9, 1 << 12
_HEADER = 1 << 24


@dataclass(frozen=True)
class Section:
    """A part of a container.

    Attributes:
        kind: What it is, by the names of the schema; "type 17" for one that is not known.
        begin: Where it begins in the file.
        size: Its bytes.
        items: What is said of it in words.
    """

    kind: str
    begin: int
    size: int
    items: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """Which network of a language model it is, in lower case; "" where nothing is said."""
        return self.items.get("model_type", "").lower()

    @property
    def label(self) -> str:
        """Its name in reports."""
        words = f" {self.model_type}" if self.model_type else ""
        return f"{self.kind}{words} ({self.size} bytes)"


def sections_of(file: File) -> list[Section]:
    """The sections of a container, in their order.

    Raises:
        BadFileError: It is no such container, or a section leaves the file.
        UnsupportedError: An entry is compressed.
    """
    sections = _header(file) if file.read(0, min(8, file.size)) == MAGIC else _entries(file)
    for section in sections:
        if section.begin < 0 or section.size < 0 or section.begin + section.size > file.size:
            raise BadFileError(
                "a section lies outside of the file",
                where=f"{file.name}: {section.kind}",
                found=f"bytes {section.begin}..{section.begin + section.size}",
                allowed=f"0..{file.size}",
            )
    return sections


# ---- .litertlm


def _header(file: File) -> list[Section]:
    end = int.from_bytes(file.read(24, 8), "little") if file.size >= 32 else 0
    major = int.from_bytes(file.read(8, 4), "little") if end else 0
    if not 36 <= end <= min(file.size, _HEADER) or major != 1:
        raise BadFileError(
            "the header of the container cannot be read", where=file.name, found=f"version {major}, end {end}"
        )
    tables = _Tables(file.read(32, end - 32), file.name)
    metadata = tables.reference(0)
    objects = tables.table(tables.table(metadata, 1), 0)
    return [_section(tables, tables.reference(place)) for place in tables.elements(objects)]


def _section(tables: _Tables, at: int) -> Section:
    begin, end = (tables.number(at, place, 8) for place in (1, 2))
    kind = tables.number(at, 3, 1)
    items = {}
    listed = tables.field(at, 0)
    for place in tables.elements(tables.reference(listed)) if listed else ():
        item = tables.reference(place)
        if tables.number(item, 1, 1) == _STRING:
            items[tables.text(tables.table(item, 0))] = tables.text(tables.table(tables.table(item, 2), 0))
    return Section(_KINDS[kind] if kind < len(_KINDS) else f"type {kind}", begin, end - begin, items)


class _Tables:
    """FlatBuffers of the header; every step is checked."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where = data, where

    def _bytes(self, at: int, size: int) -> bytes:
        if at < 0 or at + size > len(self.data):
            raise BadFileError("the header of the container is damaged", where=self.where, found=f"byte {32 + at}")
        return self.data[at : at + size]

    def _whole(self, at: int, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._bytes(at, size), "little", signed=signed)

    def reference(self, at: int) -> int:
        """Where an offset leads."""
        return at + self._whole(at, 4)

    def field(self, table: int, place: int) -> int:
        """Where a field of a table lies; 0 for one that is left out."""
        layout = table - self._whole(table, 4, signed=True)
        if 4 + 2 * place >= self._whole(layout, 2):
            return 0
        offset = self._whole(layout + 4 + 2 * place, 2)
        return table + offset if offset else 0

    def table(self, table: int, place: int) -> int:
        """What a field refers to; BadFileError where it is left out."""
        at = self.field(table, place)
        if not at:
            raise BadFileError("the header of the container lacks a field", where=self.where, found=f"field {place}")
        return self.reference(at)

    def number(self, table: int, place: int, size: int) -> int:
        """A field of so many bytes; 0 where it is left out."""
        at = self.field(table, place)
        return self._whole(at, size) if at else 0

    def elements(self, vector: int) -> range:
        """Where the elements of a vector of offsets lie."""
        count = self._whole(vector, 4)
        if count > _MOST:
            raise BadFileError("the header of the container is damaged", where=self.where, found=f"{count} elements")
        self._bytes(vector + 4, 4 * count)
        return range(vector + 4, vector + 4 + 4 * count, 4)

    def text(self, at: int) -> str:
        """A string."""
        return self._bytes(at + 4, self._whole(at, 4)).decode("utf-8", "replace")


# ---- .task


def _entries(file: File) -> list[Section]:
    try:
        with open_zip(file) as archive:
            entries = archive.infolist()
            return [_entry(file, entry) for entry in entries]
    except zipfile.BadZipFile as error:
        raise BadFileError(f"neither LITERTLM nor a zip: {error}", where=file.name) from error


def _entry(file: File, entry: zipfile.ZipInfo) -> Section:
    """A stored entry; its bytes lie behind its local header (30 bytes, its name, and an extra field)."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedError(
            "an entry that is compressed",
            where=f"{file.name}: {entry.filename}",
            todo="Store the entries of the bundle without compression.",
        )
    head = file.read(entry.header_offset, 30)
    begin = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    network = entry.filename.startswith("TF_LITE")
    kind = "TFLiteModel" if network else _TASK_KINDS.get(entry.filename, entry.filename)
    return Section(kind, begin, entry.file_size, {"model_type": entry.filename.lower()} if network else {})
