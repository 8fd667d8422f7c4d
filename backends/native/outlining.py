"""What a budget buys of a model file, from its directory alone: the stack as pieces, and what else a session holds.

A rung is a number of blocks. The floor's blocks of a matrix are one piece, every further block is one; so a prefix of
the pieces that holds the floor is a rung, and `qdeploy.elastic.curve.Curve` says what fits.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.backends.native.layout import LINE, NONE, PAGE, Op, SectionId, StateKind, aligned
from qdeploy.backends.native.reading import ModelFile
from qdeploy.elastic.pieces import Piece

_SYSTEM_PAGE, _HUGE_PAGE = mmap.PAGESIZE, 2 << 20
_HUGE_FROM = 64 << 20  # stacks of at least so many bytes lie in huge pages (runtime/src/model.cpp)

_SINKS = 14  # of the words of an attention node: the tensor of sinks

_CACHE_BYTES = {"int8": 1, "f16": 2, "f32": 4}


@dataclass(frozen=True)
class Outline:
    """The stack of a model file.

    Attributes:
        order: Its pieces, as they lie; the first of every matrix at the head. What they take is counted as the runtime
            does, in whole pages; what the first ones were worth, a file does not say.
        stored: Bytes of each piece in the file.
        floor: Rung at which the first pieces are there; each further piece is one rung.
        weights: Weights of each matrix, by name, in the order of the graph.
        encoder: Whether it is an encoder; the activations of one are not counted here.
        context: Tokens that the model was made for.
    """

    order: tuple[Piece, ...]
    stored: tuple[int, ...]
    floor: int
    weights: dict[str, int]
    encoder: bool
    context: int

    def rung(self, count: int) -> int:
        """The rung of a prefix of so many pieces."""
        return self.floor + count - len(self.weights)

    @property
    def floor_bytes(self) -> int:
        """What the first pieces take."""
        return sum(p.nbytes for p in self.order[: len(self.weights)])


def outline(file: ModelFile) -> Outline:
    """Reads the outline of a model file from its directory."""
    matrices, terms = file.section(SectionId.MATRICES), file.section(SectionId.TERMS)
    blocks, rungs = file.section(SectionId.BLOCKS), file.section(SectionId.RUNGS)
    floor, names = int(file.header["floor_rung"]), list(file.matrices())
    owner = np.repeat(np.repeat(np.arange(len(matrices)), matrices["terms"]), terms["planes"])
    place = np.argsort(blocks["at"], kind="stable")
    memory, stored, own = _committed_bytes(file, rungs), blocks["bytes"][place].tolist(), owner[place].tolist()
    first = {name: [0, 0] for name in names}
    for block in range(floor):
        first[names[own[block]]][0] += memory[block]
        first[names[own[block]]][1] += stored[block]
    gains = -np.diff(rungs["error"][max(0, floor - 1) :])
    order = _chained(
        [*first, *(names[m] for m in own[floor:])],
        [*(pair[0] for pair in first.values()), *memory[floor:]],
        [*([0.0] * len(first)), *gains.tolist()],
    )
    sizes = (matrices["rows"].astype(np.int64) * matrices["columns"]).tolist()
    weights, encoder = dict(zip(names, sizes, strict=True)), bool(file.header["kind"])
    whole = (*(pair[1] for pair in first.values()), *stored[floor:])
    return Outline(order, whole, floor, weights, encoder, int(file.header["context"]))


def _committed_bytes(file: ModelFile, rungs: Any) -> list[int]:
    """What each block adds to what the runtime commits for a prefix of the stack."""
    stack = int(file.header["stack_bytes"])
    page, most = _HUGE_PAGE if stack >= _HUGE_FROM else _SYSTEM_PAGE, aligned(stack, _SYSTEM_PAGE)
    ends = [min(aligned(min(aligned(end, PAGE), stack), page), most) for end in rungs["bytes"].tolist()]
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]


def _chained(names: Sequence[str], sizes: Sequence[int], gains: Sequence[float]) -> tuple[Piece, ...]:
    """Pieces whose errors follow from their gains, backwards: where all of a tensor is there, nothing is left."""
    left, pieces, number = dict.fromkeys(names, 0.0), list[Piece](), dict[str, int]()
    for name in names:
        number[name] = number.get(name, 0) + 1
    for name, size, gain in zip(reversed(names), reversed(sizes), reversed(gains), strict=True):
        number[name] -= 1
        pieces.append(Piece(name, 0, number[name], size, left[name] + gain, left[name]))
        left[name] += gain
    return tuple(reversed(pieces))


def _has_sinks(file: ModelFile) -> bool:
    """Whether a score stands behind those of the keys."""
    nodes, words = file.section(SectionId.NODES), file.section(SectionId.ATTRIBUTES)
    attention = nodes[(nodes["op"] == Op.ATTENTION) & (nodes["attrs"] > _SINKS)]
    return any(int(words[node["attr"] + _SINKS]) != NONE for node in attention)


def session_bytes(file: ModelFile, context: int, threads: int, kv: str) -> int:
    """What a session of a decoder holds: the key/value cache and its scratch, as runtime/src/session.cpp lays them out.

    Args:
        file: The model.
        context: Tokens that the cache holds.
        threads: Of the pool.
        kv: Type of the cache: f16, f32, or int8, which has a scale per token.
    """
    states, cache = file.section(SectionId.STATES), 0
    for heads, size, value, kind in states.tolist():
        if kind != StateKind.KV:
            cache += aligned(4 * heads * size * (value if kind == StateKind.RECURRENT else 1), LINE)
            continue
        for width in (size, value or size):
            scales = aligned(context * 4, LINE) if kv == "int8" else 0
            cache += heads * (aligned(context * width * _CACHE_BYTES[kv], LINE) + scales)
    parts = (8 * len(states), 4 * threads * (context + _has_sinks(file)), 0, 8 * int(file.header["vocab"]))
    return aligned(aligned(cache, _SYSTEM_PAGE) + sum(aligned(part + LINE, LINE) for part in parts), _SYSTEM_PAGE)
