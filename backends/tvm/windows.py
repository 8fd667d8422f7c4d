"""Builders of steps that pool, reduce or move elements; blocks are named as in builders.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qdeploy.backends.tvm.arithmetic import Expr, const, divided
from qdeploy.backends.tvm.builders import Attrs, Tensor, finished, shape_of
from qdeploy.backends.tvm.engine import te, tirx
from qdeploy.backends.tvm.program import Buffer


def _window(x: Tensor, attrs: Attrs, a: Expr, b: Expr, fill: int, dtype: str) -> Any:
    """The element of a window, `fill` outside of the image."""
    _, height, width, _ = shape_of(x)
    (tall, broad), (down, right), (top, left) = attrs["strides"], attrs["dilations"], attrs["before"]

    def element(n: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        row, column = i * tall + a * down - top, j * broad + b * right - left
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return tirx.if_then_else(inside, x[n, row, column, c].astype(dtype), const(fill, dtype))

    return element


def max_pool(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """The greatest of each window."""
    x = args[0]
    a, b = (te.reduce_axis((0, n), name) for n, name in zip(attrs["kernel"], ("kh", "kw"), strict=True))
    element = _window(x, attrs, a, b, int(np.iinfo(str(x.dtype)).min), str(x.dtype))
    acc = te.compute(out.shape, lambda *i: te.max(element(*i), axis=[a, b]), name="acc")
    return finished(lambda *i: acc[i].astype("int32"), args, attrs, out)


def average_pool(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """The mean of what is inside of the image."""
    x = args[0]
    a, b = (te.reduce_axis((0, n), name) for n, name in zip(attrs["kernel"], ("kh", "kw"), strict=True))
    element = _window(x, attrs, a, b, 0, "int32")
    acc = te.compute(out.shape, lambda *i: te.sum(element(*i), axis=[a, b]), name="acc")
    counts = [_counts(shape_of(x)[1 + axis], out.shape[1 + axis], attrs, axis) for axis in range(2)]
    lo, hi = attrs["lo"], attrs["hi"]

    def mean(n: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        """Every count that occurs is a constant: no division by anything else."""
        value: Expr = const(0)
        for rows in sorted(set(counts[0])):
            for columns in sorted(set(counts[1])):
                part = divided(acc[n, i, j, c], max(1, rows * columns), attrs["rounding"], "int32")
                here = tirx.all(_occurs(i, counts[0], rows), _occurs(j, counts[1], columns))
                value = (
                    part if len(set(counts[0])) == len(set(counts[1])) == 1 else tirx.if_then_else(here, part, value)
                )
        value = value if hi is None else tirx.min(value, const(hi))
        return value if lo is None else tirx.max(value, const(lo))

    return finished(mean, args, attrs, out)


def _occurs(index: Expr, counts: list[int], wanted: int) -> Expr:
    """Whether the count at an index is the wanted one; counts rise and then fall."""
    first, last = counts.index(wanted), len(counts) - 1 - counts[::-1].index(wanted)
    if counts[first : last + 1] == [wanted] * (last - first + 1):
        return tirx.all(index >= first, index <= last)
    return tirx.any(*(index == place for place, count in enumerate(counts) if count == wanted))


def _counts(extent: int, positions: int, attrs: Attrs, axis: int) -> list[int]:
    """How many of a window's places are inside of the image, for each position along an axis."""
    kernel, stride, before = attrs["kernel"][axis], attrs["strides"][axis], attrs["before"][axis]
    return [max(0, min(p * stride - before + kernel, extent) - max(p * stride - before, 0)) for p in range(positions)]


