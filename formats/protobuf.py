"""The wire format of protocol buffers (protobuf.dev, "Encoding"): the fields of a message, without a schema."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.errors import BadFileError


def fields(data: bytes, where: str, what: str = "not a protobuf message") -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, in order.

    Args:
        data: The message.
        where: Its file, for errors.
        what: What the error says.

    Yields:
        (number, value): an integer for varints and fixed widths (of floats the bits), bytes for what has a length.

    Raises:
        BadFileError: The bytes are no message.
    """
    at = 0
    while at < len(data):
        key, at = varint(data, at, where, what)
        number, form = key >> 3, key & 7
        if form == 0:
            value, at = varint(data, at, where, what)
            yield number, value
            continue
        size, at = varint(data, at, where, what) if form == 2 else ({1: 8, 5: 4}.get(form, -1), at)
        if size < 0 or at + size > len(data):
            raise BadFileError(what, where=where, found=f"field {number} at byte {at}")
        part = data[at : at + size]
        yield number, part if form == 2 else int.from_bytes(part, "little")
        at += size


def varint(data: bytes, at: int, where: str, what: str = "not a protobuf message") -> tuple[int, int]:
    """A number of up to ten bytes, and where the next field begins."""
    value = 0
    for place in range(10):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << (7 * place)
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise BadFileError(what, where=where, found=f"a number at byte {at}")


def signed(value: int) -> int:
    """A varint as the integer of 64 bits that it is in two's complement."""
    return value - (1 << 64) if value >> 63 else value
