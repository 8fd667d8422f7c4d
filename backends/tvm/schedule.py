"""One schedule for every kernel, by the names of its blocks (builders.py).

A convolution keeps a tile of output positions times 16 channels in registers over the whole reduction:

    blocks of channels (parallel)            weights are unpacked here, once
      rows, tiles of positions               (rows are parallel where there is one block of channels only)
        kh, kw, groups of input channels
          positions of the tile, 16 lanes    the inner product
        rq: bias and chain of the tile

Everything else is a loop over 16 lanes of channels, or over whatever extent the last axis has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qdeploy.backends.tvm.engine import SBlock, Schedule, walk
from qdeploy.backends.tvm.targets import LANES

Sch = Any
LEAST = 1 << 15
"""Elements of a map that are worth another thread: to start one takes as long as some thousand vectors."""


def blocks(function: Any) -> list[str]:
    """Names of the blocks of a PrimFunc."""
    names: list[str] = []
    walk(function.body, (SBlock, lambda block: names.append(block.name_hint)))
    return [name for name in names if name != "root"]


def schedule(function: Any, attrs: Mapping[str, Any], parallel: bool) -> Any:
    """Schedules a PrimFunc; returns it."""
    sch = Schedule(function)
    names = set(blocks(function))
    if "conv" in names:
        _convolution(sch, names, attrs, parallel)
    else:
        for name in blocks(function):
            if name.startswith(("bit", "acc", "rq")):
                continue
            if not _reduces(sch, name):
                mapped(sch, name, parallel)
        if "acc" in names:
            _reduction(sch, parallel)
        else:
            mapped(sch, "rq", parallel)
    return next(iter(sch.mod.functions.values()))


def _convolution(sch: Sch, names: set[str], attrs: Mapping[str, Any], parallel: bool) -> None:
    block = sch.get_sblock("conv")
    n, i, j, o, kh, kw, k = sch.get_loops(block)
    oo, ol = sch.split(o, [None, LANES])
    oo, om = sch.split(oo, [None, attrs["blocks"]])
    parallel = parallel and is_worth(sch, block, 16)
    by_rows = parallel and int(sch.get(oo).extent) == 1  # of one block of channels weights are unpacked first
    ko, ki = sch.split(k, [None, attrs["group"]])
    jo, ji = sch.split(j, [None, attrs["tile"]])
    inner = [ol, ki] if attrs["intrinsic"] else [ki, ol]
    sch.reorder(oo, n, i, jo, kh, kw, ko, ji, om, *inner)
    rq = sch.get_sblock("rq")
    sch.reverse_compute_at(rq, jo)
    sch.vectorize(sch.split(sch.get_loops(rq)[-1], [None, LANES])[1])
    unpack_weights(sch, names, None if by_rows else oo, attrs)
    if "feed" in names:
        mapped(sch, "feed", parallel)
    if parallel:
        sch.parallel(sch.fuse(n, i) if by_rows else oo)
    if not attrs["intrinsic"]:
        sch.unroll(ki)
        sch.vectorize(ol)
    start = sch.decompose_reduction(block, kh)
    loops = sch.get_loops(start)
    sch.vectorize(loops[-1])
    for loop in (*loops[-3:-1], ji, om):
        sch.unroll(loop)
    if attrs["intrinsic"]:
        sch.tensorize(ol, attrs["intrinsic"])


def unpack_weights(sch: Sch, names: set[str], at: Any, attrs: Mapping[str, Any]) -> None:
    """Weights are unpacked in a loop, or first of all; 4-bit codes go through a buffer of one quad pair."""
    final = "wunpack" if "wunpack" in names else "nibbles" if "nibbles" in names else ""
    if not final:
        return
    block = sch.get_sblock(final)
    if at is not None:
        sch.compute_at(block, at)
    quads = sch.get_loops(block)[-3]
    if final == "wunpack" and "nibbles" in names:
        outer, quads = sch.split(quads, [None, 8 // attrs["group"]])
        sch.compute_at(sch.get_sblock("nibbles"), outer)
    if attrs["intrinsic"] == "avx2_madd":
        _, pair = sch.split(quads, [None, 2])
        sch.tensorize(pair, "avx2_widen")
    if "nibbles" in names:
        quads, lanes, each = sch.get_loops(sch.get_sblock("nibbles"))[-3:]
        sch.unroll(sch.split(quads, [None, 2])[1])
        sch.vectorize(sch.fuse(lanes, each))


def _reduction(sch: Sch, parallel: bool) -> None:
    """A reduction outside of a convolution: lanes of the last axis, the reduction around them."""
    block, rq = sch.get_sblock("acc"), sch.get_sblock("rq")
    rank = len(sch.get_loops(rq))
    loops = sch.get_loops(block)
    if rank == 0:
        return
    spatial, reduced = loops[:rank], loops[rank:]
    lanes = _lanes(int(sch.get(spatial[-1]).extent))
    outer, lane = sch.split(spatial[-1], [None, lanes])
    sch.reorder(*spatial[:-1], outer, *reduced, lane)
    sch.reverse_compute_at(rq, outer)
    if lanes > 1:  # a loop of one iteration is not made, and the one around it is not a vector
        sch.vectorize(sch.get_loops(rq)[-1])
        sch.vectorize(lane)
    if parallel and rank > 1 and is_worth(sch, block):
        sch.parallel(sch.fuse(*spatial[:-1]))
    start = sch.decompose_reduction(block, reduced[0])
    if lanes > 1:
        sch.vectorize(sch.get_loops(start)[-1])


def mapped(sch: Sch, name: str, parallel: bool) -> None:
    """A map: lanes of the last axis, the rest in parallel."""
    loops = sch.get_loops(sch.get_sblock(name))
    if len(loops) < 2:
        return
    lanes = _lanes(int(sch.get(loops[-1]).extent))
    _, lane = sch.split(loops[-1], [None, lanes])
    if lanes > 1:
        sch.vectorize(lane)
    if parallel and is_worth(sch, sch.get_sblock(name)):
        sch.parallel(sch.fuse(*loops[:-1]))


def is_worth(sch: Sch, block: Any, times: int = 1) -> bool:
    """Whether the loops of a block are worth another thread; `times` where an iteration is so much cheaper."""
    return math.prod(int(sch.get(loop).extent) for loop in sch.get_loops(block)) >= LEAST * times


def _reduces(sch: Sch, name: str) -> bool:
    return any(int(axis.iter_type) != 0 for axis in sch.get(sch.get_sblock(name)).iter_vars)


def _lanes(extent: int) -> int:
    """The widest vector that the last axis is made of."""
    return next(n for n in (LANES, 8, 4, 2, 1) if extent % n == 0)
