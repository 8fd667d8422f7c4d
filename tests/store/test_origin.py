"""The ledger: what is proven, and what had to be kept beside."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import ProofError
from qdeploy.store.origin import Origin

ARRAY = np.arange(60, dtype=np.int16).reshape(6, 10)


@given(st.permutations(range(5)))
def test_proven_only_when_every_part_was(order: list[int]) -> None:
    origin = Origin("f", "t", "I16", (60,))
    cuts = list(pairwise([0, 10, 20, 21, 50, 60]))
    for i in order:
        assert not origin.proven
        origin.prove_verbatim(*cuts[i])
        assert origin.covers(*cuts[i])
    assert origin.proven
    assert origin.covers(5, 55)


def test_a_tensor_without_bytes_is_proven() -> None:
    assert Origin("f", "t", "F32", (0, 5)).proven
    assert not Origin("f", "t", "F32", ()).proven


@settings(deadline=None, max_examples=50)
@given(
    axis=st.sampled_from([0, 1]),
    start=st.integers(0, 5),
    places=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8),
)
def test_the_residue_gives_the_source_back(axis: int, start: int, places: set[tuple[int, int]]) -> None:
    source = ARRAY.copy()
    for place in places:
        source[place] ^= 0x1234
    origin = Origin("f", "t", "I16", source.shape, axis=axis)
    for low, high in ((0, start), (start, source.shape[axis])):
        cut = (slice(low, high), slice(None)) if axis == 0 else (slice(None), slice(low, high))
        origin.prove(low, high, np.ascontiguousarray(source[cut]), ARRAY[cut])
    assert origin.proven
    back = np.frombuffer(ARRAY.tobytes(), np.uint8).copy()
    for offset, xor in origin.residue().tolist():
        back[offset] ^= xor
    assert back.tobytes() == source.tobytes()
    assert len(origin.residue()) == 2 * len(places)


def test_another_shape_is_a_failed_proof() -> None:
    with pytest.raises(ProofError):
        Origin("f", "t", "I16", ARRAY.shape).prove(0, 6, ARRAY, ARRAY.T)


def test_any_memory_order_will_do() -> None:
    origin = Origin("f", "t", "I16", ARRAY.shape)
    origin.prove(0, 6, ARRAY, np.asfortranarray(ARRAY))
    assert not len(origin.residue())


def test_too_much_residue_promises_values_only() -> None:
    source = np.zeros((100, 1000), np.uint8)
    origin = Origin("f", "t", "U8", source.shape)
    origin.prove(0, 100, source, source + 1)
    assert origin.proven
    assert origin.values_only
    assert not len(origin.residue())


def test_what_is_known_survives_as_json() -> None:
    first, second = Origin("f", "t", "I16", ARRAY.shape), Origin("f", "t", "I16", ARRAY.shape)
    first.prove(2, 4, ARRAY[2:4] + 1, ARRAY[2:4])
    second.set_state(json.loads(json.dumps(first.state())))
    assert second.covers(2, 4)
    assert not second.proven
    assert [tuple(pair) for pair in second.residue().tolist()] == first.residue().tolist()
