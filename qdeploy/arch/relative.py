"""Biases of attention that depend on the distance of query and key (T5, arXiv 1910.10683, section 2.1; MPNet).

A table [buckets, heads] holds them. Distances up to half of a side's buckets have one each; beyond, buckets grow
logarithmically up to `max_distance`, and everything farther away is in the last one. So a table of 2 max_distance + 1
bucket numbers says all there is to say.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qdeploy.arch.builder import Builder


def buckets_by_distance(buckets: int, max_distance: int, bidirectional: bool) -> npt.NDArray[np.int64]:
    """The bucket of each distance key - query in -max_distance .. max_distance, int64 [2 max_distance + 1].

    Args:
        buckets: How many there are; halved for either side where attention is bidirectional.
        max_distance: From which on all are in one bucket.
        bidirectional: Whether keys behind the query have buckets of their own; otherwise they share that of 0.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    side = buckets // 2 if bidirectional else buckets
    away = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    exact = side // 2
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    grown = exact + (ratio * np.float32(side - exact)).astype(np.int64)
    bucket = np.where(away < exact, away, np.minimum(grown, side - 1))
    behind = np.where(distance > 0, side, 0) if bidirectional else 0
    return np.asarray(bucket + behind, np.int64)


def add_distance_bias(
    add: Builder, table: str, places: tuple[str, str], max_distance: int, buckets: npt.NDArray[np.int64], name: str
) -> str:
    """Adds the biases [1, heads, T, S] of every query and key.

    Args:
        add: The graph.
        table: The parameter [buckets, heads], as the graph calls it.
        places: Values I64 [T] and I64 [S]: positions of queries and of keys.
        max_distance: As above.
        buckets: Of `buckets_by_distance`.
        name: What the result is called.
    """
    rows = add.node("Unsqueeze", places[0], name=f"{name}.rows", axes=[1])
    distance = add.node("Sub", places[1], rows, name=f"{name}.distance")  # [T, S]
    limit = add.integer(f"{name}.limit", max_distance)
    bounded = add.node("Min", distance, limit, name=f"{name}.near")
    bounded = add.node("Max", bounded, add.integer(f"{name}.least", -max_distance), name=f"{name}.bounded")
    index = add.node("Add", bounded, limit, name=f"{name}.index")
    numbers = add.integers(f"{name}.numbers", buckets.tolist())
    bucket = add.node("Gather", numbers, index, name=f"{name}.buckets", axis=0)
    values = add.node("Gather", table, bucket, name=f"{name}.values", axis=0)  # [T, S, heads]
    transposed = add.node("Transpose", values, name=f"{name}.heads", perm=[2, 0, 1])
    return add.node("Unsqueeze", transposed, name=name, axes=[0])
