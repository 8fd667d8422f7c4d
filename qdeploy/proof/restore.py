"""Writing the source files again from a package: the proof that can be held against the original."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from qdeploy import registry
from qdeploy.contracts.formats import Writer
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.package import Package
from qdeploy.ir.tensor import Buffer, QTensor, Source, buffers
from qdeploy.options import SourceOptions
from qdeploy.progress import Progress
from qdeploy.store.codec import Codec, restore
from qdeploy.store.folder import Folder
from qdeploy.store.output import Staged, write_all
from qdeploy.store.storage import storage_dtype

_SLAB_BYTES = 8 << 20
_VERBATIM = Codec(("data",), lambda raw: (raw,), lambda rows: rows)


def restore_files(model: Model, stage: Staged, progress: Progress, no_verify: bool = False) -> None:
    """Writes every carried file and every tensor file into a staged folder, byte for byte.

    Raises:
        UnsupportedError: A tensor's format has no writer, or only its values were kept.
    """
    package = Package(Folder(model.path, options=SourceOptions(no_verify=no_verify)))
    progress.start("writing the source files", sum(t.nbytes for t in model.tensors.values()))
    heads = {}
    for file in package.files():
        if file.role == "side":
            stage.write(file.path, _slabs(file.data))
        elif file.role in ("head", "rest"):
            heads[file.path] = file
    opened = {path: _create(stage, head, _gaps(package, head)) for path, head in heads.items()}
    try:
        for name, tensor in model.tensors.items():
            _restore_tensor(name, tensor, package, opened)
            progress.advance(tensor.nbytes, name)
        for descriptor in opened.values():
            os.fsync(descriptor)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a source is made of the tensor's buffers."""
    if source.writer == "verbatim":
        return (_VERBATIM,)
    writer = registry.format_module(source.format)
    if not writer.WRITES or not isinstance(writer, Writer):
        raise UnsupportedError("this format has no writer", found=source.format)
    try:
        return writer.codecs(source)
    except (KeyError, TypeError, ValueError) as error:  # the arguments come from a manifest, which may lie
        raise BadFileError("the package does not say how its source is written", found=dict(source.args)) from error


def _create(stage: Staged, head: SourceFile, gaps: list[tuple[int, int]]) -> int:
    """A file of its final size that holds what is not a tensor; everything else is zero until the tensors come."""
    final = stage.path / head.path
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(final, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
    os.ftruncate(descriptor, head.total)
    kept = 0
    for begin, end in gaps:
        size = min(end - begin, head.data.nbytes - kept)
        for start in range(kept, kept + size, _SLAB_BYTES):
            chunk = head.data.read(start, min(start + _SLAB_BYTES, kept + size))
            write_all(descriptor, chunk.data, begin + start - kept)
        kept += size
    return descriptor


def _gaps(package: Package, head: SourceFile) -> list[tuple[int, int]]:
    """Where a file holds no tensor: its head, and what lies between and behind the tensors."""
    spans = []
    for file, _, _, shape, _, begin, dtype in package.manifest["stored"]:
        if file == head.path:
            spans.append((begin, begin + math.prod(shape) * storage_dtype(dtype).itemsize))
    edges = [(0, 0), *sorted(spans), (head.total, head.total)]
    return [(end, begin) for (_, end), (begin, _) in itertools.pairwise(edges) if begin > end]


def _restore_tensor(name: str, tensor: QTensor, package: Package, opened: dict[str, int]) -> None:
    source = tensor.source
    if source is None or source.exact != "bytes":
        raise UnsupportedError(
            "a tensor cannot be written back byte for byte",
            where=name,
            found="no source" if source is None else "only its values were kept",
        )
    by_key = {b.key: b for b in buffers(tensor)}
    numbers = package.manifest["sources"][name][4]
    lost = sorted({package.manifest["stored"][number][0] for number in numbers} - set(opened))
    if lost:
        raise UnsupportedError(
            "files of this format are not written back",
            where=name,
            found=", ".join(lost),
            todo="Its tensors are proven; the file around them is not kept.",
        )
    for number, how in zip(numbers, codecs(source), strict=True):
        file, _, _, shape, axis, begin, dtype = package.manifest["stored"][number]
        entry = _Place(opened[file], tuple(shape), axis, begin, dtype)
        for start, slab in restore(how, [by_key[k] for k in how.keys], tuple(shape)):
            entry.write(start, slab)
    if source.residue is not None:
        _apply_residue(source.residue, numbers, package, opened)


class _Place:
    """Where a stored tensor lies in its file."""

    def __init__(self, descriptor: int, shape: tuple[int, ...], axis: int, begin: int, dtype: str) -> None:
        self.descriptor, self.shape, self.axis, self.begin = descriptor, shape, axis, begin
        self.itemsize = storage_dtype(dtype).itemsize

    def write(self, start: int, slab: Any) -> None:
        data = np.ascontiguousarray(slab)
        if self.axis == 0 or not self.shape or data.shape[self.axis] == self.shape[self.axis]:
            row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.itemsize
            write_all(self.descriptor, data.view(np.uint8).reshape(-1).data, self.begin + start * row)
            return
        unit = int(np.prod(self.shape[self.axis + 1 :], dtype=np.int64)) * self.itemsize
        parts = data.view(np.uint8).reshape(int(np.prod(self.shape[: self.axis], dtype=np.int64)), -1)
        for i, part in enumerate(parts):
            write_all(self.descriptor, part.data, self.begin + (i * self.shape[self.axis] + start) * unit)


def _apply_residue(residue: Buffer, numbers: list[int], package: Package, opened: dict[str, int]) -> None:
    rows = residue.read().reshape(-1).view([("tensor", "<u4"), ("offset", "<u8"), ("xor", "u1")])
    for tensor, offset, xor in rows.tolist():
        file, _, _, _, _, begin, _ = package.manifest["stored"][numbers[tensor]]
        descriptor = opened[file]
        byte = os.pread(descriptor, 1, begin + offset)
        os.pwrite(descriptor, bytes([byte[0] ^ xor]), begin + offset)


def _slabs(buffer: Buffer) -> Iterator[Any]:
    for start in range(0, buffer.shape[0], _SLAB_BYTES):
        yield np.ascontiguousarray(buffer.read(start, min(start + _SLAB_BYTES, buffer.shape[0])))
