"""What a budget buys of a model file, from its directory alone: the stack as pieces, and what else a session holds.

A rung is a number of blocks. The floor's blocks of a matrix are one piece, every further block is one; so a prefix of
the pieces that holds the floor is a rung, and `qdeploy.elastic.curve.Curve` says what fits.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.backends.native.layout import LINE, PAGE, SectionId, StateKind, aligned
from qdeploy.backends.native.losses import unpacked
from qdeploy.backends.native.reading import ModelFile
from qdeploy.elastic.pieces import Piece

_SYSTEM_PAGE, _HUGE_PAGE = mmap.PAGESIZE, 2 << 20
_HUGE_FROM = 64 << 20  # stacks of at least so many bytes lie in huge pages (runtime/src/model.cpp)

_BLOCK_TOKENS = 64
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
        losses: Loss per token of some rungs, as they were measured when the file was written.
    """

    order: tuple[Piece, ...]
    stored: tuple[int, ...]
    floor: int
    weights: dict[str, int]
    encoder: bool
    context: int
    losses: dict[int, float] = field(default_factory=dict)

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
    return Outline(
        order, whole, floor, weights, encoder, int(file.header["context"]), unpacked(file.metadata.get("losses"))
    )


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


def session_bytes(file: ModelFile, context: int, kv: str) -> int:
    """What a session of a decoder holds: the key/value cache and its scratch, as runtime/src/session.cpp lays them out.

    Args:
        file: The model.
        context: Tokens that the cache holds.
        kv: Type of the cache: f16, f32, or int8, which has a scale per token.
    """
    block, fixed = 0, 0
    for heads, size, value, kind in file.section(SectionId.STATES).tolist():
        if kind == StateKind.KV:
            block += heads * _head_bytes(size, value or size, kv)
        else:
            fixed += aligned(4 * heads * size * (value if kind == StateKind.RECURRENT else 1), LINE)
    blocks = -(-context // _BLOCK_TOKENS)
    parts = (8 * blocks, 0, 8 * int(file.header["vocab"]))
    cache = aligned(blocks * block + fixed, _SYSTEM_PAGE)
    return aligned(cache + sum(aligned(part + LINE, LINE) for part in parts), _SYSTEM_PAGE)


def _head_bytes(size: int, value: int, kv: str) -> int:
    """Keys and values of one head for a block of tokens, as runtime/src/cache.cpp lays them out."""
    depth = aligned(size, 2) if kv == "int8" else size
    scales = 2 * 4 * _BLOCK_TOKENS if kv == "int8" else 0
    return _BLOCK_TOKENS * _CACHE_BYTES[kv] * (depth + aligned(value, 16)) + scales
