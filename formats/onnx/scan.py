"""The outermost layers of an ONNX file, read without its weights.

An ONNX file is one protobuf message. Of its fields only these matter here (onnx.proto3; number, name):

    ModelProto     7 graph
    GraphProto     5 initializer (repeated)
    TensorProto    9 raw_data: the elements, little-endian, row-major, where they are not in a typed field

A field is a varint key (number << 3 | wire type) and a body: a varint (0), 8 bytes (1), a varint length and so many
bytes (2), or 4 bytes (5). The walk notes where each initializer's raw_data lies and leaves it out; what remains, the
skeleton, is a valid message again and is given to the onnx package. So a file of any size, beyond the 2 GiB that a
protobuf library takes, costs no more memory than its graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qdeploy.errors import BadFileError
from qdeploy.store.folder import File

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
_WINDOW = 1 << 16
_FIXED = {1: 8, 5: 4}


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of the file."""

    begin: int
    end: int


@dataclass(frozen=True)
class _Field:
    number: int
    start: int  # of its key
    body: Span


def scan(file: File) -> tuple[bytes, list[Span | None]]:
    """Walks the file.

    Returns:
        The message without the raw_data of its initializers, and where that lies, per initializer in their order.

    Raises:
        BadFileError: It is not a protobuf message, a length leaves its message, or a field that must be single is not.
    """
    walk = _Walk(file)
    parts: list[bytes] = []
    spans: list[Span | None] = []
    graphs = 0
    for field in walk.fields(Span(0, file.size)):
        if field.number == GRAPH:
            graphs += 1
            parts.append(_message(GRAPH, _graph(walk, field.body, spans)))
        else:
            parts.append(walk.bytes(Span(field.start, field.body.end)))
    if graphs != 1:
        raise BadFileError("an ONNX file holds one graph", where=file.name, found=graphs, allowed="1")
    return b"".join(parts), spans


def _graph(walk: _Walk, span: Span, spans: list[Span | None]) -> bytes:
    parts = []
    for field in walk.fields(span):
        if field.number != INITIALIZER:
            parts.append(walk.bytes(Span(field.start, field.body.end)))
            continue
        kept, raw = [], [f.body for f in walk.fields(field.body) if f.number == RAW_DATA]
        kept = [walk.bytes(Span(f.start, f.body.end)) for f in walk.fields(field.body) if f.number != RAW_DATA]
        if len(raw) > 1:
            raise BadFileError("a tensor has its data twice", where=walk.file.name, found=f"byte {field.start}")
        spans.append(raw[0] if raw else None)
        parts.append(_message(INITIALIZER, b"".join(kept)))
    return b"".join(parts)


class _Walk:
    """The fields of messages, read through a window."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._begin, self._data = 0, b""

    def bytes(self, span: Span) -> bytes:
        """The bytes of a span."""
        return self.file.read(span.begin, span.end - span.begin)

    def fields(self, span: Span) -> Iterator[_Field]:
        """The fields of a message, in order."""
        at = span.begin
        while at < span.end:
            start = at
            key, at = self._varint(at, span.end)
            wire, number = key & 7, key >> 3
            if wire == 0:
                body = Span(at, self._varint(at, span.end)[1])
            elif wire == 2:
                length, at = self._varint(at, span.end)
                body = Span(at, at + length)
            elif wire in _FIXED:
                body = Span(at, at + _FIXED[wire])
            else:
                raise BadFileError(
                    "not an ONNX file: no such kind of field",
                    where=self.file.name,
                    found=wire,
                    allowed="wire types 0, 1, 2 and 5",
                )
            if number == 0 or body.end > span.end:
                raise BadFileError(
                    "not an ONNX file: a field leaves its message",
                    where=self.file.name,
                    found=f"field {number}, bytes {body.begin}..{body.end}",
                    allowed=f"..{span.end}",
                    todo="The file is damaged or truncated; fetch it again.",
                )
            yield _Field(number, start, body)
            at = body.end

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        if not self._begin <= at <= self._begin + len(self._data) - 10:
            self._begin = at
            self._data = self.file.read(at, min(_WINDOW, self.file.size - at))
        value = 0
        for i, byte in enumerate(self._data[at - self._begin : min(end, at + 10) - self._begin]):
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value, at + i + 1
        raise BadFileError("not an ONNX file: a number does not end", where=self.file.name, found=f"byte {at}")


def _message(number: int, body: bytes) -> bytes:
    """A field that holds a message."""
    return _encoded(number << 3 | 2) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
