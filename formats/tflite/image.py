"""The tables of a TFLite file, verified before anything follows their offsets.

    bytes 0..3   offset of the root table      bytes 4..7   "TFL3"
    table        i32 back to its vtable, then fields inline: scalars, or u32 forward offsets
    vtable       u16 its size, u16 the table's size, then one u16 per field: where in the table it lies, 0: absent
    vector       u32 count, elements; tables in a vector are u32 offsets       string   a vector of bytes

The schema package follows offsets without asking whether they lie in the file. So everything that it will follow is
followed here first. What was verified is copied page by page into a sparse image of the file, and the package reads
that image: memory is taken for the metadata, not for the weights, whose vectors are only located. Work is bounded by a
multiple of the file's size, so that tables that share their content cannot make a small file a large job; subgraphs
that are not asked for are not entered.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.store.folder import File

_PAGE = 4096
_SLACK = 16  # behind the end: a scalar of 8 bytes whose field begins in the last byte reads zeros

_WIDTHS = {1: 4, 2: 2, 3: 1}
"""SparseIndexVector: the bytes of a number."""

Spec = dict[int, Any]
"""Of a table: what each field that is an offset leads to."""
STRING, BYTES = ("vector", 1), "bytes"
_DETAILS: Spec = {}
_QUANTIZATION: Spec = {0: ("vector", 4), 1: ("vector", 4), 2: ("vector", 4), 3: ("vector", 8), 5: ("table", _DETAILS)}
_AXIS = "axis of a sparse tensor"
_SPARSITY: Spec = {0: ("vector", 4), 1: ("vector", 4), 2: _AXIS}
_TENSOR: Spec = {
    0: ("vector", 4),
    3: STRING,
    4: ("table", _QUANTIZATION),
    6: ("table", _SPARSITY),
    7: ("vector", 4),
    9: ("vector", 4),
}
_LISTS: Spec = {n: ("vector", 4 if n in (1, 2, 8) else 1) for n in (1, 2, 5, 7, 8)}
_OPERATOR: Spec = {**_LISTS, 4: ("table", {0: ("vector", 4)})}
_SCALARS: Spec = {**_LISTS, 4: ("table", {})}
_SUBGRAPH: Spec = {0: ("tables", _TENSOR), 1: ("vector", 4), 2: ("vector", 4), 3: "operators", 4: STRING}
_NAMED: Spec = {4: STRING}
MODEL: Spec = {1: ("tables", {1: STRING}), 2: ("tables", _NAMED), 4: ("tables", {0: BYTES}), 7: ("tables", {2: STRING})}
"""The model, and of its subgraphs their names alone."""
_LISTED = ("ReshapeOptions", "SqueezeOptions")
"""Options whose first field is a vector; the others that are read here hold scalars alone."""


class Image:
    """Verifies tables and copies what they hold."""

    def __init__(self, file: File) -> None:
        self.file, self.size = file, file.size
        self.bytes = np.zeros(file.size + _SLACK, np.uint8)  # pages that are never written take no memory
        self._loaded = bytearray(-(-file.size // _PAGE))
        self._work = 64 * file.size + (1 << 16)

    def bad(self, found: object) -> BadFileError:
        """The error for everything that leads nowhere."""
        return BadFileError(
            "a TFLite file whose offsets lead nowhere",
            where=self.file.name,
            found=found,
            todo="The file is damaged or truncated; fetch it again.",
        )

    def need(self, begin: int, size: int) -> None:
        """Makes a range of the file readable in the image."""
        if begin < 0 or size < 0 or begin + size > self.size:
            raise self.bad(f"bytes {begin}..{begin + size} of {self.size}")
        self._work -= size + 16
        if self._work < 0:
            raise self.bad("the same bytes used again and again")
        for page in range(begin // _PAGE, -(-(begin + size) // _PAGE)):
            if not self._loaded[page]:
                low, high = page * _PAGE, min((page + 1) * _PAGE, self.size)
                self.file.read_into(low, self.bytes[low:high])
                self._loaded[page] = 1

    def number(self, place: int, form: str = "<I") -> int:
        """The number that stands somewhere."""
        self.need(place, struct.calcsize(form))
        return int(struct.unpack_from(form, self.bytes.data, place)[0])

    def vector(self, place: int, size: int, read: bool = True) -> tuple[int, int]:
        """First element and count of a vector that an offset at `place` leads to."""
        at = place + self.number(place)
        count = self.number(at)
        if at + 4 + count * size > self.size:
            raise self.bad(f"{count} elements at byte {at}")
        if read:
            self.need(at + 4, count * size)
        return at + 4, count

    def fields(self, at: int) -> list[int]:
        """Where each field of a table lies; 0: absent."""
        back = at - self.number(at, "<i")
        size, extent = self.number(back, "<H"), self.number(back + 2, "<H")
        if size < 4 or size % 2 or extent < 4:
            raise self.bad(f"a table without a description at byte {at}")
        self.need(at, extent)
        self.need(back, size)
        slots = self.bytes[back + 4 : back + size].view("<u2").tolist()
        if any(slot >= extent for slot in slots):
            raise self.bad(f"a field behind its table at byte {at}")
        return [at + slot if slot else 0 for slot in slots]

    def table(self, at: int, spec: Spec) -> None:
        """Verifies a table and all that its specification leads to."""
        places = self.fields(at)
        for slot, kind in spec.items():
            if slot < len(places) and places[slot]:
                self._field(places[slot], kind)

    def _field(self, place: int, kind: Any) -> None:
        if kind == BYTES:
            self.vector(place, 1, read=False)
        elif kind == _AXIS:
            first, count = self.vector(place, 4)
            for i in range(count):
                self._sparse_axis(first + 4 * i + self.number(first + 4 * i))
        elif kind == "operators":
            first, count = self.vector(place, 4)
            for i in range(count):
                self._operator(first + 4 * i + self.number(first + 4 * i))
        elif kind[0] == "vector":
            self.vector(place, kind[1])
        elif kind[0] == "table":
            self.table(place + self.number(place), kind[1])
        else:
            first, count = self.vector(place, 4)
            for i in range(count):
                self.table(first + 4 * i + self.number(first + 4 * i), kind[1])

    def subgraph(self, index: int) -> None:
        """Verifies one of the model's subgraphs, which `table` with MODEL has found to be there."""
        first, _ = self.vector(self.fields(self.number(0))[2], 4)
        self.table(first + 4 * index + self.number(first + 4 * index), _SUBGRAPH)

    def _sparse_axis(self, at: int) -> None:
        """Segments and indices: each a table of one vector, whose type says how wide its numbers are."""
        places = self.fields(at)
        for kind, slot in ((2, 3), (4, 5)):
            width = 0
            if len(places) > slot and places[kind] and places[slot]:
                width = _WIDTHS.get(self.number(places[kind], "<B"), 0)
            if width:
                self.table(places[slot] + self.number(places[slot]), {0: ("vector", width)})

    def _operator(self, at: int) -> None:
        """An operator; its options have a vector only where their type says so."""
        import tflite

        places = self.fields(at)
        options_type = int(self.bytes[places[3]]) if len(places) > 3 and places[3] else 0
        listed = options_type in [getattr(tflite.BuiltinOptions, name) for name in _LISTED]
        self.table(at, _OPERATOR if listed else _SCALARS)
