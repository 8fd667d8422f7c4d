"""GGUF, the file format of ggml and llama.cpp: metadata, vocabulary and tensors in one file, or in numbered parts.

    parts.py       the files, and where the tensors are in them
    head.py        the bytes before the tensors: header, metadata, tensor infos
    blocks.py      how the numbers of a tensor lie in blocks of 32 to 256 elements, one row per block type
    config.py      metadata in the spelling of config.json
    tokenizer.py   tokenizer.json from the vocabulary in the metadata

Every tensor has a block type of its own: the name of a quantization ("Q4_K_M") says only which types its quantizer
prefers. Codes, scales and minima are kept as they are stored, in normal form.

Rows of q and k of the `llama` architecture are stored so that the two elements of a rotated pair are neighbours. They
are not put back: the bytes stay, and the graph rotates neighbours (`rope_interleaved`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import ArrayRows, Buffer, QTensor, Source, SourceTensor, Term, plain
from qdeploy.store.codec import SLAB_BYTES, Codec, Slabs, VerbatimRows, verbatim
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin

if TYPE_CHECKING:
    from qdeploy.formats.gguf.blocks import Block
    from qdeploy.formats.gguf.parts import Part, Stored
    from qdeploy.formats.gguf.ternary import TernaryBlock

NAME = "gguf"
TITLE = "GGUF file of llama.cpp, every block type (single file or split)"
WRITES = True


def sniff(folder: Folder) -> Sniff:
    """Declared by the magic of a file, or by a folder that holds `.gguf`."""
    if folder.only:
        file = folder.open(folder.only)
        if file.size >= 4 and file.read(0, 4) == b"GGUF":
            return Sniff(100, "the magic of a GGUF file")
        return Sniff(50, "the name of a GGUF file") if folder.only.endswith(".gguf") else NOT_MINE
    if not any(n.endswith(".gguf") and "/" not in n for n in folder.names()):
        return NOT_MINE
    return Sniff(90, "a folder with a .gguf file")


def read(folder: Folder) -> Model:
    """Opens the file, or all parts of a split model; nothing but the heads is read yet.

    Raises:
        BadFileError: A head is damaged, tensors overlap or leave the file, or a part is missing.
        UnsupportedError: Version 1, or big-endian, or no tensors at all.
        AmbiguousError: A folder holds several models.
    """
    from qdeploy.formats.gguf.config import describe
    from qdeploy.formats.gguf.parts import open_parts
    from qdeploy.formats.huggingface.checkpoint import LazyTensors

    parts = open_parts(folder)
    stored = _gathered(parts)
    tensors = LazyTensors({name: partial(_tensor, entry) for name, entry in stored.items()})
    metadata = parts[0].head.metadata
    config, build = describe(metadata, {name: entry.shape for name, entry in stored.items()})
    side = _side_files(folder, {part.file.name for part in parts})
    derived, notes = _derived_files(metadata, {file.path for file in side})
    notes = [*dict.fromkeys(note for part in parts for note in part.head.notes), *notes, *_unapplied(stored)]
    heads = [part.besides() for part in parts]
    origins = tuple(entry.origin for entry in stored.values() if entry.origin is not None)
    return Model(NAME, str(folder.path), tensors, config, "gguf", (*side, *derived, *heads), origins, build, notes)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a source is written back."""
    from qdeploy.formats.gguf import bitnet
    from qdeploy.formats.gguf.blocks import BLOCKS

    if source.writer == "verbatim":
        return tuple(verbatim("data") for _ in source.tensors)
    if source.writer == bitnet.WRITER:
        return (bitnet.codec((int(source.args["rows"]), int(source.args["columns"]))),)
    blocks = [BLOCKS[part.dtype] for part in source.tensors]
    return tuple(Codec(block.keys, block.unpack, block.pack) for block in blocks)


