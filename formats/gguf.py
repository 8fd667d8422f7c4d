"""GGUF, the file format of ggml and llama.cpp: one file (or numbered parts of one) with metadata, vocabulary and tensors.

    gguf_head.py        the bytes before the tensors: header, metadata, tensor infos
    gguf_blocks.py      how the numbers of a tensor lie in blocks of 32 to 256 elements, one row per block type
    gguf_config.py      metadata in the spelling of config.json
    gguf_tokenizer.py   tokenizer.json from the vocabulary in the metadata

Behind the head, each tensor begins at a multiple of the alignment; what lies between two tensors, and behind the last, is
less than one alignment of padding. Parts of a split model are files `<name>-00001-of-00003.gguf`, each with a head of its
own (`split.no`, `split.count`); the first holds the metadata. Every tensor has its own block type: the name of a
quantization ("Q4_K_M") says only which types its quantizer prefers.

Rows of q and k of the `llama` architecture are stored so that the two elements of a rotated pair are neighbours. They are
not put back: the bytes stay, and the graph rotates neighbours (`rope_interleaved`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.datatype import PLAIN_TABLE
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import ArrayRows, Buffer, QTensor, Source, SourceTensor, Term, plain
from qdeploy.store.folder import File, Folder
from qdeploy.store.origin import Origin
from qdeploy.store.recode import Recoding, Slabs, VerbatimRows, verbatim
from qdeploy.store.safetensors import TensorEntry
from qdeploy.store.storage import storage_dtype

if TYPE_CHECKING:
    from qdeploy.formats.gguf_blocks import Block, TernaryBlock
    from qdeploy.formats.gguf_head import Head, Info

NAME = "gguf"
TITLE = "GGUF file of llama.cpp, every block type (single file or split)"
WRITES = True

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_UNREADABLE = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 41: "Q1_0",
}  # fmt: skip
"""Types that were withdrawn, are only intermediate, or have no published dequantizer."""


def sniff(folder: Folder) -> Sniff:
    """Declared by the magic of a file, or by a folder that holds `.gguf`."""
    if folder.only:
        file = folder.open(folder.only)
        magic = file.read(0, 4) if file.size >= 4 else b""
        return Sniff(100, "the magic of a GGUF file") if magic == b"GGUF" else NOT_MINE
    if folder.has("qdeploy.json") or not any(name.endswith(".gguf") for name in folder.names()):
        return NOT_MINE
    return Sniff(90, "a folder with a .gguf file")


def read(folder: Folder) -> Model:
    """Opens the file, or all parts of a split model; nothing but the heads is read yet.

    Raises:
        BadFileError: A head is damaged, tensors overlap or leave the file, or a part is missing.
        AmbiguousError: A folder holds several models.
    """
    from qdeploy.formats.gguf_config import describe, sentence_files
    from qdeploy.formats.gguf_tokenizer import derive
    from qdeploy.formats.huggingface import LazyTensors

    parts = [_Part(folder, name) for name in _part_names(folder)]
    _check_parts(parts)
    entries: dict[str, _Stored] = {}
    for part in parts:
        for name, stored in part.tensors.items():
            if name in entries:
                raise BadFileError("a tensor is in two parts", where=part.file.name, found=name)
            entries[name] = stored
    if not entries:
        raise UnsupportedError("a GGUF file without tensors", where=parts[0].file.name, todo="Is it only a vocabulary?")
    tensors = LazyTensors({name: stored.tensor for name, stored in entries.items()})
    metadata = parts[0].head.metadata
    config, build = describe(metadata, {name: stored.info.shape for name, stored in entries.items()})
    side = _side_files(folder, parts)
    present = {file.path for file in side}
    derived, notes = derive(metadata, present)
    pooling = {path: text.encode() for path, text in sentence_files(metadata).items() if "modules.json" not in present}
    made = [SourceFile(path, _in_memory(text), "derived") for path, text in (derived | pooling).items()]
    kept = [file for part in parts for file in part.files()]
    origins = tuple(s.origin for s in entries.values() if s.origin is not None)
    return Model(NAME, str(folder.path), tensors, config, "gguf", (*side, *made, *kept), origins, build, notes)


def recodings(source: Source) -> tuple[Recoding, ...]:
    """How each stored tensor of a source is written back."""
    from qdeploy.formats.gguf_blocks import BLOCKS

    if source.writer == "verbatim":
        return tuple(verbatim("data") for _ in source.tensors)
    blocks = [BLOCKS[part.dtype] for part in source.tensors]
    return tuple(Recoding(block.keys, block.unpack, block.pack) for block in blocks)


@dataclass(frozen=True)
class BlockRows:
    """Rows of one buffer of a tensor in blocks. The first read of a range is its proof; later ones unpack one field."""

    block: Block | TernaryBlock
    key: str
    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns buffer rows [start, stop)."""
        raw = self.source.slab(0, start, stop)
        if self.origin.covers(start, stop):
            return self.block.field(raw, self.key)
        made = self.block.unpack(raw)
        self.origin.prove(start, stop, raw, self.block.pack(*made))
        return made[self.block.keys.index(self.key)]


