"""Orders and curves: legal, deterministic, and the best there is at the ends of the hull."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.elastic.curve import Curve
from qdeploy.elastic.pieces import Piece
from qdeploy.elastic.plan import floor, order, resident
from qdeploy.errors import BadArgumentError, BadFileError

KINDS = ("gain", "uniform", "reference")


def tensor(name: str, sizes: list[int], errors: list[float]) -> list[Piece]:
    """Pieces of one tensor; `errors` has one entry more than `sizes`."""
    around = itertools.pairwise(errors)
    return [Piece(name, i, 0, n, a, b) for i, (n, (a, b)) in enumerate(zip(sizes, around, strict=True))]


@st.composite
def networks(draw: st.DrawFn) -> list[Piece]:
    results: list[Piece] = []
    for number in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 4))
        sizes = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
        errors = sorted(draw(st.lists(st.floats(0, 1), min_size=count + 1, max_size=count + 1)), reverse=True)
        results += tensor(f"t{number}", sizes, errors)
    return results


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from(KINDS))
def test_every_order_has_all_pieces_after_their_predecessors_and_the_floor_first(pieces, kind) -> None:
    result = order(pieces, kind)
    assert sorted(map(repr, result)) == sorted(map(repr, pieces))
    assert result == order(list(pieces), kind)
    names = list(dict.fromkeys(p.tensor for p in pieces))
    assert [p.tensor for p in result[: len(names)]] == names
    assert all([p for p in result if p.tensor == n] == [p for p in pieces if p.tensor == n] for n in names)
    assert sum(p.nbytes for p in result[: len(names)]) == floor(pieces)


@settings(max_examples=60, deadline=None)
@given(networks())
def test_at_the_ends_of_hull_segments_no_other_choice_of_that_size_is_better(pieces) -> None:
    curve = Curve.of(order(pieces))
    tensors = [list(group) for _, group in itertools.groupby(pieces, key=lambda p: p.tensor)]
    choices = []
    for counts in itertools.product(*(range(1, len(own) + 1) for own in tensors)):
        chosen = [p for own, n in zip(tensors, counts, strict=True) for p in own[:n]]
        last = [own[n - 1] for own, n in zip(tensors, counts, strict=True)]
        choices.append((sum(p.nbytes for p in chosen), sum(p.error_after for p in last)))
    longest = {point.nbytes: point for point in curve.points}  # pieces of no bytes: a budget takes all that fit
    hull_points = 0
    for point in longest.values():
        assert curve.at(point.nbytes) == point
        best = min(loss for size, loss in choices if size <= point.nbytes)
        hull_points += point.loss <= best + 1e-9
    assert hull_points >= min(2, len(longest))
    assert curve.points[-1].loss == pytest.approx(min(loss for _, loss in choices), abs=1e-9)


def test_a_piece_of_no_bytes_is_part_of_every_budget_that_holds_what_stands_before_it() -> None:
    pieces = tensor("a", [2, 0, 3], [1, 0.5, 0.4, 0]) + tensor("b", [1, 1, 0], [1, 0.9, 0.9, 0.1])
    curve = Curve.of(order(pieces))
    assert (curve.at(3).nbytes, curve.at(3).loss) == (3, pytest.approx(1.3))
    assert (curve.at(4).nbytes, curve.at(4).loss) == (4, pytest.approx(0.5))


def test_a_weak_piece_before_a_strong_one_is_joined_to_it() -> None:
    pieces = tensor("a", [1, 1, 1], [1, 0.9, 0.89, 0.1]) + tensor("b", [1, 1], [1, 0.5, 0.2])
    assert [p.tensor for p in order(pieces)] == ["a", "b", "a", "a", "b"]
    assert [p.tensor for p in order(pieces, "uniform")] == ["a", "b", "a", "b", "a"]


def test_ties_go_to_the_tensor_that_comes_first() -> None:
    pieces = [p for name in "zya" for p in tensor(name, [4, 2, 2], [1, 0.5, 0.25, 0])]
    assert [p.tensor for p in order(pieces)] == [*"zya", *"zzyyaa"]


def test_the_reference_order_is_followed_and_the_rest_comes_level_by_level() -> None:
    pieces = [p for name in "abc" for p in tensor(name, [1, 1, 1], [1, 0.5, 0.2, 0])]
    result = order(pieces, "reference", [("b", 1), ("a", 1), ("b", 2), ("a", 2)])
    assert [p.tensor for p in result] == [*"abc", *"baba", *"cc"]
    partly = order(pieces, "reference", [("b", 1)])
    assert [p.tensor for p in partly] == [*"abc", "b", *"ac", *"abc"]


@pytest.mark.parametrize("steps", [[("x", 1)], [("a", 2)], [("a", 1), ("a", 1)], [("a", 1), ("a", 2), ("a", 3)]])
def test_a_reference_that_does_not_fit_is_refused(steps) -> None:
    with pytest.raises(BadFileError):
        order(tensor("a", [1, 1, 1], [1, 0.5, 0.2, 0]), "reference", steps)


def test_an_unknown_order_and_pieces_out_of_order_are_refused() -> None:
    pieces = tensor("a", [1, 1], [1, 0.5, 0])
    with pytest.raises(BadArgumentError):
        order(pieces, "random")
    with pytest.raises(BadArgumentError):
        order(pieces[::-1])


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from(KINDS), st.integers(0, 50), st.integers(0, 200))
def test_a_budget_is_used_but_never_exceeded(pieces, kind, fixed, budget) -> None:
    curve = Curve.of(order(pieces, kind), fixed)
    assert curve.points[0].nbytes == fixed + floor(pieces)
    if budget < curve.points[0].nbytes:
        with pytest.raises(BadArgumentError) as caught:
            curve.at(budget)
        assert str(curve.points[0].nbytes) in caught.value.allowed
        return
    point = curve.at(budget)
    assert point.nbytes <= budget
    rest = curve.order[point.count :]
    assert not rest or point.nbytes + rest[0].nbytes > budget
    assert sum(curve.resident(budget).values()) == point.count
    content = resident(curve.order[: point.count])
    errors = [[p for p in pieces if p.tensor == n][count - 1].error_after for n, count in content.items()]
    assert point.loss == pytest.approx(sum(errors), abs=1e-9)


@pytest.mark.parametrize(("columns", "group"), [(172, 64), (330, 128)])
def test_a_short_last_group_costs_what_it_holds(columns: int, group: int) -> None:
    from qdeploy.backends.native.sums import lower_matrix
    from qdeploy.ir.tensor import Buffer, plain
    from qdeploy.quantize import parse
    from qdeploy.quantize.contract import Weight

    values = np.random.default_rng(0).standard_normal((64, columns)).astype(np.float32)
    spec = parse(f"rtn:int4,group={group}")
    tensor = spec.quantizer.quantize(Weight("w", plain(Buffer.of("w", values, "F32"), "f32")), (), spec.grid)
    for layout in ("elastic", "whole"):
        lowered = lower_matrix("w", tensor, layout)
        nbytes = sum(sum(term.sizes.values()) for term in lowered.terms)
        assert 8 * nbytes / values.size < 5.3 and lowered.columns.order is None