@dataclass(frozen=True)
class BlockRows:
    """Rows of one buffer of a tensor in blocks. The first read of a range is its proof; later ones unpack one field.

    A buffer may be a small part of its tensor (one scale of 2 bytes in a block of 210), so a read that is small for the
    buffer is cut into pieces of the tensor.
    """

    block: Block | TernaryBlock
    key: str
    source: Slabs
    origin: Origin

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns buffer rows [start, stop)."""
        step = max(1, SLAB_BYTES * self.origin.extent // self.origin.nbytes)
        pieces = [self._piece(low, min(low + step, stop)) for low in range(start, max(stop, start + 1), step)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _piece(self, start: int, stop: int) -> npt.NDArray[Any]:
        raw = self.source.slab(0, start, stop)
        if start == stop or self.origin.covers(start, stop):
            return self.block.field(raw, self.key)
        fields = self.block.unpack(raw)
        self.origin.prove(start, stop, raw, self.block.pack(*fields))
        return fields[self.block.keys.index(self.key)]


def _gathered(parts: list[Part]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for part in parts:
        for name, stored in part.tensors.items():
            if name in tensors:
                raise BadFileError("a tensor is in two parts", where=part.file.name, found=name)
            tensors[name] = stored
    if not tensors:
        raise UnsupportedError("a GGUF file without tensors", where=parts[0].file.name, todo="Is it only a vocabulary?")
    return tensors


def _unapplied(stored: Mapping[str, Stored]) -> list[str]:
    """What the kernels of bitnet.cpp do besides."""
    from qdeploy.formats.gguf import bitnet

    names = [name for name, entry in stored.items() if entry.origin and entry.origin.kind == bitnet.NAME]
    what = "not applied: bitnet.cpp quantizes inputs to 8-bit int per token, too"
    return [f"{what} ({len(names)} layers, the first {names[0].removesuffix('.weight')})"] if names else []


def _tensor(stored: Stored) -> QTensor:
    from qdeploy.formats.gguf import bitnet
    from qdeploy.formats.gguf.blocks import BLOCKS

    origin, entry = stored.readable(), stored.entry
    if origin.kind == bitnet.NAME:
        return bitnet.tensor(stored.shape, entry, origin)
    if origin.kind in BLOCKS:
        block = BLOCKS[origin.kind]
        grid = (prod(stored.shape[:-1]), stored.shape[-1])  # a vector is one row
        codes = block.codes(grid, {key: BlockRows(block, key, entry, origin) for key in block.keys})
        source = Source(NAME, "blocks", {}, (SourceTensor(origin.file, origin.name, origin.kind, grid),))
        return QTensor(stored.shape, "F32", (Term(codes),), source=source)
    source = Source(NAME, "verbatim", {}, (SourceTensor(origin.file, origin.name, entry.dtype, entry.shape),))
    buffer = Buffer("data", entry.dtype, entry.shape or (1,), VerbatimRows(entry, origin))
    tensor = plain(buffer, plain_name(entry.dtype), source)
    return tensor if entry.shape else QTensor((), tensor.dtype, tensor.terms, source=source)


def _side_files(folder: Folder, own: set[str]) -> list[SourceFile]:
    names = [] if folder.only else [name for name in folder.names() if name not in own]
    return [SourceFile(name, Buffer(name, "U8", (folder.size(name),), folder.rows(name))) for name in names]


def _derived_files(metadata: Any, present: set[str]) -> tuple[list[SourceFile], list[str]]:
    """Files that other formats have and GGUF holds as metadata; those that are there already are not made again."""
    from qdeploy.formats.gguf.config import sentence_files
    from qdeploy.formats.vocabulary import derive

    texts, notes = derive(metadata, present)
    if "modules.json" not in present:
        texts |= sentence_files(metadata)
    return [SourceFile(path, _in_memory(text), "derived") for path, text in texts.items()], notes


def _in_memory(text: bytes) -> Buffer:
    array = np.frombuffer(text, np.uint8)
    return Buffer("bytes", "U8", array.shape, ArrayRows(array))
