"""Random tensors of every kind: decoded whole as a naive decoder does, and by rows as the slice of the whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadFileError
from qdeploy.ir import decode, rules
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Shape, Table, Term
from qdeploy.pack import bits, planes, radix
from qdeploy.store.storage import storage_dtype

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class Maker:
    """Draws tensors, and keeps for each grid the codes that went into it: the naive decoder never unpacks."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.known: dict[int, Array] = {}
        self.keep: list[Codes] = []
        self.count = 0

    def one(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def key(self) -> str:
        self.count += 1
        return f"b{self.count}"

    def shape(self, low: int = 1) -> Shape:
        return tuple(int(n) for n in self.rng.integers(1, 20, int(self.rng.integers(low, 4))))

    def note(self, codes: Codes, grid: Array) -> Codes:
        self.known[id(codes)] = grid
        self.keep.append(codes)
        return codes

    def laid(self, grid: Array, width: int, run: Array | None = None) -> tuple[tuple[Buffer, ...], Layout]:
        """Codes in a random layout that can hold them; under a mask, the run of those that are selected."""
        run = grid if run is None else run
        kind = self.one("bits", "planes", "plain", "radix") if width <= 8 else self.one("bits", "plain")
        base = 1 << width
        if kind == "radix" and base <= 16:
            digits = {2: 8, 4: 4, 8: 2, 16: 2}[base]
            layout = Layout("radix", base=base, digits=digits)
            return (Buffer.of(self.key(), radix.pack(run, base, digits), "U8"),), layout
        if kind == "planes":
            return tuple(Buffer.of(self.key(), p, "U8") for p in planes.pack(run, width)), Layout("planes", width)
        if kind == "plain":
            dtype, name = (np.uint8, "U8") if width <= 8 else (np.uint16, "U16")
            return (Buffer.of(self.key(), run.astype(dtype), name),), PLAIN
        return (Buffer.of(self.key(), bits.pack(run, width), "U8"),), Layout("bits", width)

    def codes(self, shape: Shape, depth: int, mask: Array | None = None) -> Codes:
        """A grid whose decoded shape is `shape`."""
        block = (1,) * len(shape)
        if mask is None and self.rng.random() < 0.25:
            block = tuple(int(self.one(*[b for b in (1, 2, 4) if n % b == 0])) for n in shape)
        grid = tuple(n // b for n, b in zip(shape, block, strict=True))
        width = int(self.one(1, 2, 3, 4, 5, 6, 7, 8, 11))
        table: str | Table = f"{self.one('uint', 'int')}{width}"
        values = self.rng.integers(0, 1 << width, grid).astype(np.uint16)
        if block != (1,) * len(shape) or width == 11 or self.rng.random() < 0.3:
            tables = int(self.one(1, 3))
            entries = self.rng.normal(size=(tables, 1 << width, *(block if max(block) > 1 else ()))).astype(np.float16)
            select = self.param(grid, 0, tables) if tables > 1 else None
            table = Table(Buffer.of(self.key(), entries, "F16"), select)
        elif width == 4:
            table = self.one("e2m1", "int4")
        data, layout = self.laid(values, width, None if mask is None else values[mask])
        params = {
            name: self.param(shape, depth - 1)
            for name in ("zero", "scale", "offset")
            if depth and self.rng.random() < 0.5
        }
        return self.note(Codes(grid, data, layout, table, **params), values)

    def param(self, owner: Shape, depth: int, tables: int = 0) -> Param:
        tile = tuple(int(self.one(1, 2, 3, n, n + 5)) for n in owner)
        grid = [-(-n // t) for n, t in zip(owner, tile, strict=True)]
        index = None
        if len(owner) > 1 and self.rng.random() < 0.2:
            grid[-1], tile = int(self.rng.integers(1, 5)), (*tile[:-1], 1)
            index = Buffer.of(self.key(), self.rng.integers(0, grid[-1], owner[-1]).astype(np.int32), "I32")
        if tables:
            chosen = self.rng.integers(0, tables, grid).astype(np.uint8)
            codes = Codes(tuple(grid), (Buffer.of(self.key(), bits.pack(chosen, 2), "U8"),), Layout("bits", 2), "uint2")
            return Param(self.note(codes, chosen), tile, index)
        if len(owner) == 2 and depth and self.rng.random() < 0.2:
            return Param(self.lowrank(grid[0], grid[1]), tile, index)
        if depth == 0 or self.rng.random() < 0.5:
            floats = self.rng.uniform(0.5, 2, grid).astype(np.float32)
            codes = Codes(tuple(grid), (Buffer.of(self.key(), floats, "F32"),), PLAIN, "f32")
            return Param(self.note(codes, floats), tile, index)
        return Param(self.codes(tuple(grid), depth), tile, index)

    def lowrank(self, rows: int, columns: int) -> LowRank:
        rank = int(self.rng.integers(1, 4))
        return LowRank(self.codes((rows, rank), 0), self.codes((rank, columns), 0))

    def term(self, shape: Shape) -> Term:
        size = int(np.prod(shape))
        grid = shape
        if self.rng.random() < 0.4:  # any reshape, possibly with a tail that the tensor does not have
            columns = int(self.rng.integers(1, size + 3))
            grid = (-(-size // columns), columns)
        if self.rng.random() < 0.4:
            mask = self.rng.random(grid if self.rng.random() < 0.6 else (*(1 for _ in grid[1:]), grid[-1])) < 0.5
            full = np.broadcast_to(mask, grid)
            where = Codes(mask.shape, (Buffer.of(self.key(), bits.pack(mask, 1), "U8"),), Layout("bits", 1), "uint1")
            return Term(self.codes(grid, 2, full), self.note(where, mask), self.one("add", "set"))
        if len(grid) == 2 and self.rng.random() < 0.2:
            return Term(self.lowrank(*grid))
        return Term(self.codes(grid, 2), None, self.one("add", "add", "set"))

    def tensor(self) -> QTensor:
        shape = self.shape()
        terms = tuple(self.term(shape) for _ in range(int(self.one(1, 1, 2, 3))))
        scale, offset = (self.param(shape, 1) if self.rng.random() < 0.2 else None for _ in range(2))
        return QTensor(shape, "F32", terms, scale=scale, offset=offset)


class Naive:
    """Decodes whole grids from the codes as they were drawn, repeating every param over every element."""

    def __init__(self, known: dict[int, Array]) -> None:
        self.known = known

    def spread(self, param: Param, values: Array, owner: Shape) -> Array:
        index = None if param.index is None else param.index.read()
        for axis, size in enumerate(param.tile):
            last = axis == len(param.tile) - 1
            places = index if last and index is not None else np.arange(owner[axis]) // size
            values = np.take(values, places, axis)
        return values

    def affine(self, values: Float32, zero: Param | None, scale: Param | None, offset: Param | None) -> Float32:
        if zero is not None:
            values = values - self.spread(zero, self.values(zero.values), values.shape)
        if scale is not None:
            values = values * self.spread(scale, self.values(scale.values), values.shape)
        if offset is not None:
            values = values + self.spread(offset, self.values(offset.values), values.shape)
        return values

    def values(self, values: Codes | LowRank) -> Float32:
        if isinstance(values, LowRank):
            u, vt = self.values(values.u), self.values(values.vt)
            total = u[:, :1] * vt[:1]
            for j in range(1, len(vt)):
                total = total + u[:, j : j + 1] * vt[j]
            return total
        codes = self.known[id(values)]
        if isinstance(values.table, str):
            result = codes if codes.dtype == np.float32 else dtype(values.table).values()[codes]
        else:
            select = values.table.select
            chosen: Any = 0
            if select is not None and isinstance(select.values, Codes):
                chosen = self.spread(select, self.known[id(select.values)], values.shape)
            entries = values.table.values.read().astype(np.float32)
            result = np.empty(values.decoded_shape, np.float32)
            for at in np.ndindex(*values.shape):
                table = chosen if isinstance(chosen, int) else chosen[at]
                where = tuple(slice(i * b, i * b + b) for i, b in zip(at, values.block, strict=True))
                result[where] = entries[table, codes[at]]
        return self.affine(result, values.zero, values.scale, values.offset)

    def tensor(self, tensor: QTensor) -> Float32:
        total = np.zeros(tensor.shape, np.float32)
        size = total.size
        for i, term in enumerate(tensor.terms):
            values = self.values(term.values)
            mask = (
                np.ones(values.shape, bool)
                if term.where is None
                else np.broadcast_to(self.known[id(term.where)], values.shape)
            )
            flat, chosen = (
                values.reshape(-1)[:size].reshape(tensor.shape),
                mask.reshape(-1)[:size].reshape(tensor.shape),
            )
            replaced = flat if term.mode == "set" or (i == 0 and term.where is None) else total + flat
            total = np.where(chosen, replaced, total)
        return self.affine(total, None, tensor.scale, tensor.offset)


def ranges(rng: np.random.Generator, rows: int) -> Iterator[slice]:
    yield slice(0, 0)
    for _ in range(4):
        low, high = sorted(rng.integers(0, rows + 1, 2).tolist())
        yield slice(low, high)


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 2**32 - 1))
def test_any_legal_tensor_is_decoded_as_the_words_say_and_rows_are_slices(seed: int) -> None:
    maker = Maker(seed)
    tensor = maker.tensor()
    rules.check(tensor, "w")
    rules.check_values(tensor, "w")
    with np.errstate(all="ignore"):
        want = Naive(maker.known).tensor(tensor)
    whole = decode.decode_tensor(tensor)
    np.testing.assert_array_equal(whole.view(np.uint32), want.view(np.uint32))
    for rows in ranges(maker.rng, tensor.shape[0]):
        part = decode.decode_tensor(tensor, rows)
        np.testing.assert_array_equal(part.view(np.uint32), whole[rows].view(np.uint32))
    parts = [decode.decode_tensor(tensor, rows) for rows in decode.slabs(tensor, 64)]
    np.testing.assert_array_equal(np.concatenate(parts).view(np.uint32), whole.view(np.uint32))


def with_noise(node: Any, rng: np.random.Generator) -> Any:
    """The same description over other bytes."""
    if isinstance(node, Buffer):
        octets = rng.integers(0, 256, node.nbytes).astype(np.uint8)
        return Buffer.of(node.key, octets.view(storage_dtype(node.dtype)).reshape(node.shape), node.dtype)
    if isinstance(node, tuple):
        return tuple(with_noise(item, rng) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{f.name: with_noise(getattr(node, f.name), rng) for f in fields(node)})
    return node


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_a_legal_description_over_any_bytes_gives_numbers_or_a_refusal(seed: int) -> None:
    maker = Maker(seed)
    tensor = with_noise(maker.tensor(), maker.rng)
    rules.check(tensor, "w")
    try:
        rules.check_values(tensor, "w")
    except BadFileError as judged:
        finite = "finite" in judged.what or "digits" in judged.what
        try:
            tensor.decode()
        except BadFileError:
            return
        assert finite, judged
    else:
        assert tensor.decode().shape == tensor.shape


def test_a_slab_needs_a_few_times_its_size() -> None:
    codes = Buffer.of("codes", np.zeros((4096, 2048), np.uint8), "U8")
    scale = Codes((4096, 32), (Buffer.of("scale", np.ones((4096, 32), np.float32), "F32"),), PLAIN, "f32")
    param = Param(scale, (1, 128))
    grid = Codes((4096, 4096), (codes,), Layout("bits", 4), "uint4", zero=param, scale=param)
    tensor = QTensor((4096, 4096), "F32", (Term(grid),))
    slab = 512 * 4096 * 4
    tracemalloc.start()
    tensor.decode(slice(512, 1024))
    part = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    tensor.decode()
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part < 3.5 * slab
    assert whole < 8 * slab + 3.5 * slab
