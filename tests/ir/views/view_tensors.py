"""Small tensors of every kind, and what a view of them says they are, computed from its readings alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Table, Term
from qdeploy.ir.views import Coded, Floats, Grouped, GroupedFloats, GroupedTable, Lookup, Minifloat, View
from qdeploy.ir.views.params import Grid, Grouping
from qdeploy.pack import bits

Array = npt.NDArray[Any]
N, K = 12, 64


def floats(key: str, *shape: int, seed: int = 0) -> Codes:
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    return Codes(shape, (Buffer.of(key, numbers, "F16"),), PLAIN, "f16")


def integer(value: int) -> Codes:
    return Codes((1, 1), (Buffer.of("zero", np.array([[value]], np.uint8), "U8"),), PLAIN, "uint8")


def packed(key: str, width: int, table: str | Table, *shape: int, most: int = 0, seed: int = 1, **params: Any) -> Codes:
    shape = shape or (N, K)
    codes = np.random.default_rng(seed).integers(0, most or 1 << width, shape).astype(np.uint8)
    if width == 8 and table in ("int8", "e4m3", "e5m2"):
        return Codes(shape, (Buffer.of(key, codes, "U8"),), PLAIN, table, **params)
    return Codes(shape, (Buffer.of(key, bits.pack(codes, width), "U8"),), Layout("bits", width), table, **params)


def tensor(*values: Codes | LowRank, **rest: Any) -> QTensor:
    return QTensor((N, K), "F16", tuple(Term(v) for v in values), **rest)


def book(*shape: int, select: Param | None = None, seed: int = 2) -> Table:
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    return Table(Buffer.of(f"book{seed}", numbers, "F16"), select)


def grouped(*, signed: bool = False, **params: Any) -> QTensor:
    scale = Param(floats("scale", N, 4), (1, 16))
    return tensor(packed("q", 4, "int4" if signed else "uint4", scale=scale, **params))


def rebuilt(seen: View, every: bool = False) -> Any:
    """The matrix that the readings of a view say it is, computed as engines would: the first, or all of them."""
    assert isinstance(seen, Coded)
    readings: list[Grouped | GroupedTable | GroupedFloats | None] = []
    if not isinstance(seen, Floats):
        readings.append(seen.grouped)
    if isinstance(seen, Lookup | Minifloat):
        readings.append(seen.tabled)
    if isinstance(seen, Minifloat):
        readings.append(seen.floats)
    with np.errstate(all="ignore"):
        results = [_numbers(reading) for reading in readings if reading is not None]
    return results if every else results[0]


def _numbers(reading: Grouped | GroupedTable | GroupedFloats) -> Array:
    rows = reading.shape[0]
    codes = reading.codes(0, rows)
    assert codes.shape == reading.shape
    assert codes.dtype == np.uint8
    if isinstance(reading, Grouped):
        spread = Grouping(Grid(reading.shape, reading.shape[1]), reading.group, reading.groups, reading.index).columns
        zero = reading.zero if isinstance(reading.zero, int) else spread(reading.zero(0, rows)).astype(np.float32)
        values = (codes.astype(np.float32) - np.float32(zero)) * spread(reading.scale(0, rows))
        return values if reading.offset is None else values + spread(reading.offset(0, rows))
    spread = reading.grouping.columns
    if isinstance(reading, GroupedFloats):
        values = reading.dtype.values()[codes]
    else:
        table = 0 if reading.select is None else spread(reading.select(0, rows)).astype(np.int64)
        values = reading.values[table, codes]
    return values if reading.scale is None else values * spread(reading.scale(0, rows))
