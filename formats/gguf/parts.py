"""The files of a GGUF model, and where in them its tensors and its padding are.

Behind the head, each tensor begins at a multiple of the alignment; what lies between two tensors, and behind the last,
is padding of less than one alignment. Parts of a split model are files `<name>-00001-of-00003.gguf`, each with a head
of its own (`split.no`, `split.count`); the first holds the metadata.

Where a tensor's type has no known layout, its end is not known: the file can be opened, the tensor cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.gguf import bitnet
from qdeploy.formats.gguf.blocks import BLOCKS
from qdeploy.formats.gguf.head import Info, read_head
from qdeploy.ir.model import SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import File, Folder
from qdeploy.store.origin import Origin
from qdeploy.store.safetensors import TensorEntry
from qdeploy.store.storage import storage_dtype

PLAIN_TYPES = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Types that are one storage type per element, by id."""
_BLOCK_TYPES = {block.number: name for name, block in BLOCKS.items()}
_UNREADABLE = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    41: "Q1_0",
}
"""Types that were withdrawn, are only intermediate, or have no published dequantizer."""
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class Stored:
    """A tensor in its file.

    Attributes:
        shape: The parameter's.
        entry: Its bytes: in the storage type, or U8 [rows, bytes per row] for blocks; empty if it cannot be read.
        origin: Its place in the ledger; None if it cannot be read.
    """

    shape: tuple[int, ...]
    entry: TensorEntry
    origin: Origin | None

    def readable(self) -> Origin:
        """Its place in the ledger; UnsupportedError, with the type's name, where it cannot be read."""
        if self.origin is None:
            raise UnsupportedError(
                "a GGUF block type that cannot be read",
                found=self.entry.dtype,
                where=f"{self.entry.file.name}: {self.entry.name}",
                allowed=", ".join(BLOCKS),
                todo="Quantize the model to another type.",
            )
        return self.origin


