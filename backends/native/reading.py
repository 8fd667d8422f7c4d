"""Reading a model file back with numpy, by row blocks: the oracle of the writer and of the runtime.

Opening reads the front alone: however large the file is, its directory, rungs and metadata are a few megabytes. Nothing
is mapped: a file that is cut short while it is open is an error like any other.
"""

from __future__ import annotations

import os
import stat
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.backends.native import interleave, metadata
from qdeploy.backends.native.checksum import crc32c, page_checksums
from qdeploy.backends.native.layout import (
    HEADER,
    NONE,
    PAGE,
    RECORDS,
    VERSION,
    Feature,
    NumberKind,
    SectionId,
    TensorKind,
    TermKind,
)
from qdeploy.backends.native.naming import MAGIC
from qdeploy.backends.native.numbers import DTYPES
from qdeploy.backends.native.parts import Array
from qdeploy.backends.native.soundness import check_directory, check_header
from qdeploy.errors import BadFileError, UnsupportedError

_TENSORS = {TensorKind.FLOAT32: "<f4", TensorKind.INT32: "<i4", TensorKind.INT8: "i1"}
_ENTRY = np.dtype([("column", "<u4"), ("row", "<u4"), ("value", "<f4")])


class ModelFile:
    """A model file.

    Args:
        path: The file.

    Raises:
        BadFileError: It is not a model file, or its front is damaged.
        UnsupportedError: It is of another version, or needs a feature that this one does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor, self.size = _opened(path)
        weakref.finalize(self, os.close, self._descriptor)
        if self.size < HEADER.itemsize or self.read(0, 8).tobytes() != MAGIC:
            raise BadFileError("not a model file of qdeploy", where=str(path), found=f"{self.size} bytes")
        self.header: Any = self.read(0, HEADER.itemsize).view(HEADER)[0]
        if self.header["version"] != VERSION:
            raise UnsupportedError(
                "a model file of another version",
                where=str(path),
                found=self.header["version"],
                allowed=str(VERSION),
                todo="Convert the model again.",
            )
        check_header(self.header, self.size, str(path))
        self._front = self.read(0, int(self.header["front_end"]))
        sums = (crc32c(self._front[:508]), crc32c(self._front[HEADER.itemsize :]))
        if sums != (int(self.header["header_crc"]), int(self.header["front_crc"])):
            raise BadFileError(
                "the front of the model file is damaged",
                where=str(path),
                found="other checksums",
                todo="Fetch or convert it again.",
            )
        self._check_features()
        check_directory({which: self.section(which) for which in SectionId}, self.header, str(path))

    def _check_features(self) -> None:
        unknown = int(self.header["features"]) & ~sum(Feature)
        if not unknown:
            return
        lines = self.metadata.get("features", b"").decode(errors="replace").splitlines()
        names = dict(line.split(" ", 1) for line in lines if " " in line)
        bits = [str(bit) for bit in range(64) if unknown >> bit & 1]
        raise UnsupportedError(
            "a model file that needs features which this version does not know",
            where=str(self.path),
            found=", ".join(f"{bit} ({names.get(bit, 'that the file does not name')})" for bit in bits),
            allowed=", ".join((feature.name or "").lower() for feature in Feature) or "none",
            todo="Install a newer qdeploy.",
        )

    def read(self, at: int, count: int) -> Array:
        """Bytes of the file, uint8 [count].

        Raises:
            BadFileError: They are not there (any more).
        """
        content = bytearray()
        while len(content) < count:
            try:
                part = os.pread(self._descriptor, count - len(content), at + len(content))
            except (OSError, ValueError, OverflowError) as error:
                raise BadFileError("a model file cannot be read", where=str(self.path), found=error) from error
            if not part:
                raise BadFileError(
                    "the model file ends early",
                    where=str(self.path),
                    found=f"{at + len(content)} bytes",
                    allowed=f"{at + count} bytes",
                    todo="Fetch or convert it again.",
                )
            content += part
        return np.frombuffer(content, np.uint8)

    def section(self, which: SectionId) -> Any:
        """The records of a section."""
        at, count = (int(n) for n in self.header["sections"][which])
        kind = RECORDS[which]
        return self._front[at : at + count * kind.itemsize].view(kind)

    @cached_property
    def metadata(self) -> dict[str, bytes]:
        """The metadata by key."""
        return metadata.unpack(self.section(SectionId.METADATA).tobytes())

    def string(self, at: int) -> str:
        """A name in the metadata."""
        text: str = self._names[at : self._names.find(b"\0", at)].decode(errors="replace")
        return text

    @cached_property
    def _names(self) -> bytes:
        return bytes(self.section(SectionId.METADATA)) + b"\0"

    def damaged_pages(self) -> list[int]:
        """Pages whose checksum is not that of their bytes."""
        start, known = int(self.header["resident_at"]), self.section(SectionId.PAGES)
        damaged = []
        for first in range(0, len(known), 128):
            at = start + first * PAGE
            wrong = page_checksums(self.read(at, min(128 * PAGE, self.size - at))) != known[first : first + 128]
            damaged += [first + int(i) for i in np.nonzero(wrong)[0]]
        return damaged

    def tensor(self, index: int) -> Array:
        """A resident tensor, flat."""
        record = self.section(SectionId.TENSORS)[index]
        at = int(self.header["resident_at"]) + int(record["at"])
        return self.read(at, int(record["bytes"])).view(_TENSORS[TensorKind(int(record["kind"]))])

    def matrices(self) -> dict[str, int]:
        """Matrices by name."""
        return {self.string(int(m["name_at"])): i for i, m in enumerate(self.section(SectionId.MATRICES))}

    def rows(self, matrix: int, first: int, last: int, rung: int | None = None) -> Array:
        """Row blocks [first, last) of a matrix: float32 [rows, columns].

        Args:
            matrix: Its index.
            first: First row block.
            last: One past the last.
            rung: How many blocks of the stack are there; None: all.

        Raises:
            BadFileError: Its terms do not hold what their records say.
        """
        try:
            return self._rows(matrix, first, last, rung)
        except (ValueError, IndexError) as error:
            raise BadFileError("a matrix of the file cannot be read", where=str(self.path), found=error) from error

    def _rows(self, matrix: int, first: int, last: int, rung: int | None) -> Array:
        record = self.section(SectionId.MATRICES)[matrix]
        resident = self._resident(rung)
        total = np.zeros((16 * (last - first), int(record["padded_columns"])), np.float32)
        begin = int(record["first_term"])
        for index in range(begin, begin + int(record["terms"])):
            if resident[index]:
                values = _Term(self, index, record, first, last, resident[index]).values()
                total = values if index == begin else total + values
        if record["map_tensor"] != NONE:
            order = self.tensor(int(record["map_tensor"]))
            out = np.zeros((len(total), int(record["columns"])), np.float32)
            out[:, order[order >= 0]] = total[:, order >= 0]
            total = out
        total = total[: min(last * 16, int(record["rows"])) - first * 16, : int(record["columns"])]
        if record["scale_tensor"] != NONE:
            total = total * self.tensor(int(record["scale_tensor"]))[first * 16 : last * 16][: len(total), None]
        return total

    def _resident(self, rung: int | None) -> dict[int, int]:
        planes: dict[int, int] = dict.fromkeys(range(len(self.section(SectionId.TERMS))), 0)
        blocks = self.section(SectionId.BLOCKS)
        for block in blocks[np.argsort(blocks["at"], kind="stable")][:rung]:
            planes[int(block["term"])] += 1
        return planes

    @cached_property
    def blocks(self) -> dict[tuple[int, int], int]:
        """Where each block begins in the file, by term and plane."""
        start = int(self.header["stack_at"])
        return {(int(b["term"]), int(b["plane"])): start + int(b["at"]) for b in self.section(SectionId.BLOCKS)}


def _opened(path: Path) -> tuple[int, int]:
    """The descriptor of a regular file and its size; a FIFO does not wait for its writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise BadFileError("a model file cannot be opened", where=str(path), found=error) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status.st_size
    os.close(descriptor)
    raise BadFileError("a model file must be a regular file", where=str(path), found=stat.filemode(status.st_mode))