@dataclass(frozen=True)
class _Stored:
    """A tensor of a file, with its place in the ledger; without one where its type cannot be read."""

    info: Info
    file: File
    begin: int
    end: int
    origin: Origin | None

    def tensor(self) -> QTensor:
        name, origin = self.info.name, self.origin
        if origin is None:
            label = _UNREADABLE.get(self.info.type, "unknown")
            raise UnsupportedError(f"GGUF block type {label} cannot be read", where=f"{self.file.name}: {name}",
                                   found=f"type {self.info.type}", todo="Quantize the model to another type.")  # fmt: skip
        entry = TensorEntry(self.file, name, origin.dtype, origin.shape, self.begin, self.end)
        return _plain(entry, origin) if self.info.type in _PLAIN else _blocks(entry, origin, self.info.shape)


def _plain(entry: TensorEntry, origin: Origin) -> QTensor:
    source = Source(NAME, "verbatim", {}, (SourceTensor(entry.file.name, entry.name, entry.dtype, entry.shape),))
    buffer = Buffer("data", entry.dtype, entry.shape or (1,), VerbatimRows(entry, origin))
    tensor = plain(buffer, PLAIN_TABLE[entry.dtype], source)
    return tensor if entry.shape else QTensor((), tensor.dtype, tensor.terms, source=source)


def _blocks(entry: TensorEntry, origin: Origin, shape: tuple[int, ...]) -> QTensor:
    from qdeploy.formats.gguf_blocks import BLOCKS

    block = BLOCKS[origin.kind]
    grid = (prod(shape[:-1]), shape[-1])  # rows are never divided; a vector is one row
    codes = block.codes(grid, {key: BlockRows(block, key, entry, origin) for key in block.keys})
    source = Source(NAME, "blocks", {}, (SourceTensor(entry.file.name, entry.name, origin.kind, grid),))
    return QTensor(shape, "F32", (Term(codes),), source=source)


class _Part:
    """One file: its head, and where its tensors are."""

    def __init__(self, folder: Folder, name: str) -> None:
        from qdeploy.formats.gguf_head import read_head

        self.file = folder.open(name)
        self.head: Head = read_head(self.file)
        self.tensors = {info.name: self._stored(info) for info in self.head.tensors}
        self._gaps = self._check_spans()

    def files(self) -> list[SourceFile]:
        """What is in the file besides tensors: its head, and the padding where it is not zero."""
        head = _FileSpans(self.file, ((0, min(self.head.data, self.file.size)),))
        gaps = _FileSpans(self.file, self._gaps)
        if not gaps.any():
            return [SourceFile(self.file.name, head.buffer(), "head", self.file.size)]
        return [SourceFile(f"{self.file.name}.head", head.buffer(), "rest"),
                SourceFile(f"{self.file.name}.padding", gaps.buffer(), "rest")]  # fmt: skip

    def _stored(self, info: Info) -> _Stored:
        where, begin = f"{self.file.name}: {info.name}", self.head.data + info.offset
        if info.offset % self.head.alignment:
            raise BadFileError("a tensor is not aligned", where=where, found=f"offset {info.offset}",
                               allowed=f"multiples of {self.head.alignment}")  # fmt: skip
        laid = _raw_layout(info, where)
        size = prod(laid[1]) * storage_dtype(laid[0]).itemsize if laid else 0
        if begin + size > self.file.size:
            raise BadFileError("a tensor goes beyond the end of the file", where=where, found=f"bytes {begin}..{begin + size}",
                               allowed=f"..{self.file.size}", todo="The file is truncated; fetch it again.")  # fmt: skip
        origin = Origin(self.file.name, info.name, laid[0], laid[1], kind=laid[2], begin=begin) if laid else None
        return _Stored(info, self.file, begin, begin + size, origin)

    def _check_spans(self) -> tuple[tuple[int, int], ...]:
        """Checks that tensors neither overlap nor leave holes; returns the paddings."""
        at, certain, gaps = min(self.head.data, self.file.size), True, []
        for stored in sorted(self.tensors.values(), key=lambda s: s.begin):
            if stored.begin < at:
                raise BadFileError("two tensors overlap", where=f"{self.file.name}: {stored.info.name}",
                                   found=f"byte {stored.begin}", allowed=f"from {at} on")  # fmt: skip
            gaps.append(self._gap(at, stored.begin, certain))
            at, certain = stored.end, stored.origin is not None
        gaps.append(self._gap(at, self.file.size, certain))
        return tuple(gap for gap in gaps if gap[0] < gap[1])

    def _gap(self, begin: int, end: int, certain: bool) -> tuple[int, int]:
        if certain and end - begin >= self.head.alignment:
            raise BadFileError("bytes that belong to no tensor", where=self.file.name, found=f"{begin}..{end}",
                               allowed=f"less than {self.head.alignment} bytes of padding")  # fmt: skip
        return begin, end


