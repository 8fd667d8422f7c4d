"""Disentangled attention: scores of contents and of relative positions (DeBERTa, arXiv 2006.03654, section 3.1).

    score[i, j] = (q_i . k_j  +  q_i . K[b(i - j)]  +  k_j . Q[b(i - j)]) / sqrt(terms * head size)

K and Q are the projections of a table of positions, one row per bucket b; of the three terms the last two are optional.
Distances below half of the buckets have one each, farther ones share logarithmic ones, as the authors' code has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qdeploy.arch.builder import Builder


def bucket_rows(context: int, buckets: int, most: int) -> npt.NDArray[np.int64]:
    """The row of the table for each distance i - j in -(context - 1) .. context - 1, int64 [2 context - 1].

    Args:
        context: Positions that a sequence may have.
        buckets: Buckets on either side; 0: every distance below `most` has one.
        most: The greatest distance.
    """
    distance = np.arange(1 - context, context)
    span = buckets or most
    bucket = _logarithmic(distance, buckets, most) if buckets else distance
    rows = np.clip(bucket + span, 0, 2 * span - 1)
    return np.asarray(rows, np.int64)


def _logarithmic(distance: npt.NDArray[np.int64], buckets: int, most: int) -> npt.NDArray[np.int64]:
    half = buckets // 2
    away = np.where(np.abs(distance) < half, half - 1, np.abs(distance)).astype(np.float32)
    ratio = np.log(away / np.float32(half)) / np.log(np.float32((most - 1) / half))
    grown = np.ceil(ratio * np.float32(half - 1)) + half
    return np.where(away <= half, distance, (grown * np.sign(distance)).astype(np.int64))


@dataclass(frozen=True)
class PositionScores:
    """What the scores of positions take.

    Attributes:
        table: The value [2 span, hidden] that holds the positions.
        rows: I64 [T, T]: the row of each pair.
        heads: Heads.
        size: Elements of a head.
        terms: Which of "c2p" and "p2c" there are.
    """

    table: str
    rows: str
    heads: int
    size: int
    terms: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Multiplied into all scores."""
        return float((self.size * (1 + len(self.terms))) ** -0.5)

    def add(self, builder: Builder, contents: dict[str, str], positions: dict[str, str], name: str) -> str:
        """Adds the scaled scores [B, heads, T, T] of one layer; "" where there is no term.

        Args:
            builder: The graph.
            contents: The values "c2p": queries and "p2c": keys, [B, T, heads * size].
            positions: The values "c2p": keys and "p2c": queries of the positions, [2 span, heads * size].
            name: What the result is called.
        """
        scores = [self._term(builder, term, contents[term], positions[term], f"{name}.{term}") for term in self.terms]
        if not scores:
            return ""
        total = scores[0] if len(scores) == 1 else builder.node("Add", *scores, name=f"{name}.sum")
        return builder.scaled(total, self.scale, name)

    def _term(self, builder: Builder, term: str, content: str, positions: str, name: str) -> str:
        split = builder.node("Reshape", content, name=f"{name}.split", shape=[0, 0, self.heads, self.size])
        heads = builder.node("Transpose", split, name=f"{name}.heads", perm=[0, 2, 1, 3])  # [B, heads, T, D]
        rows = builder.node("Reshape", positions, name=f"{name}.rows", shape=[-1, self.heads, self.size])
        columns = builder.node("Transpose", rows, name=f"{name}.columns", perm=[1, 2, 0])  # [heads, D, 2 span]
        every = builder.node("MatMul", heads, columns, name=f"{name}.every")  # [B, heads, T, 2 span]
        index = self._index(builder, term, every, name)
        picked = builder.node("GatherElements", every, index, name=f"{name}.picked", axis=3)
        return picked if term == "c2p" else builder.node("Transpose", picked, name=name, perm=[0, 1, 3, 2])

    def _index(self, builder: Builder, term: str, every: str, name: str) -> str:
        """The rows of all pairs, for every sequence and head; of keys and queries where keys ask."""
        rows = self.rows
        if term == "p2c":  # the row of (query, key), looked up by the key
            rows = builder.node("Transpose", rows, name=f"{name}.turned", perm=[1, 0])
        outer = builder.node("Shape", every, name=f"{name}.outer", start=0, end=2)
        inner = builder.node("Shape", rows, name=f"{name}.inner")
        shape = builder.node("Concat", outer, inner, name=f"{name}.extents", axis=0)
        return builder.node("Expand", rows, shape, name=f"{name}.index")


def pair_rows(add: Builder, ids: str, rows: npt.NDArray[np.int64]) -> str:
    """I64 [T, T]: the row of the table for each query and key of a sequence."""
    places = add.node("Positions", ids, name="pairs.positions")
    queries = add.node("Unsqueeze", places, name="pairs.queries", axes=[1])
    distance = add.node("Sub", queries, places, name="pairs.distance")
    index = add.node("Add", distance, add.integer("pairs.offset", len(rows) // 2), name="pairs.index")
    return add.node("Gather", add.integers("pairs.numbers", rows.tolist()), index, name="pairs.rows", axis=0)
