"""Convolutions of 3 x 3 by minimal filtering, F(2 x 2, 3 x 3) (Lavin, arXiv 1509.09308, section 4), in exact integers.

A tile of 4 x 4 inputs makes 2 x 2 outputs by 16 products per pair of channels instead of 36:

    V = Bt d B          tiles of the input, int16               Bt = 1  0 -1  0     Gt' = 2 1  1 0    At = 1 1  1  0
    U = G' g G't        filters, int16; G' = 2 G: no fraction        0  1  1  0           0 1 -1 0         0 1 -1 -1
    M = sum over channels of U V, for each of 16 places              0 -1  1  0           0 1  1 2
    y = At M A / 4      a shift: the sum is 4 y exactly              0  1  0 -1

`winograd_fit.py` says where all of that fits its types. Weights stay as they are packed. The blocks, besides those of
builders.py:

    columns, tiles      the two halves of the input's transform, over whole columns of channels
    turned, filters     the same of the filters
    products            M
    rows                the first half of the output's transform; the second is in `rq`

Tiles lie in chunks of `rows` rows of them, as [chunk][tile / positions][positions], so that what one chunk needs stays
in the caches. Of V and U the smaller one is made first, whole; the other where it is used, a part at a time:

    "chunks"     filters                          "channels"   tiles
                 chunks (parallel)                             blocks of 16 channels (parallel)
                   tiles                                         filters
                   blocks of 16 channels                         chunks

and within both: products, a register tile over all channels for each place; then tiles with the output's transform,
bias and chain. Places are apart by odd numbers of cache lines: at powers of two they would share sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdeploy.backends.tvm.arithmetic import Expr, const
from qdeploy.backends.tvm.builders import Attrs, Tensor, feed, finished, shape_of, unpacked
from qdeploy.backends.tvm.engine import Schedule, te, tirx
from qdeploy.backends.tvm.program import Buffer
from qdeploy.backends.tvm.schedule import Sch, blocks, is_worth, mapped, unpack_weights
from qdeploy.backends.tvm.targets import LANES

Line = Callable[[int], Expr]
_APART = (64, 32)
"""Elements of int16: strides between places are an odd multiple of 32 of them."""


def winograd(args: list[Tensor], attrs: Attrs, out: Buffer) -> Tensor:
    """A convolution of 3 x 3 with stride 1, in the form that `attrs["winograd"]` (winograd_fit.py) names."""
    x, weight, bias = args[:3]
    w = unpacked(weight, attrs)
    filter_blocks, _, _, pairs = shape_of(w)[:4]
    n, height, width, o = out.shape
    rows, positions = (attrs["winograd"][name] for name in ("rows", "positions"))
    columns, chunks = -(-width // 2), -(-height // (2 * rows))
    groups = -(-rows * columns // positions)
    x, _ = feed(x, attrs, (2 * chunks * rows, 2 * columns), 2 * pairs)

    def tile(chunk: Expr, group: Expr, position: Expr) -> tuple[Expr, Expr]:
        """Row and column of a tile; what fills the last group up repeats the last tile."""
        index = group * positions + position
        index = tirx.min(index, rows * columns - 1) if groups * positions > rows * columns else index
        return chunk * rows + index // columns, index % columns

    def column(m: Expr, q: Expr, g: Expr, p: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        row, start = tile(q, g, p)
        return _input(i, lambda a: x[m, 2 * row + a, 2 * start + j, c])

    first = te.compute((n, chunks, groups, positions, 4, 4, 2 * pairs), column, name="columns")
    v = te.compute(
        (4, 4, n, chunks, groups, positions, 2 * pairs),
        lambda i, j, m, q, g, p, c: _input(j, lambda b: first[m, q, g, p, i, b, c]),
        name="tiles",
    )
    u = _filters(w, filter_blocks, pairs)
    k = te.reduce_axis((0, 2 * pairs), "k")

    def product(i: Expr, j: Expr, m: Expr, q: Expr, g: Expr, p: Expr, c: Expr) -> Expr:
        factor = u[c // LANES, i, j, k // 2, c % LANES, k % 2]
        return te.sum(v[i, j, m, q, g, p, k].astype("int32") * factor.astype("int32"), axis=[k])

    total = te.compute((4, 4, n, chunks, groups, positions, o), product, name="products")
    half = te.compute(
        (n, chunks, groups, positions, 2, 4, o),
        lambda m, q, g, p, a, j, c: _output(a, lambda i: total[i, j, m, q, g, p, c]),
        name="rows",
    )

    def accumulated(m: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        row, index = i // 2, i // 2 % rows * columns + j // 2
        part: Line = lambda b: half[m, row // rows, index // positions, index % positions, i % 2, b, c]  # noqa: E731
        return (_output(j % 2, part) >> const(2)) + bias[c]

    return finished(accumulated, args, attrs, out)


def _filters(w: Tensor, filter_blocks: int, pairs: int) -> Tensor:
    first = te.compute(
        (filter_blocks, 4, 3, pairs, LANES, 2),
        lambda q, i, b, k, lane, r: _filter(i, lambda a: w[q, a, b, k, lane, r]),
        name="turned",
    )
    return te.compute(
        (filter_blocks, 4, 4, pairs, LANES, 2),
        lambda q, i, j, k, lane, r: _filter(j, lambda b: first[q, i, b, k, lane, r]),
        name="filters",
    )


def _chosen(index: Expr, parts: list[Expr]) -> Expr:
    """The part of an index, which is a constant once the loops over places are unrolled."""
    value = parts[-1]
    for place in reversed(range(len(parts) - 1)):
        value = tirx.Select(index == place, parts[place], value)
    return value


def _input(i: Expr, d: Line) -> Expr:
    return _chosen(i, [d(0) - d(2), d(1) + d(2), d(2) - d(1), d(1) - d(3)])


def _filter(i: Expr, g: Line) -> Expr:
    ends, one = g(0) + g(2), const(1, "int16")
    return _chosen(i, [g(0) << one, ends + g(1), ends - g(1), g(2) << one])


def _output(a: Expr, m: Line) -> Expr:
    return _chosen(a, [m(0) + m(1) + m(2), m(1) - m(2) - m(3)])


# ---- the schedule ----------------------------------------------------------------------------------------------------


def schedule(function: Any, attrs: Mapping[str, Any], parallel: bool) -> Any:
    """Schedules what `winograd` builds; returns it."""
    sch = Schedule(function)
    names = set(blocks(function))
    by_chunks = attrs["winograd"]["order"] == "chunks"
    block, chunk, tile = _outer_loops(sch, attrs["winograd"]["rows"], by_chunks)
    rows = sch.get_sblock("rows")
    sch.compute_at(rows, tile)
    _unrolled(sch, rows, 3)
    products = sch.get_sblock("products")
    sch.compute_at(products, block if by_chunks else chunk)
    *outer, positions, lanes, k = sch.get_loops(products)[3:]
    pairs, pair = sch.split(k, [None, 2])
    sch.reorder(*outer, pairs, positions, lanes, pair)
    if by_chunks:
        sch.compute_at(sch.get_sblock("tiles"), chunk)
    else:
        sch.compute_at(sch.get_sblock("filters"), block)
    if parallel:
        sch.parallel(chunk if by_chunks else block)
    start = sch.decompose_reduction(products, pairs)
    _unrolled(sch, start, 2)
    sch.unroll(positions)
    sch.tensorize(lanes, attrs["intrinsic"])
    _filters_in_parts(sch, names, attrs, parallel and by_chunks)
    _tiles(sch, 2 if by_chunks else 0, parallel and not by_chunks)
    mapped(sch, "feed", parallel)
    return next(iter(sch.mod.functions.values()))


def _outer_loops(sch: Sch, rows: int, by_chunks: bool) -> tuple[Any, Any, Any]:
    """The loops of `rq` over blocks of channels, chunks, and tiles of a chunk."""
    n, i, j, o = sch.get_loops(sch.get_sblock("rq"))
    block, lanes = sch.split(o, [None, LANES])
    chunk, row, down = sch.split(i, [None, rows, 2])
    tile, right = sch.split(j, [None, 2])
    outer = (n, chunk, block) if by_chunks else (block, n, chunk)
    sch.reorder(*outer, row, tile, down, right, lanes)
    sch.vectorize(lanes)
    sch.unroll(down)
    sch.unroll(right)
    return block, chunk, tile


def _unrolled(sch: Sch, block: Any, count: int) -> None:
    """The last loops of a block: the innermost a vector, the others unrolled."""
    *rest, lanes = sch.get_loops(block)[-count:]
    sch.vectorize(lanes)
    for loop in rest:
        sch.unroll(loop)


def _filters_in_parts(sch: Sch, names: set[str], attrs: Mapping[str, Any], parallel: bool) -> None:
    """Filters of a block of channels, a vector of pairs at a time; their codes are unpacked for a quad or two."""
    filters, turned = sch.get_sblock("filters"), sch.get_sblock("turned")
    block, *places, pairs, lanes, each = sch.get_loops(filters)
    worth = is_worth(sch, filters)
    outer, inner = sch.split(pairs, [None, 4 if "nibbles" in names else 2])
    half, lanes = sch.split(lanes, [None, LANES // 2])
    sch.reorder(outer, inner, half, *places, lanes, each)
    sch.vectorize(sch.fuse(lanes, each))
    for loop in places:
        sch.unroll(loop)
    sch.storage_align(filters, 0, 2, *_APART)
    sch.compute_at(turned, half)
    *places, lanes, each = sch.get_loops(turned)[4:]
    sch.vectorize(sch.fuse(lanes, each))
    for loop in places:
        sch.unroll(loop)
    unpack_weights(sch, names, outer, attrs)
    if parallel and worth:
        sch.parallel(block)


def _tiles(sch: Sch, depth: int, parallel: bool) -> None:
    """Tiles of the input, 16 channels at a time, below as many loops as are given."""
    tiles, columns = sch.get_sblock("tiles"), sch.get_sblock("columns")
    i, j, *outer, c = sch.get_loops(tiles)[depth:]
    worth = is_worth(sch, tiles)
    channels, lanes = sch.split(c, [None, LANES])
    sch.reorder(*outer, channels, i, j, lanes)
    sch.vectorize(lanes)
    sch.unroll(i)
    sch.unroll(j)
    sch.storage_align(tiles, 0, 1, *_APART)
    sch.compute_at(columns, channels)
    _unrolled(sch, columns, 3)
    if parallel and worth:
        sch.parallel(sch.fuse(*outer[:-1]))
