"""The closed set of what a tensor can be to an engine. `recognise.py` chooses; every tensor is exactly one of them.

A view is recognised by structure alone: nothing is read before its first use. One tensor may be read in
several ways (ternary codes are affine, too; a float of 4 bits is a table of 16 levels; a table of integers is affine
with a unit). These are properties of the one view, worked out at most once:

    grouped   integers of at most 8 bits with parameters per group of columns     Grouped
    tabled    codes of scalar tables                                              GroupedTable
    floats    floats of at most 8 bits                                            GroupedFloats

each None where the tensor has no such reading. All of them know grids that are folded (several rows of the grid in a
row of the matrix) and columns that an index scatters over groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qdeploy.ir.codes import read_codes
from qdeploy.ir.dtype import DType, dtype
from qdeploy.ir.tensor import Array, Codes, Float32, Param, QTensor, Shape, Table
from qdeploy.ir.views.grouped import Grouped, grouped
from qdeploy.ir.views.params import Grid, RowReader
from qdeploy.ir.views.tables import GroupedFloats, GroupedTable, book_values, grouped_floats, grouped_table


@dataclass(frozen=True, eq=False)
class Coded:
    """A tensor that is one grid of codes and nothing besides; what `Floats` to `Lookup` have in common.

    Attributes:
        shape: Of the tensor.
        codes: The grid, with its parameters.
    """

    shape: Shape
    codes: Codes

    @property
    def params(self) -> list[Param]:
        """Zero points, scale and offset, where they are there."""
        return [p for p in (self.codes.zero, self.codes.scale, self.codes.offset) if p is not None]

    @property
    def is_own_grid(self) -> bool:
        """Whether the grid has the shape of the tensor."""
        return self.codes.shape == (self.shape or (1,))

    @property
    def divides(self) -> bool:
        """Whether the source divides by its scale."""
        return self.codes.scale is not None and self.codes.scale.divide

    @property
    def is_ternary(self) -> bool:
        """Whether codes 0, 1, 2 stand for -1, 0, 1: by number type, or as base-3 digits with a zero point of 1."""
        codes = self.codes
        if not isinstance(codes.table, str) or codes.offset is not None:
            return False
        if codes.zero is None:
            return dtype(codes.table).kind == "ternary"
        return codes.table == "uint2" and codes.layout.base == 3 and _one_integer(codes.zero) == 1

    @property
    def is_signs(self) -> bool:
        """Whether codes 0, 1 stand for -1, 1, with at most a scale."""
        codes = self.codes
        named = isinstance(codes.table, str) and dtype(codes.table).kind == "sign"
        return named and codes.zero is None and codes.offset is None

    @cached_property
    def grouped(self) -> Grouped | None:
        """The matrix as integers with parameters per group."""
        return grouped(self.shape, self.codes)


@dataclass(frozen=True, eq=False)
class Floats(Coded):
    """A tensor that is not quantized: one float of 16 bits or more per element, in the tensor's own shape.

    Nothing has to be worked out: engines store the floats as they are, or widen them.
    """

    @property
    def dtype(self) -> DType:
        """The number type of an element."""
        return dtype(str(self.codes.table))

    @property
    def rows(self) -> RowReader:
        """Reads rows of the tensor in its storage type; a tensor without axes has one row."""
        return self.codes.data[0].read


@dataclass(frozen=True, eq=False)
class Integers(Coded):
    """A tensor that is integers and enters a graph as such: indices, shapes, zero points, codes of integer operators.

    One integer per element, in the tensor's own shape, without scale, zero point or offset.
    """

    @property
    def dtype(self) -> DType:
        """The number type of an element."""
        return dtype(str(self.codes.table))

    @property
    def element(self) -> str:
        """Its name in a graph."""
        return self.dtype.element

    def value(self) -> Array:
        """The whole tensor in its own element type and shape."""
        row, numbers = self.dtype, read_codes(self.codes, 0, self.codes.shape[0])
        if row.bits >= 8:
            return numbers.view(row.numpy).reshape(self.shape)
        if row.kind == "signed":  # two's complement of few bits
            half = 1 << (row.bits - 1)
            numbers = ((numbers.astype(np.int8) ^ half) - half).astype(np.int8)
        return numbers.astype(row.numpy).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Affine(Coded):
    """Integer codes with a zero point, a scale or an offset: `((code - zero) * scale) + offset`, in any grid.

    Most published encodings are this: GPTQ, AWQ, k-quants, quantized networks. Kernels for packed integers take the
    reading `grouped`, which a matrix of at most 8 bits has if its parameters lie in blocks.
    """


@dataclass(frozen=True, eq=False)
class Minifloat(Coded):
    """Floats of at most 8 bits, nearly always with a scale per block: FP8, MX, NVFP4.

    Engines that have the format take `floats`; few bits are also a table of levels (`tabled`), and e2m1 and e2m3 are
    integers with a unit (`grouped`).
    """

    @property
    def dtype(self) -> DType:
        """The number type of a code."""
        return dtype(str(self.codes.table))

    @cached_property
    def floats(self) -> GroupedFloats | None:
        """The matrix as such floats with a scale per group."""
        return grouped_floats(self.shape, self.codes)

    @cached_property
    def tabled(self) -> GroupedTable | None:
        """The matrix as codes of the table of all values."""
        return grouped_table(self.shape, self.codes)


@dataclass(frozen=True, eq=False)
class Lookup(Coded):
    """Codes into a codebook: tables as data (nf4, palettes, IQ4_NL), or number types that are a list of levels.

    Signs and ternary codes are such number types. Entries may be vectors, as in the grids of the i-quants. `tabled` is
    there for scalar entries; `grouped` wherever the levels, with their signs, are multiples of a unit.
    """

    @cached_property
    def tabled(self) -> GroupedTable | None:
        """The matrix as codes of scalar tables with a scale per group."""
        return grouped_table(self.shape, self.codes)


@dataclass(frozen=True, eq=False)
class Vector:
    """A sum of codebooks of vectors, then a scale and an offset (AQLM, arXiv 2401.06118; VPTQ, arXiv 2409.17066).

    All grids have one shape, and rows of the matrix are whole rows of them, or entries span several rows; then the last
    entries may reach past the matrix.

    Attributes:
        shape: [N, K].
        grids: The codes, one grid per codebook.
        block: Extent of an entry, per axis.
        scale: After the sum; None means 1.
        offset: After that; None means 0.
    """

    shape: tuple[int, int]
    grids: tuple[Codes, ...]
    block: Shape
    scale: Param | None
    offset: Param | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """Entries of each codebook."""
        return tuple(_table(codes).values.shape[1] for codes in self.grids)

    @property
    def is_along_rows(self) -> bool:
        """Whether entries lie along a row, each codebook is one table, and there is no offset."""
        return self.block[0] == 1 and self.offset is None and not any(_table(g).select for g in self.grids)

    @property
    def grid(self) -> Grid:
        """The grid of the decoded numbers under the matrix; for entries along a row only."""
        grid = Grid.under(self.shape, self.grids[0].decoded_shape)
        assert grid is not None  # `recognise.py` has looked
        return grid

    def book(self, place: int) -> Float32 | None:
        """The entries of a codebook, float32 [levels, *block], read anew; None where they are too many."""
        values = self.books(place)
        return None if values is None else values[0]

    def books(self, place: int) -> Float32 | None:
        """All tables of a codebook, float32 [tables, levels, *block], read anew; None where they are too many."""
        return book_values(_table(self.grids[place]))

    def select(self, place: int) -> Param | None:
        """Which table each code of a grid uses; None: table 0."""
        return _table(self.grids[place]).select

    def codes(self, place: int) -> RowReader:
        """Reads codes of a grid: unsigned integers [rows of the matrix, K / extent]; for entries along a row only."""
        codes, fold, width = self.grids[place], self.grid.fold, self.shape[1] // self.block[1]
        return lambda start, stop: read_codes(codes, start * fold, stop * fold).reshape(stop - start, width)

    @cached_property
    def grouped(self) -> Grouped | None:
        """The matrix as integers with parameters per group, where it is a single codebook of integers."""
        alone = len(self.grids) == 1 and self.scale is None and self.offset is None
        return grouped(self.shape, self.grids[0]) if alone else None


@dataclass(frozen=True, eq=False)
class SignLowRank:
    """A sum of sign codes, each times a low-rank product (BitStack, arXiv 2410.23918); a prefix of it is a weight, too.

    Attributes:
        shape: Of the tensor.
        terms: (signs, u, vt) each.
    """

    shape: Shape
    terms: tuple[tuple[Codes, Codes, Codes], ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of tensors that all speak of every element.

    Attributes:
        shape: Of the tensor.
        parts: The summands, each as its own view, in order.
        is_residual: Whether every part is signs with a scale, which correct what the parts before left: then a prefix
            of the parts is a weight, too.
    """

    shape: Shape
    parts: tuple[View, ...]
    is_residual: bool