class _Term:
    """Some row blocks of a term."""

    def __init__(self, file: ModelFile, index: int, matrix: Any, first: int, last: int, planes: int) -> None:
        self.file, self.index, self.first, self.last, self.planes = file, index, first, last, planes
        self.record = file.section(SectionId.TERMS)[index]
        self.columns, self.row_blocks = int(matrix["padded_columns"]), -(-int(matrix["rows"]) // 16)
        self.start = file.blocks[index, 0]
        self.params_at = file.blocks[index, planes - 1] if self.record["ladder"] else self.start

    def values(self) -> Array:
        """float32 [rows, padded columns]."""
        kind = TermKind(int(self.record["kind"]))
        if kind == TermKind.VECTOR:
            return self._vector()
        if kind == TermKind.BITSTACK:
            return self._bitstack()
        if kind == TermKind.SPARSE:
            return self._sparse()
        with np.errstate(all="ignore"):
            values = self._codes(kind)
            for name, operation in (("zero", np.subtract), ("scale", np.multiply), ("offset", np.add)):
                if kind in (TermKind.TABLE3, TermKind.TABLE4, TermKind.FLOATS) and name != "scale":
                    continue
                param = self._param(name)
                if param is not None:
                    values = operation(values, param)
                elif name == "zero":
                    values = values - self.record["zero_for_all"]
        return values.astype(np.float32, copy=False)

    def _run(self, at: int, shape: tuple[int, ...], kind: Any) -> Array:
        """Row blocks of something that lies at `at` of the file; shape is that of one row block."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        part = self.file.read(at + self.first * size, (self.last - self.first) * size)
        values: Array = part.view(kind).reshape(-1, *shape)
        return values

    def _codes(self, kind: TermKind) -> Array:
        at, columns = self.start + int(self.record["codes_at"]), self.columns
        if kind == TermKind.PLANES:
            return self._bit_planes(at)
        if kind == TermKind.FLOATS:
            element = DTYPES[NumberKind(int(self.record["element"]))]
            return interleave.from_columns(self._run(at, (columns, 16), element)).astype(np.float32)
        unpack, shape = {
            TermKind.NIBBLES: (interleave.from_nibbles, (columns // 8, 64)),
            TermKind.PAIRS: (interleave.from_pairs, (columns // 16, 64)),
            TermKind.BYTES: (interleave.from_whole_bytes, (columns // 4, 64)),
            TermKind.TABLE4: (interleave.from_nibbles, (columns // 8, 64)),
            TermKind.TABLE3: (interleave.from_triples, (columns // 32, 192)),
        }[kind]
        codes = unpack(self._run(at, shape, np.uint8))
        if kind not in (TermKind.TABLE3, TermKind.TABLE4):
            return codes.astype(np.float32)
        tables = int(self.record["tables"])
        table = self.file.tensor(int(self.record["table_tensor"])).reshape(tables, -1)
        if tables == 1:
            single: Array = table[0][codes]
            return single
        place = self.start + int(self.record["select_at"])
        select = interleave.from_columns(self._run(place, (int(self.record["groups"]), 16), np.uint8))
        decoded: Array = table[self._over_columns(select), codes]
        return decoded

    def _bit_planes(self, at: int) -> Array:
        count = int(self.record["planes"])
        starts = [at, *(self.file.blocks[self.index, p] for p in range(1, self.planes))]
        bit_planes = [self._run(place, (self.columns // 32, 64), np.uint8) for place in starts]
        codes = interleave.from_planes(bit_planes, count).astype(np.float32)
        return codes + np.float32(((1 << (count - self.planes)) - 1) / 2)  # the middle of what is left

    def _param(self, name: str) -> Array | None:
        record = self.record[name]
        kind, above = NumberKind(int(record["kind"])), NumberKind(int(record["super_kind"]))
        if kind == NumberKind.NO:
            return None
        groups = int(self.record["groups"])
        run = self._run(self.params_at + int(record["at"]), (groups, 16), DTYPES[kind])
        values = interleave.from_columns(run).astype(np.float32)
        if above != NumberKind.NO:
            span = int(record["super_span"])
            run = self._run(self.params_at + int(record["super_at"]), (-(-groups // span), 16), DTYPES[above])
            high = interleave.from_columns(run).astype(np.float32)
            values = values * self._spread(high, span, groups)
        return self._over_columns(values)

    def _over_columns(self, values: Array) -> Array:
        return self._spread(values, int(self.record["group"]), self.columns)

    def _spread(self, values: Array, span: int, count: int) -> Array:
        """Each of the values for `span` places in a row, `count` places in all."""
        if span == 0 or (count - 1) // span >= values.shape[1]:
            raise BadFileError(
                "groups that do not cover a row",
                where=f"{self.file.path}: a term",
                found=f"{values.shape[1]} of {span}",
                allowed=f"{count} places",
            )
        spread: Array = values[:, np.arange(count) // span]
        return spread

    def _vector(self) -> Array:
        width, books, levels = (int(self.record[name]) for name in ("width", "books", "levels"))
        kind = "u1" if levels <= 256 else "<u2"
        at = self.start + int(self.record["codes_at"])
        codes = interleave.from_entries(self._run(at, (self.columns // width, books, 16), kind))
        table = self.file.tensor(int(self.record["table_tensor"])).reshape(books, levels, width)
        total = table[0][codes[0]]
        for book in range(1, books):
            total = total + table[book][codes[book]]
        rows: Array = total.reshape(len(total), -1)
        return rows

    def _bitstack(self) -> Array:
        rank, at = int(self.record["rank"]), self.start + int(self.record["codes_at"])
        u = interleave.from_columns(self._run(at, (rank, 16), "<f2")).astype(np.float32)
        at += self.row_blocks * rank * 32
        v = self.file.read(at, rank * self.columns * 2).view("<f2").reshape(rank, -1)
        at, signs = at + rank * self.columns * 2, np.zeros((len(u), self.columns), np.float32)
        for tile in interleave.sign_tiles(self.columns):
            wide = tile.stop - tile.start
            signs[:, tile] = interleave.from_planes([self._run(at, (wide // 32, 64), np.uint8)], 1)
            at += self.row_blocks * wide * 2
        total = np.zeros_like(signs)
        for j in range(rank):
            total = total + u[:, j : j + 1] * v[j].astype(np.float32)
        return (signs * 2 - 1) * total

    def _sparse(self) -> Array:
        at = self.start + int(self.record["codes_at"])
        starts = self.file.read(at, 4 * (self.row_blocks + 1)).view("<u4").astype(np.int64)
        out = np.zeros((16 * (self.last - self.first), self.columns), np.float32)
        at += 4 * (self.row_blocks + 1)
        for place in range(self.first, self.last):
            count = max(0, int(starts[place + 1] - starts[place]))
            entries = self.file.read(at + int(starts[place]) * 12, count * 12).view(_ENTRY)
            out[(place - self.first) * 16 + entries["row"], entries["column"]] = entries["value"]
        return out
