"""The external data file: every offset planned first, then filled by slabs of rows.

    model.onnx         the graph; each large initializer is a triple (location, offset, length)
    model.onnx.data    the initializers' bytes, row-major, little-endian; those of at least 64 KiB start at a multiple
                       of 4096 (ONNX Runtime maps the file page by page), smaller ones at a multiple of 64

Two initializers may name the same range: an embedding and the output projection that is tied to it are stored once.
Nothing here ever holds a whole tensor: the writer reads rows of a source, which go to the file and through SHA-256.
"""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdeploy.errors import OutputError, ProofError
from qdeploy.ir.views.params import RowReader
from qdeploy.progress import Progress

SLAB = 8 << 20
"""Bytes that are asked from a source at a time."""
_PAGE, _LINE, _LARGE = 4096, 64, 64 << 10


@dataclass(frozen=True)
class Blob:
    """Bytes of one initializer, and where its rows come from.

    Attributes:
        name: Of the initializer that brought it.
        shape: Rows are the first axis.
        itemsize: Bytes per element.
        rows: Gives rows [start, stop) with exactly their bytes in the file.
        weight: Bytes that the source works with per byte written (decoding to float32 needs room); slabs shrink by it.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    rows: RowReader
    weight: int = 1

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return math.prod(self.shape[1:]) * self.itemsize

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class Placed:
    """A blob with its place in the file."""

    blob: Blob
    offset: int


class ExternalData:
    """The plan of the data file, and its execution."""

    def __init__(self) -> None:
        self.placed: list[Placed] = []
        self.size = 0

    def place(self, blob: Blob) -> Placed:
        """Gives a blob the next free aligned range."""
        alignment = _PAGE if blob.nbytes >= _LARGE else _LINE
        offset = -(-self.size // alignment) * alignment
        self.placed.append(Placed(blob, offset))
        self.size = offset + blob.nbytes
        return self.placed[-1]

    def write(self, path: Path, progress: Progress, jobs: int = 1) -> dict[str, str]:
        """Fills the file.

        Args:
            path: The file; it must not exist.
            progress: Told of every slab.
            jobs: Blobs that are written at the same time.

        Returns:
            SHA-256 of every blob's bytes, hexadecimal, by its name.

        Raises:
            OutputError: The file cannot be written.
            ProofError: A source gave other rows than it declared.
        """
        progress.start("writing weights", sum(p.blob.nbytes for p in self.placed))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(descriptor, self.size)
                digests = self._fill(descriptor, progress, jobs)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(
                f"cannot write the weights: {error.strerror}",
                where=str(path),
                todo="Free some space or choose another folder.",
            ) from error
        return dict(zip((p.blob.name for p in self.placed), digests, strict=True))

    def _fill(self, descriptor: int, progress: Progress, jobs: int) -> list[str]:
        def one(place: Placed) -> str:
            return _fill_one(descriptor, place, progress)

        if jobs <= 1:
            return [one(place) for place in self.placed]
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, self.placed))


def _fill_one(descriptor: int, place: Placed, progress: Progress) -> str:
    blob, digest, offset = place.blob, hashlib.sha256(), place.offset
    step = max(1, SLAB // max(1, blob.row_bytes * blob.weight))
    for start in range(0, blob.shape[0], step):
        stop = min(start + step, blob.shape[0])
        slab = np.ascontiguousarray(blob.rows(start, stop))
        if slab.nbytes != (stop - start) * blob.row_bytes:
            raise ProofError(
                "a source gave rows of another size",
                where=blob.name,
                found=f"{slab.nbytes} bytes",
                allowed=f"{(stop - start) * blob.row_bytes} bytes",
            )
        view = memoryview(slab.reshape(-1).view(np.uint8).data)
        digest.update(view)
        while view:  # a full disk shows as an OSError, an interrupted call as a short count
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
        progress.advance(slab.nbytes, blob.name)
    return digest.hexdigest()