@dataclass(frozen=True, eq=False)
class Masked:
    """A tensor, and terms that speak of some of its elements only: outliers of PB-LLM, SpQR and the like.

    Attributes:
        shape: Of the tensor.
        base: The terms without a mask.
        under: Their view.
    """

    shape: Shape
    base: QTensor
    under: View


@dataclass(frozen=True, eq=False)
class Decoded:
    """Anything else: an engine takes the float32 that it decodes to, or refuses it by name.

    Attributes:
        shape: Of the tensor.
    """

    shape: Shape


View = Floats | Integers | Affine | Minifloat | Lookup | Vector | SignLowRank | Sum | Masked | Decoded


def first_codes(seen: View) -> Codes | None:
    """The codes of the first term of a tensor; None where it has no codes, or is only decoded."""
    if isinstance(seen, Coded):
        return seen.codes
    if isinstance(seen, Vector):
        return seen.grids[0]
    if isinstance(seen, SignLowRank):
        return seen.terms[0][0]
    if isinstance(seen, Masked):
        return first_codes(seen.under)
    return first_codes(seen.parts[0]) if isinstance(seen, Sum) else None


def _table(codes: Codes) -> Table:
    assert isinstance(codes.table, Table)  # `recognise.py` has looked
    return codes.table


def _one_integer(param: Param) -> int | None:
    """A parameter that is one plain integer for the whole grid, as that number."""
    codes = param.values
    if not isinstance(codes, Codes) or not isinstance(codes.table, str) or not dtype(codes.table).is_integer:
        return None
    if any(n != 1 for n in codes.shape) or codes.layout.kind != "plain" or codes.zero or codes.scale or codes.offset:
        return None
    return int(dtype(codes.table).decode(codes.data[0].read().reshape(-1))[0])
