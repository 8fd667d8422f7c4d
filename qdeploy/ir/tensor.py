"""The nouns of a quantized tensor: one recursive description that every published encoding fits.

A weight is a sum of terms; a term is a grid of codes with a table, and optionally a zero, a scale and an offset, each
of which is again a grid of codes at a coarser tiling:

    Codes    ((table[code] - zero) * scale) + offset     float32, in this order, one rounding per step
    LowRank  u @ vt
    Param    one number per tile of its owner's decoded grid (ceiling division, cropped at the edge)
    Term     Codes | LowRank, added to the weight, or set where a mask says
    Rung     a legal coarser form
    QTensor  the sum of the terms, then scale and offset

So a scale that has its own scale is a k-quant, NVFP4 or nested absmax; a grid that is a reshape of the weight is a
straddling block (`W = decode(grid).ravel()[:numel].reshape(shape)`); a table with block entries is a vector codebook; a
scale that is `LowRank` over sign codes is BitStack (arXiv 2410.23918, section 3).

Numbers are kept as the source has them: nothing is inverted, merged or rounded here. What a description means is
`ir/decode.py`; what makes it legal is `ir/rules.py`; how a backend sees it is `ir/views/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qdeploy.store.storage import element_bytes, storage_dtype

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class Rows(Protocol):
    """Where the bytes of a buffer come from: any range of its first axis, on demand."""

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop) as an array of the buffer's dtype, shape [stop - start, *shape[1:]]."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory."""

    array: Array

    def read(self, start: int, stop: int) -> Array:
        """Returns a view of the rows."""
        return self.array[start:stop]


@dataclass(frozen=True)
class ComputedRows:
    """Rows that a function makes of their range.

    Attributes:
        compute: Takes [start, stop); returns the rows in the buffer's dtype.
    """

    compute: Callable[[int, int], Array]

    def read(self, start: int, stop: int) -> Array:
        """Returns the rows, made anew."""
        return self.compute(start, stop)


