"""From buffers to unsigned codes: the four layouts of `ir/tensor.py`, by rows of the grid.

The packed axis is the last one. In a grid of one axis it is also the axis of the rows: then the whole bytes that hold a
range are read, and what they hold besides it is cropped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Array, Buffer, Codes, Layout, Param, Shape, Table
from qdeploy.pack import bits, planes, radix
from qdeploy.store.storage import element_bytes

Reader = Callable[[Codes, int, int], Array]
"""Reads rows of a grid of codes: all planes or some, dense or under a mask."""


def read_codes(codes: Codes, start: int, stop: int) -> Array:
    """Returns rows [start, stop) of the grid as unsigned integers.

    Returns:
        [stop - start, *codes.shape[1:]]; uint8 for packed codes of up to 8 bits, uint16 above; in the plain layout the
        bits of the storage type. May be a view of the buffer.

    Raises:
        BadFileError: The buffers do not hold the grid.
    """
    return read_grid(codes, codes.shape, start, stop)


def packed_codes(numbers: Array, width: int, table: str | Table, scale: Param | None = None) -> Codes:
    """Integers as a stream of `width` bits each, at most 8, in memory; negative ones in two's complement."""
    packed = bits.pack((numbers & ((1 << width) - 1)).astype(np.uint8), width)
    return Codes(numbers.shape, (Buffer.of("codes", packed, "U8"),), Layout("bits", width), table, scale=scale)


def read_grid(codes: Codes, shape: Shape, start: int, stop: int, resident: int | None = None) -> Array:
    """Returns rows of the codes laid out in another grid than their own.

    Args:
        codes: Whose buffers and layout.
        shape: The grid that the buffers hold.
        start: First row.
        stop: One past the last.
        resident: How many leading planes to read; the others are zero. None: all. Means nothing to other layouts.
    """
    layout = codes.layout
    if len(codes.data) != (layout.width if layout.kind == "planes" else 1):
        raise BadFileError("codes with another number of buffers than their layout has", found=len(codes.data))
    if layout.kind == "plain":
        rows = _rows(codes.data[0], shape, start, stop)
        return rows.view(f"<u{rows.itemsize}")
    stored = packed_shape(codes, shape)
    if len(shape) > 1:
        packed = [_rows(b, stored, start, stop) for b in codes.data[:resident]]
        return _unpack(codes, packed, shape[-1])
    group, size = _group(codes)
    first = start // group
    low, high = first * size, min(-(-stop // group) * size, stored[0])
    count = stop - first * group
    packed = [_rows(b, stored, low, high)[: -(-count * size // group)] for b in codes.data[:resident]]
    return _unpack(codes, packed, count)[start - first * group :]


def container(codes: Codes) -> int:
    """Returns how many different codes the layout can hold."""
    layout = codes.layout
    if layout.kind == "radix":
        return layout.base
    return 1 << (8 * element_bytes(codes.data[0].dtype) if layout.kind == "plain" else layout.width)


def packed_shape(codes: Codes, shape: Shape) -> Shape:
    """Returns the shape of each buffer that holds a grid of this shape in the codes' layout."""
    group, size = _group(codes)
    return (*shape[:-1], -(-shape[-1] * size // group))


def _group(codes: Codes) -> tuple[int, int]:
    """The smallest run that begins and ends at an element of the buffer: its codes, its elements."""
    layout = codes.layout
    sizes = {"plain": (1, 1), "bits": (8, layout.width), "planes": (8, 1), "radix": (layout.digits, 1)}
    group, size = sizes.get(layout.kind, (0, 0))
    if group < 1 or size < 1:
        raise BadFileError("a layout with codes of no size", found=layout)
    return group, size


def _unpack(codes: Codes, packed: list[Array], count: int) -> Array:
    layout = codes.layout
    if layout.kind == "bits":
        return bits.unpack(packed[0], count, layout.width)
    if layout.kind == "planes":
        return planes.unpack(packed, count, layout.width)
    return radix.unpack(packed[0], count, layout.base, layout.digits)


def _rows(buffer: Buffer, shape: Shape, start: int, stop: int) -> Array:
    """Rows [start, stop) of a buffer that must have this shape."""
    if buffer.shape != shape:
        raise BadFileError(
            "a buffer does not have the shape of its grid", where=buffer.key, found=buffer.shape, allowed=str(shape)
        )
    rows = buffer.read(start, stop)
    if rows.shape != (stop - start, *shape[1:]):
        raise BadFileError(
            "a buffer ends before its last row",
            where=buffer.key,
            found=rows.shape,
            allowed=str((stop - start, *shape[1:])),
        )
    return rows