def reduce(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Sum or mean over axes."""
    x, axes, keep = args[0], attrs["axes"], attrs["keepdims"]
    shape = shape_of(x)
    over = {axis: te.reduce_axis((0, shape[axis]), f"r{axis}") for axis in axes}
    count = math.prod(shape[axis] for axis in axes)
    narrow = str(x.dtype) in ("uint8", "int8", "int16") and count < 1 << 15
    dtype = "int32" if narrow else "int64"

    def total(*index: Expr) -> Expr:
        rest = iter(index)
        place = []
        for axis in range(len(shape)):
            if axis in over:
                place.append(over[axis])
                if keep:
                    next(rest)
            else:
                place.append(next(rest))
        return te.sum(x[tuple(place)].astype(dtype), axis=list(over.values()))

    acc = te.compute(out.shape, total, name="acc")
    if not attrs["mean"]:
        return finished(lambda *i: acc[i].astype("int32"), args, attrs, out)
    return finished(lambda *i: divided(acc[i], count, attrs["rounding"], dtype).astype("int32"), args, attrs, out)


# ---- moves -----------------------------------------------------------------------------------------------------------


def to_last(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """[N, C, *space] to [N, *space, C], padded."""
    channels = shape_of(args[0])[1]

    def element(n: Expr, *rest: Expr) -> Expr:
        *space, c = rest
        value = args[0][(n, c, *space)]
        return tirx.if_then_else(c < channels, value, const(0, out.dtype)) if out.shape[-1] > channels else value

    return te.compute(out.shape, element, name="rq")


def to_padded(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """The last axis padded."""
    width = shape_of(args[0])[-1]
    return te.compute(
        out.shape, lambda *i: tirx.if_then_else(i[-1] < width, args[0][i], const(0, out.dtype)), name="rq"
    )


def to_plain(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Without padding, channels at axis 1 again where they were last."""
    if not attrs["last"]:
        return te.compute(out.shape, lambda *i: args[0][i], name="rq")
    return te.compute(out.shape, lambda n, c, *space: args[0][(n, *space, c)], name="rq")


def transpose(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Axes permuted."""
    where = [attrs["perm"].index(axis) for axis in range(len(out.shape))]
    return te.compute(out.shape, lambda *i: args[0][tuple(i[at] for at in where)], name="rq")


def concat(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Parts joined along an axis, each without its padding."""
    axis, lengths = attrs["axis"], attrs["extents"]

    def element(*index: Expr) -> Expr:
        value: Expr = const(0, out.dtype)
        stop = sum(lengths)
        for part, length in zip(reversed(args), reversed(lengths), strict=True):
            at = list(index)
            at[axis] = tirx.max(index[axis] - (stop - length), 0)
            at = [
                tirx.min(i, n - 1) if place == axis or place == len(index) - 1 else i
                for place, (i, n) in enumerate(zip(at, shape_of(part), strict=True))
            ]
            value = tirx.if_then_else(index[axis] < stop, part[tuple(at)], value)
            stop -= length
        return value

    return te.compute(out.shape, element, name="rq")


def slice_(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Begin + index * pace on every axis."""
    pairs = list(zip(attrs["begin"], attrs["pace"], strict=True))
    return te.compute(
        out.shape, lambda *i: args[0][tuple(b + n * p for n, (b, p) in zip(i, pairs, strict=True))], name="rq"
    )


def pad(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """A constant around; negative padding crops."""
    shape, before = shape_of(args[0]), attrs["before"]

    def element(*index: Expr) -> Expr:
        at = [i - b for i, b in zip(index, before, strict=True)]
        tests = [test for i, n in zip(at, shape, strict=True) for test in (i >= 0, i < n)]
        return tirx.if_then_else(tirx.all(*tests), args[0][tuple(at)], const(attrs["fill"], out.dtype))

    return te.compute(out.shape, element, name="rq")


def gather(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """Entries along an axis; an index outside is brought to the nearest entry, so that nothing else is ever read."""
    data, indices = args
    axis, rank, extent = attrs["axis"], len(shape_of(indices)), shape_of(data)[attrs["axis"]]

    def element(*index: Expr) -> Expr:
        chosen = indices[tuple(index[axis : axis + rank])].astype("int64")
        chosen = tirx.Select(chosen < 0, chosen + const(extent, "int64"), chosen)
        inside = tirx.max(tirx.min(chosen, const(extent - 1, "int64")), const(0, "int64"))
        return data[(*index[:axis], inside, *index[axis + rank :])]

    return te.compute(out.shape, element, name="rq")