class Part:
    """An opened file.

    Attributes:
        head: Its head.
        tensors: Every tensor that it declares, by name.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.file = folder.open(name)
        self.head = read_head(self.file)
        self.tensors = {info.name: self._stored(info) for info in self.head.tensors}
        self._gaps = self._check_spans()

    def besides(self) -> SourceFile:
        """What is in the file besides tensors: its head, and the padding where that is not zero."""
        head = ((0, min(self.head.data, self.file.size)),)
        if _FileSpans(self.file, self._gaps).any():
            return SourceFile(self.file.name, _FileSpans(self.file, head + self._gaps).buffer(), "rest", self.file.size)
        return SourceFile(self.file.name, _FileSpans(self.file, head).buffer(), "head", self.file.size)

    def _stored(self, info: Info) -> Stored:
        where, begin = f"{self.file.name}: {info.name}", self.head.data + info.offset
        if info.offset % self.head.alignment:
            raise BadFileError(
                "a tensor is not aligned",
                where=where,
                found=f"offset {info.offset}",
                allowed=f"multiples of {self.head.alignment}",
            )
        dtype, shape, kind = self._bitnet(info, where) or _raw_layout(info, where)
        size = prod(shape) * storage_dtype(dtype).itemsize if dtype else 0
        if begin + size > self.file.size:
            raise BadFileError(
                "a tensor goes beyond the end of the file",
                where=where,
                found=f"bytes {begin}..{begin + size}",
                allowed=f"..{self.file.size}",
                todo="The file is truncated; fetch it again.",
            )
        entry = TensorEntry(self.file, info.name, dtype or kind, shape, begin, begin + size)
        origin = Origin(self.file.name, info.name, dtype, shape, kind=kind, begin=begin) if dtype else None
        return Stored(info.shape, entry, origin)

    def _bitnet(self, info: Info, where: str) -> tuple[str, tuple[int, ...], str] | None:
        """The layout of a tensor of bitnet.cpp, whose numbers ggml uses otherwise; None for every other tensor."""
        if info.type in bitnet.TILED and bitnet.is_bitnet(self.head.metadata):
            return "", (0,), f"{bitnet.TILED[info.type]} of bitnet.cpp, whose tiles are not in the file"
        if info.type != bitnet.NUMBER or not bitnet.is_stored(info, self.head, self.file.size):
            return None
        bitnet.check(info, where)
        return "U8", (bitnet.size_of(info.shape),), bitnet.NAME

    def _check_spans(self) -> tuple[tuple[int, int], ...]:
        """Checks that tensors neither overlap nor leave holes; returns the paddings."""
        at, certain, gaps = min(self.head.data, self.file.size), True, []
        for stored in sorted(self.tensors.values(), key=lambda s: s.entry.begin):
            if stored.entry.begin < at:
                raise BadFileError(
                    "two tensors overlap",
                    where=f"{self.file.name}: {stored.entry.name}",
                    found=f"byte {stored.entry.begin}",
                    allowed=f"from {at} on",
                )
            gaps.append(self._gap(at, stored.entry.begin, certain))
            at, certain = stored.entry.end, stored.origin is not None
        gaps.append(self._gap(at, self.file.size, certain))
        return tuple(gap for gap in gaps if gap[0] < gap[1])

    def _gap(self, begin: int, end: int, certain: bool) -> tuple[int, int]:
        if certain and end - begin >= self.head.alignment:
            raise BadFileError(
                "bytes that belong to no tensor",
                where=self.file.name,
                found=f"{begin}..{end}",
                allowed=f"less than {self.head.alignment} bytes of padding",
            )
        return begin, end


def open_parts(folder: Folder) -> list[Part]:
    """Opens the files of the one model that is here, in the order of their numbers.

    Raises:
        AmbiguousError: There are several models.
        BadFileError: A part is missing, or its head says that it is another one.
    """
    parts = [Part(folder, name) for name in _part_names(folder)]
    for i, part in enumerate(parts):
        count, number = (part.head.metadata.get(f"split.{key}", other) for key, other in (("count", 1), ("no", i)))
        whole = isinstance(count, int) and isinstance(number, int)
        if not whole or (count or 1, number) != (len(parts), i):
            raise BadFileError(
                "a part does not belong where its name puts it",
                where=part.file.name,
                found=f"part {number} of {count}",
                allowed=f"part {i} of {len(parts)}",
                todo="Keep the names that the split gave: <name>-00001-of-00003.gguf.",
            )
    for part in parts[1:]:
        _refuse_own_metadata(parts[0], part)
    _check_total(parts)
    return parts


def _refuse_own_metadata(first: Part, part: Part) -> None:
    """Metadata of a model stand in its first part; what another part says besides would be dropped."""
    for key, value in part.head.metadata.items():
        if key.startswith("split.") or key == "general.alignment":
            continue
        if key not in first.head.metadata or not np.array_equal(first.head.metadata[key], value):
            raise BadFileError(
                "a part of a split model has metadata of its own",
                where=part.file.name,
                found=key,
                allowed="what the first part says",
                todo="A part is of another model: fetch all parts again.",
            )


def _check_total(parts: list[Part]) -> None:
    """The first part says how many tensors all parts have: a part of another model of as many parts is seen by it."""
    total = parts[0].head.metadata.get("split.tensors.count")
    count = sum(len(part.tensors) for part in parts)
    if total is not None and total != count:
        raise BadFileError(
            "the parts of a split model do not have the tensors that the first part counts",
            where=parts[0].file.name,
            found=count,
            allowed=str(total),
            todo="A part is of another model: fetch all parts again.",
        )


def _part_names(folder: Folder) -> list[str]:
    names = [folder.only] if folder.only else [n for n in folder.names() if n.endswith(".gguf") and "/" not in n]
    stems = {m["stem"] if (m := _PART.fullmatch(name)) else name for name in names}
    if len(stems) != 1:
        raise AmbiguousError(
            "several models in one folder" if stems else "no .gguf file in the folder itself",
            where=str(folder.path),
            found=", ".join(sorted(stems)) or "none",
            todo="Name the file that is meant.",
        )
    match = _PART.fullmatch(names[0])
    if match is None:
        return names
    wanted = [f"{match['stem']}-{i + 1:05d}-of-{match['count']}.gguf" for i in range(int(match["count"]))]
    missing = [name for name in wanted if not folder.has(name)]
    if missing or not wanted:
        raise BadFileError(
            "a part of a split model is missing",
            where=str(folder.path),
            found=", ".join(missing[:3]),
            allowed=f"{len(wanted)} parts",
            todo="Fetch the missing files.",
        )
    return wanted


def _raw_layout(info: Info, where: str) -> tuple[str, tuple[int, ...], str]:
    """Storage type, stored shape and type name of a tensor; a storage type of "" where it cannot be read."""
    if info.type in PLAIN_TYPES:
        return PLAIN_TYPES[info.type], info.shape, PLAIN_TYPES[info.type]
    if info.type not in _BLOCK_TYPES:
        return "", (0,), _UNREADABLE.get(info.type, f"type {info.type}")
    name = _BLOCK_TYPES[info.type]
    block = BLOCKS[name]
    if not info.shape or info.shape[-1] % block.elements:
        raise BadFileError(
            "a row is not a whole number of blocks",
            where=where,
            found=list(info.shape),
            allowed=f"multiples of {block.elements} ({name})",
        )
    return "U8", (prod(info.shape[:-1]), info.shape[-1] // block.elements * block.size), name


@dataclass(frozen=True)
class _FileSpans:
    """Stretches of a file as one run of bytes."""

    file: File
    spans: tuple[tuple[int, int], ...]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
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
        pieces = ((at, min(step, end - at)) for begin, end in self.spans for at in range(begin, end, step))
        return any(self.file.read(at, size).strip(b"\0") for at, size in pieces)

    def buffer(self) -> Buffer:
        """The run as a buffer."""
        return Buffer("bytes", "U8", (sum(end - begin for begin, end in self.spans),), self)
