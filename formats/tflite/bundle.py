"""LiteRT-LM (.litertlm) and MediaPipe (.task) bundles as a source: the TFLite network of a language model, and more.

bundles.py says where the sections lie. One network is read: the only one, or the one that generates
(tf_lite_prefill_decode); the others are named, and carried as they are, like every other section. A tokenizer comes out
as the file that it was made from: tokenizer.json (zlib), or tokenizer.model (SentencePiece).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.tflite.bundles import MAGIC, Section, sections_of
from qdeploy.formats.tflite.reader import opened
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Array, ArrayRows, Buffer
from qdeploy.store.folder import File, FileRows, Folder

NAME = "litertlm"
TITLE = "LiteRT-LM and MediaPipe bundles (.litertlm, .task): a TFLite network, its tokenizer and metadata"
WRITES = False
SIGNATURES = True
"""The network of a bundle may have several signatures, of which `--signature` names one."""
_SUFFIXES = (".litertlm", ".task")
_GENERATES = "tf_lite_prefill_decode"
_TOKENIZERS = {"SP_Tokenizer": "tokenizer.model", "HF_Tokenizer_Zlib": "tokenizer.json"}
_LONGEST = 1 << 30
"""Bytes of a tokenizer."""


def sniff(folder: Folder) -> Sniff:
    """Declared by the name of a file; .litertlm by its magic as well."""
    if folder.only:
        named = folder.only.endswith(_SUFFIXES)
        file = folder.open(folder.only)
        try:
            magic = file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC
        finally:
            file.close()
        return Sniff(95, "begins with LITERTLM") if magic else Sniff(85, "a .task file") if named else NOT_MINE
    named = any(n.endswith(_SUFFIXES) and "/" not in n for n in folder.names())
    return Sniff(80, "a folder with a bundle") if named else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the network; of its weights nothing is read yet.

    Raises:
        BadFileError: The container or the network is damaged.
        UnsupportedError: It holds no network, or its weights lie in a section of their own.
        AmbiguousError: It holds several networks of which none is the one that generates.
    """
    name = _file(folder)
    file = folder.open(name)
    try:
        sections = sections_of(file)
        chosen = _network(sections, name)
        model = opened(folder, name, _Part(file, chosen.begin, chosen.size), chosen.begin)
        rest = [_carried(folder, name, file, place, s) for place, s in enumerate(sections) if s is not chosen]
        rest += _head(folder, name, sections)
    finally:
        file.close()
    side = [] if folder.only else [n for n in folder.names() if n != name]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    listed = f"sections of {name}: {', '.join(section.label for section in sections)}"
    networks = [s.label for s in sections if s.kind == "TFLiteModel" and s is not chosen]
    notes = [listed, *([f"networks of the bundle that were not read: {', '.join(networks)}"] if networks else [])]
    own = _without_doubles((*files, *rest))
    return replace(model, format=NAME, files=own, notes=[*notes, *model.notes])


def _network(sections: Sequence[Section], where: str) -> Section:
    networks = [section for section in sections if section.kind == "TFLiteModel"]
    generating = [section for section in networks if section.model_type == _GENERATES]
    listed = ", ".join(section.label for section in sections)
    if not networks:
        raise UnsupportedError("a bundle without a TFLite network", where=where, found=listed)
    if len(networks) > 1 and len(generating) != 1:
        raise AmbiguousError("a bundle with several networks", where=where, found=listed)
    chosen = networks[0] if len(networks) == 1 else generating[0]
    weights = [s for s in sections if s.kind == "TFLiteWeights" and s.model_type in ("", chosen.model_type)]
    if weights:
        raise UnsupportedError("a network whose weights lie in a section of their own", where=where, found=listed)
    return chosen


def _carried(folder: Folder, name: str, file: File, place: int, section: Section) -> SourceFile:
    """A section as a file: tokenizers by the name that they go by, everything else by its place and kind."""
    path = _TOKENIZERS.get(section.kind)
    if section.kind == "HF_Tokenizer_Zlib":
        data = np.frombuffer(_inflated(file, section), np.uint8)
        return SourceFile("tokenizer.json", Buffer("tokenizer.json", "U8", (len(data),), ArrayRows(data)), "derived")
    rows = _Rows(folder.rows(name), section.begin)
    path = path or f"sections/{place}.{section.kind.replace('/', '_')}"
    return SourceFile(path, Buffer(path, "U8", (section.size,), rows), "derived")


def _head(folder: Folder, name: str, sections: Sequence[Section]) -> list[SourceFile]:
    """The bytes before the first section, which say what every section is."""
    size = min(section.begin for section in sections)
    return [SourceFile("sections/head", Buffer("sections/head", "U8", (size,), _Rows(folder.rows(name), 0)), "derived")]


def _inflated(file: File, section: Section) -> bytes:
    """The size as uint64, and a zlib stream of so many bytes."""
    where = f"{file.name}: {section.kind}"
    if section.size < 8:
        raise BadFileError("a compressed tokenizer without a size", where=where, found=f"{section.size} bytes")
    size = int.from_bytes(file.read(section.begin, 8), "little")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(file.read(section.begin + 8, section.size - 8), min(size, _LONGEST) + 1)
    except zlib.error as error:
        raise BadFileError(f"a compressed tokenizer is damaged: {error}", where=where) from error
    if len(data) != size or not stream.eof:
        raise BadFileError(
            "a compressed tokenizer has another size than it says", where=where, found=len(data), allowed=str(size)
        )
    return data


def _without_doubles(files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Files that stand beside the bundle go before what was made from it under the same name."""
    kept: dict[str, SourceFile] = {}
    for file in files:
        kept.setdefault(file.path, file)
    return tuple(kept.values())


def _file(folder: Folder) -> str:
    names = [folder.only] if folder.only else [n for n in folder.names() if n.endswith(_SUFFIXES) and "/" not in n]
    if len(names) != 1:
        raise AmbiguousError(
            "several bundles in one folder", where=str(folder.path), found=", ".join(names), todo="Name the one."
        )
    return names[0]


class _Part(File):
    """A run of bytes of an open file, seen as a file."""

    def __init__(self, file: File, begin: int, size: int) -> None:
        self.path, self.name, self.size = file.path, file.name, size
        self._whole, self._begin, self._descriptor = file, begin, -1

    def read(self, start: int, size: int) -> bytes:
        self._check(start, size)
        return self._whole.read(self._begin + start, size)

    def read_into(self, start: int, out: Array) -> None:
        self._check(start, out.nbytes)
        self._whole.read_into(self._begin + start, out)

    def _check(self, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > self.size:
            raise BadFileError("a range lies outside of the network", where=self.name, found=f"{start}..{start + size}")


@dataclass(frozen=True)
class _Rows:
    """Bytes of a file from a place on."""

    rows: FileRows
    begin: int

    def read(self, start: int, stop: int) -> Array:
        return self.rows.read(self.begin + start, self.begin + stop)
