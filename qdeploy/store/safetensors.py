"""safetensors files, read by ranges.

    u64 little-endian   length n of the header
    n bytes             JSON {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}, padded
    rest                tensor bytes, little-endian, row-major, no holes, no overlaps; offsets count from here

Whether a header is legal is judged by the safetensors library's own audited parser, which opens the file first (holes,
overlaps, trailing bytes, duplicate keys, overflows); afterwards tensors are read with pread, never through a mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.store.folder import JSON_LIMIT, File, Folder, parse_json
from qdeploy.store.limits import refuse_too_many
from qdeploy.store.storage import element_bytes, storage_dtype

Array = npt.NDArray[Any]
_ENTRY = b'"data_offsets"'
"""What the description of every tensor has."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a safetensors file: where it lies, in bytes from the start of the file. Satisfies `Slabs`."""

    file: File
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def slab(self, axis: int, start: int, stop: int) -> Array:
        """Returns units [start, stop) along an axis, as an array of the storage type."""
        dtype = storage_dtype(self.dtype)
        if axis == 0 or (start == 0 and stop == self.shape[axis]):
            rows = (start, stop) if axis == 0 else (0, self.shape[0] if self.shape else 1)
            tail = self.shape[1:]
            row_bytes = int(np.prod(tail, dtype=np.int64)) * dtype.itemsize
            out = np.empty((rows[1] - rows[0]) * row_bytes, np.uint8)
            self.file.read_into(self.begin + rows[0] * row_bytes, out)
            return out.view(dtype).reshape(rows[1] - rows[0], *tail)
        outer, inner, extent = self.shape[:axis], self.shape[axis + 1 :], self.shape[axis]
        count, unit = int(np.prod(outer, dtype=np.int64)), int(np.prod(inner, dtype=np.int64)) * dtype.itemsize
        strip = np.empty((count, (stop - start) * unit), np.uint8)
        for i in range(count):  # one read per row: the strip of a wide tensor is never read with its neighbours
            self.file.read_into(self.begin + (i * extent + start) * unit, strip[i])
        return strip.view(dtype).reshape(*outer, stop - start, *inner)


class SafetensorsFile:
    """An open safetensors file.

    Args:
        folder: Where it lies.
        name: Its name there.
        parts: Entries that a tensor may have; in the shards of packages it is several buffers.

    Attributes:
        head: Its first bytes, length field included, verbatim.
        metadata: The `__metadata__` mapping.
        entries: Tensors in the order in which their bytes lie.
    """

    def __init__(self, folder: Folder, name: str, parts: int = 1) -> None:
        self.file = folder.open(name)
        if self.file.size < 8:
            raise BadFileError(
                "too short for a safetensors file",
                where=name,
                found=f"{self.file.size} bytes",
                allowed="at least 8",
                todo="Fetch the file again.",
            )
        length = int.from_bytes(self.file.read(0, 8), "little")
        if length > min(self.file.size - 8, JSON_LIMIT):
            raise BadFileError(
                "the header is longer than the file",
                where=name,
                found=f"{length} bytes",
                allowed=f"<= {min(self.file.size - 8, JSON_LIMIT)}",
                todo="The file is truncated or no safetensors file; fetch it again.",
            )
        self.head = self.file.read(0, 8 + length)
        refuse_too_many(self.head.count(_ENTRY) // parts, self.file.size, name)
        header = parse_json(self.head[8:], name)
        _judge(self.file)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        base = 8 + length
        spans = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        self.entries = {
            key: TensorEntry(
                self.file,
                key,
                row["dtype"],
                tuple(row["shape"]),
                base + row["data_offsets"][0],
                base + row["data_offsets"][1],
            )
            for key, row in spans
        }
        for entry in self.entries.values():
            _check_size(entry, name)


def _judge(file: File) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFileError(
            f"not a valid safetensors file: {error}",
            where=file.name,
            todo="The file is damaged or truncated; fetch it again.",
        ) from error


def _check_size(entry: TensorEntry, where: str) -> None:
    wanted = int(np.prod(entry.shape, dtype=object)) * element_bytes(entry.dtype)
    if wanted != entry.end - entry.begin:
        raise BadFileError(
            "a tensor's size contradicts its shape",
            where=f"{where}: {entry.name}",
            found=f"{entry.end - entry.begin} bytes",
            allowed=f"{wanted} bytes",
        )
