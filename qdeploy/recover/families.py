"""The families of levels that float weights may lie on: one row each.

int2..int8, uint2..uint8   whole numbers; the unsigned ones less a zero point per group. Q4_0, the steps of EQ-Net
                           and the nested integers of Double Rounding are such grids, whatever made them
affine2..affine6           whole numbers from 0 on, and an offset per group that is no multiple of the scale
planes2                    two planes of bits with two free scales per group: 0, a, b, a + b (DB-LLM, arXiv 2402.11960)
ternary                    -1, 0, 1 (BitNet b1.58, arXiv 2402.17764), with a mean or a median for a scale
abq5                       -2..2, the bit-balanced form of 2 bits (ABQ-LLM, arXiv 2408.08554, section 3.3)
nf4                        the quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)
bnb-fp4                    the 4-bit floats of bitsandbytes, which are none of OCP's
bitmod3, bitmod4           floats whose negative zero is a special value that each group chooses among four
                           (BitMoD, arXiv 2411.11745, table 2); bitmod4-early: the first published set
mxfp4, mxfp6-*, mxfp8-*    OCP MX (arXiv 2310.10537): groups of 32, scales that are powers of two
nvfp4                      e2m1 in groups of 16, scales in e4m3 times one float32 of the whole matrix
eXmY                       a minifloat of any width of 3 to 8 bits with subnormals and no infinities
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError
from qdeploy.ir import dtype as dtypes

Float64 = npt.NDArray[np.float64]
Levels = tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """Levels, and how the scale of a group may lie.

    Attributes:
        name: In specs and reports.
        bits: Of a code.
        tables: The values of the codes; of several tables each group chooses one. Empty: whole numbers.
        dtype: The row of ir/dtype.py that the codes are of; "": the tables are stored as data.
        zero: Whole numbers less a zero point per group.
        offset: Whole numbers times a scale, plus an offset per group.
        planes: Sums of two bits, each times a scale of its own.
        limit: Whole numbers: the greatest level on either side where that is less than the bits allow; 0: all.
        scale: "": any; "e8m0": powers of two; "e4m3": of that type, times one float32 of the matrix.
        group: The group that the family is published with; 0: any.
    """

    name: str
    bits: int
    tables: tuple[Levels, ...] = ()
    dtype: str = ""
    zero: bool = False
    offset: bool = False
    planes: bool = False
    limit: int = 0
    scale: str = ""
    group: int = 0

    @property
    def whole(self) -> bool:
        """Whether the levels are whole numbers."""
        return not self.tables

    @property
    def paired(self) -> bool:
        """Whether a group has a second number beside its scale, of the same type."""
        return self.offset or self.planes

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest whole number that a group without a zero point may hold."""
        half = 1 << (self.bits - 1)
        return (-self.limit, self.limit) if self.limit else (-half, half - 1)

    def levels(self) -> tuple[Float64, ...]:
        """The levels of each table, ascending and without a second zero."""
        if self.tables:
            return tuple(np.unique(np.array(table, np.float32)).astype(np.float64) for table in self.tables)
        most = self.limit or ((1 << self.bits) - 1 if self.zero else 1 << (self.bits - 1))
        return (np.arange(-most, most + 1, dtype=np.float64),)


def minifloat(exponent: int, mantissa: int) -> Levels:
    """The values of a float without infinities, by code: bias 2^(exponent - 1) - 1, subnormals, the sign on top."""
    bias = (1 << (exponent - 1)) - 1
    values = []
    for code in range(1 << (exponent + mantissa)):
        power, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
        one, least = (0, 1 - bias) if power == 0 else (1 << mantissa, power - bias)
        values.append((one + fraction) * 2.0 ** (least - mantissa))
    return (*values, *(-value for value in values))


def _special(base: Levels, values: Levels) -> tuple[Levels, ...]:
    """Sign and magnitude, with a special value each in the place of negative zero."""
    return tuple((*base, value, *(-level for level in base[1:])) for value in values)


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_BNB_FP4 = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_FP3, _FP4 = (0.0, 1.0, 2.0, 4.0), (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


def _of_dtype(name: str) -> tuple[Levels, ...]:
    values = dtypes.dtype(name).values()
    return (tuple(float(value) for value in values[np.isfinite(values)]),)


def _rows() -> Iterator[Family]:
    """Few levels before many, published groups before free ones: the first that fits is what a matrix lies on."""
    yield Family("ternary", 2, (), "ternary", limit=1)
    for bits in range(2, 9):
        if bits == 3:
            yield Family("abq5", 3, limit=2)
            yield Family("bitmod3", 3, _special(_FP3, (3.0, -3.0, 6.0, -6.0)))
        if bits == 4:
            yield Family("mxfp4", 4, _of_dtype("e2m1"), "e2m1", scale="e8m0", group=32)
            yield Family("nvfp4", 4, _of_dtype("e2m1"), "e2m1", scale="e4m3", group=16)
        if bits == 6:
            yield Family("mxfp6-e2m3", 6, _of_dtype("e2m3"), "e2m3", scale="e8m0", group=32)
            yield Family("mxfp6-e3m2", 6, _of_dtype("e3m2"), "e3m2", scale="e8m0", group=32)
        if bits == 8:
            yield Family("mxfp8-e4m3", 8, _of_dtype("e4m3"), "e4m3", scale="e8m0", group=32)
            yield Family("mxfp8-e5m2", 8, _of_dtype("e5m2"), "e5m2", scale="e8m0", group=32)
        yield Family(f"int{bits}", bits)
        if bits == 4:
            yield Family("e2m1", 4, _of_dtype("e2m1"), "e2m1")
            yield Family("nf4", 4, (_NF4,))
            yield Family("bnb-fp4", 4, ((*_BNB_FP4, *(-level for level in _BNB_FP4)),))
            yield Family("bitmod4", 4, _special(_FP4, (10.0, -10.0, 16.0, -16.0)))
            yield Family("bitmod4-early", 4, _special(_FP4, (5.0, -5.0, 16.0, -16.0)))
        yield Family(f"uint{bits}", bits, zero=True)
        if bits <= 6:
            yield Family(f"affine{bits}", bits, offset=True)
        if bits == 2:
            yield Family("planes2", 2, planes=True)
        if bits == 6:
            yield Family("e2m3", 6, _of_dtype("e2m3"), "e2m3")
            yield Family("e3m2", 6, _of_dtype("e3m2"), "e3m2")
        if bits == 8:
            yield Family("e4m3", 8, _of_dtype("e4m3"), "e4m3")
            yield Family("e5m2", 8, _of_dtype("e5m2"), "e5m2")


@cache
def families() -> tuple[Family, ...]:
    """All families that have a name, in the order in which they are tried."""
    return tuple(_rows())


def family(name: str) -> Family:
    """A family by its name, eXmY included; BadArgumentError lists the names."""
    for row in families():
        if row.name == name:
            return row
    match = re.fullmatch(r"e([1-6])m([0-6])", name)
    if match and 3 <= 1 + int(match[1]) + int(match[2]) <= 8:
        exponent, mantissa = int(match[1]), int(match[2])
        return Family(name, 1 + exponent + mantissa, (minifloat(exponent, mantissa),))
    allowed = ", ".join(row.name for row in families())
    raise BadArgumentError("no such family of levels", found=name, allowed=f"auto, {allowed}, eXmY")
