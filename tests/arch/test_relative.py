"""Buckets of distances: what T5's paper and its code say, one distance at a time."""

from __future__ import annotations

import math

import pytest

from qdeploy.arch.relative import buckets_by_distance


def bucket(distance: int, buckets: int, most: int, bidirectional: bool) -> int:
    """The bucket of one distance key - query, by exact arithmetic where the code takes logarithms."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    steps = buckets - exact
    grown = sum(distance**steps * exact**k >= exact**steps * most**k for k in range(1, steps))
    return first + min(exact + grown, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, most", [(32, 128), (8, 16), (64, 256), (32, 20)])
def test_every_distance_is_in_its_bucket(buckets: int, most: int, bidirectional: bool):
    table = buckets_by_distance(buckets, most, bidirectional)
    assert len(table) == 2 * most + 1
    for place, value in enumerate(table.tolist()):
        distance = place - most
        side = buckets // 2 if bidirectional else buckets
        away = abs(distance) if bidirectional else max(-distance, 0)
        border = any(
            math.isclose(away, (side // 2) * (most / (side // 2)) ** (k / (side - side // 2))) for k in range(1, side)
        )
        assert border or value == bucket(distance, buckets, most, bidirectional)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_is_farther_away_is_in_the_last_bucket(bidirectional: bool):
    table = buckets_by_distance(32, 128, bidirectional)
    assert table[0] == bucket(-5000, 32, 128, bidirectional)
    assert table[-1] == bucket(5000, 32, 128, bidirectional)