def _raw_layout(info: Info, where: str) -> tuple[str, tuple[int, ...], str] | None:
    """Storage type, stored shape and type name of a tensor: [rows, bytes per row] for blocks; None if not readable."""
    from qdeploy.formats.gguf_blocks import BLOCKS

    if info.type in _PLAIN:
        return _PLAIN[info.type], info.shape, _PLAIN[info.type]
    for name, block in BLOCKS.items():
        if block.number == info.type:
            if not info.shape or info.shape[-1] % block.elements:
                raise BadFileError("a row is no whole number of blocks", where=where, found=info.shape,
                                   allowed=f"multiples of {block.elements} ({name})")  # fmt: skip
            return "U8", (prod(info.shape[:-1]), info.shape[-1] // block.elements * block.size), name
    return None


@dataclass(frozen=True)
class _FileSpans:
    """Parts of a file as one run of bytes."""

    file: File
    spans: tuple[tuple[int, int], ...]

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Returns bytes [start, stop) of the run."""
        out, at = np.empty(stop - start, np.uint8), 0
        for begin, end in self.spans:
            low, high = max(start, at), min(stop, at + end - begin)
            if low < high:
                self.file.read_into(begin + low - at, out[low - start : high - start])
            at += end - begin
        return out

    def any(self) -> bool:
        """Whether a byte is not zero."""
        step = 1 << 20
        return any(any(self.file.read(at, min(step, end - at)).strip(b"\0") for at in range(begin, end, step))
                   for begin, end in self.spans)  # fmt: skip

    def buffer(self) -> Buffer:
        """The run as a buffer."""
        return Buffer("bytes", "U8", (sum(end - begin for begin, end in self.spans),), self)


def _in_memory(text: bytes) -> Buffer:
    array = np.frombuffer(text, np.uint8)
    return Buffer("bytes", "U8", array.shape, ArrayRows(array))


def _part_names(folder: Folder) -> list[str]:
    """The files of the one model that is here, in the order of their numbers."""
    names = [folder.only] if folder.only else [n for n in folder.names() if n.endswith(".gguf") and "/" not in n]
    stems = {m["stem"] if (m := _PART.fullmatch(name)) else name for name in names}
    if len(stems) != 1:
        raise AmbiguousError("several models in one folder" if stems else "no .gguf file in the folder itself",
                             where=str(folder.path), found=", ".join(sorted(stems)) or "none",
                             todo="Name the file that is meant.")  # fmt: skip
    found = _PART.fullmatch(names[0])
    if found is None:
        return names
    wanted = [f"{found['stem']}-{i + 1:05d}-of-{found['count']}.gguf" for i in range(int(found["count"]))]
    missing = [name for name in wanted if not folder.has(name)]
    if missing or not wanted:
        raise BadFileError("a part of a split model is missing", where=str(folder.path), found=", ".join(missing[:3]),
                           allowed=f"{len(wanted)} parts", todo="Fetch the missing files.")  # fmt: skip
    return wanted


def _check_parts(parts: list[_Part]) -> None:
    for i, part in enumerate(parts):
        count, number = (part.head.metadata.get(f"split.{key}", other) for key, other in (("count", 1), ("no", i)))
        fits = isinstance(count, int) and isinstance(number, int) and (count or 1, number) == (len(parts), i)
        if not fits:
            raise BadFileError("a part does not belong where its name puts it", where=part.file.name,
                               found=f"part {number} of {count}", allowed=f"part {i} of {len(parts)}",
                               todo="Keep the names that the split gave: <name>-00001-of-00003.gguf.")  # fmt: skip


def _side_files(folder: Folder, parts: list[_Part]) -> tuple[SourceFile, ...]:
    if folder.only:
        return ()
    own = {part.file.name for part in parts}
    return tuple(SourceFile(name, Buffer(name, "U8", (folder.size(name),), folder.rows(name)))
                 for name in folder.names() if name not in own)  # fmt: skip