@dataclass(frozen=True)
class Buffer:
    """The only leaf: a named run of bytes, read by row range.

    Attributes:
        key: Its name within its tensor ("codes", "scale", "scale.scale"); unique there, and part of its name on disk.
        dtype: The storage type, in the spelling of safetensors (U8, I32, F16, BF16, F8_E4M3, ...).
        shape: At least one axis; rows are the first.
        rows: Where the bytes are.
    """

    key: str
    dtype: str
    shape: Shape
    rows: Rows = field(compare=False, repr=False)

    @classmethod
    def of(cls, key: str, array: Array, dtype: str) -> Buffer:
        """A buffer over an array in memory; the array's dtype must be the storage type's."""
        return cls(key, dtype, tuple(array.shape), ArrayRows(array.view(storage_dtype(dtype))))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * element_bytes(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return math.prod(self.shape[1:]) * element_bytes(self.dtype)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Returns rows [start, stop) in the storage type; raises nothing that its rows do not raise."""
        return self.rows.read(start, self.shape[0] if stop is None else stop)


@dataclass(frozen=True)
class Layout:
    """How codes lie in their buffers. Four normal forms; the last axis of the grid is the one that is packed.

    plain   one code per element; the buffer has the grid's shape.
    bits    U8, shape[:-1] + [ceil(shape[-1] * width / 8)]: a little-endian bit stream along the last axis, each run
            padded to a whole byte. Code j occupies bits [j * width, (j + 1) * width) of its run.
    planes  `width` buffers U8, shape[:-1] + [ceil(shape[-1] / 8)], most significant plane first; element j is bit j % 8
            of byte j // 8.
    radix   U8, shape[:-1] + [ceil(shape[-1] / digits)]: plain numbers to that base, the first code least significant.
    """

    kind: Literal["plain", "bits", "planes", "radix"]
    width: int = 0
    base: int = 0
    digits: int = 0


PLAIN = Layout("plain")


@dataclass(frozen=True)
class Table:
    """A codebook as data.

    Attributes:
        values: [tables, levels, *block]; block is () for scalars, or one extent per axis of the grid for vector codes.
        select: Which table, one code per tile; None means table 0.
    """

    values: Buffer
    select: Param | None = None


@dataclass(frozen=True)
class Codes:
    """A grid of codes: `((table[code] - zero) * scale) + offset`, in float32, in this order.

    Attributes:
        shape: The grid of codes. The decoded grid is shape * block of the table.
        data: One buffer, or one per plane.
        layout: How the codes lie in `data`.
        table: A row of ir/dtype.py by its name ("uint4", "e2m1", "f16", "sign"), or a codebook.
        zero: In the code domain (subtracted from the table's value), integer or float.
        scale: Multiplies (or divides, where the source divides).
        offset: In the value domain.
    """

    shape: Shape
    data: tuple[Buffer, ...]
    layout: Layout
    table: str | Table
    zero: Param | None = None
    scale: Param | None = None
    offset: Param | None = None

    @property
    def block(self) -> Shape:
        """The extent of one code in the decoded grid, per axis."""
        extent = () if isinstance(self.table, str) else self.table.values.shape[2:]
        return extent or (1,) * len(self.shape)

    @property
    def decoded_shape(self) -> Shape:
        """The shape of the decoded grid."""
        return tuple(n * b for n, b in zip(self.shape, self.block, strict=True))


@dataclass(frozen=True)
class LowRank:
    """`u @ vt` in float32: [N, k] by [k, K]."""

    u: Codes
    vt: Codes

    @property
    def decoded_shape(self) -> Shape:
        """[N, K]."""
        return (self.u.decoded_shape[0], self.vt.decoded_shape[1])


@dataclass(frozen=True)
class Param:
    """One number per tile of the owner's decoded grid.

    Attributes:
        values: Their grid; its decoded shape is ceil(owner / tile) on every axis (with `index`, free on the last axis).
        tile: Extents in elements of the owner's decoded grid, same rank.
        index: I32 [owner columns]: the column of `values` that belongs to each column of the owner (g_idx). The last
            extent of `tile` is then 1.
        divide: The source divides by it (scales only).
    """

    values: Codes | LowRank
    tile: Shape
    index: Buffer | None = None
    divide: bool = False


@dataclass(frozen=True)
class Term:
    """One summand of a tensor.

    Attributes:
        values: The numbers. With `where`, their grid is still the whole tensor's, but `data` lists only the selected
            codes, row-major, as a single run; params address the whole grid. Entries of a codebook that stand in a
            column are selected by column.
        where: One bit per element of the grid, or per column ([1, columns]).
        mode: Added to what the terms before gave, or set in its place.
    """

    values: Codes | LowRank
    where: Codes | None = None
    mode: Literal["add", "set"] = "add"


@dataclass(frozen=True)
class Rung:
    """A legal coarser form of a tensor.

    Attributes:
        planes: Per term, how many planes are resident (0: absent; a term without planes has 0 or 1).
        terms: The same buffers with the table and scale that belong to this rung; None: missing planes read as zero.
        error: Activation-weighted squared error against the full form, where known; of a ladder that was fitted to
            floats, their relative squared error.
        bias: float [N]: what a layer that stands at this rung adds to its outputs, so that their mean is that of the
            complete form. None: nothing.
    """

    planes: tuple[int, ...]
    terms: tuple[Term, ...] | None = None
    error: float | None = None
    bias: Codes | None = None


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source file: which file, its name there, storage type and shape."""

    file: str
    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Source:
    """Where a tensor came from, and how to give its bytes back.

    Attributes:
        format: The reader ("gptq", "gguf", ...).
        writer: The packing within that format that writes it back; empty if there is none.
        args: What the writer needs besides the tensor.
        tensors: The source tensors that it was made of.
        residue: U8 [n, 13]: (source tensor u32, offset u64, xor u8) little-endian; bytes where the writer would
            give otherwise. None for ordinary files.
        exact: "bytes": write(read(x)) == x; "values": only the numbers; "recovered": codes found on a declared grid.
    """

    format: str
    writer: str = ""
    args: Mapping[str, int | str] = field(default_factory=dict)
    tensors: tuple[SourceTensor, ...] = ()
    residue: Buffer | None = None
    exact: Literal["bytes", "values", "recovered"] = "bytes"


@dataclass(frozen=True)
class QTensor:
    """A tensor: the sum of its terms, then `* scale + offset`.

    Attributes:
        shape: The parameter's shape in its source.
        dtype: The type in which the source library shows it; for comparison only, decoding is float32.
        terms: Evaluated in order.
        rungs: From coarse to complete; empty means only the complete form.
        scale: After the sum (AQLM, VPTQ, PTQ1.61).
        offset: After that.
        source: Dropped by any pass that changes a number.
    """

    shape: Shape
    dtype: str
    terms: tuple[Term, ...]
    rungs: tuple[Rung, ...] = ()
    scale: Param | None = None
    offset: Param | None = None
    source: Source | None = None

    @property
    def nbytes(self) -> int:
        """Stored size: every distinct buffer once."""
        return sum({b.key: b.nbytes for b in buffers(self)}.values())

    def decode(self, rows: slice | None = None) -> Float32:
        """Returns rows of the tensor (all by default) as float32, shape [rows, *shape[1:]]."""
        from qdeploy.ir.decode import decode_tensor

        return decode_tensor(self, rows)


def plain(buffer: Buffer, table: str, source: Source | None = None, dtype: str | None = None) -> QTensor:
    """An unquantized (or already decoded) tensor: one plain code per element."""
    codes = Codes(buffer.shape, (buffer,), PLAIN, table)
    return QTensor(buffer.shape, dtype or buffer.dtype, (Term(codes),), source=source)


_PARTS: dict[type, tuple[str, ...]] = {
    QTensor: ("terms", "rungs", "scale", "offset", "source"),
    Source: ("residue",),
    Term: ("values", "where"),
    Rung: ("terms", "bias"),
    Codes: ("data", "table", "zero", "scale", "offset"),
    LowRank: ("u", "vt"),
    Table: ("values", "select"),
    Param: ("values", "index"),
}
"""The fields of each noun below which there may be buffers."""


def buffers(node: object) -> Iterator[Buffer]:
    """Every buffer below a noun, in the order of the fields; a buffer that occurs twice is given twice."""
    if isinstance(node, Buffer):
        yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from buffers(item)
    elif node is not None:
        for name in _PARTS.get(type(node), ()):
            yield from buffers(getattr(node, name))
