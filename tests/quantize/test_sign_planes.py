"""Sign planes of a BitStack stack: greedy, in steps of rows, and honest about the loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Term, buffers, plain
from qdeploy.ir.views import Floats, view
from qdeploy.quantize import sign_planes as room
from qdeploy.quantize.sign_planes import peel, sign_planes


def stack(rows: int, columns: int, blocks: int, rank: int, seed: int = 0) -> QTensor:
    rng, terms = np.random.default_rng(seed), []
    for i in range(blocks):
        signs = Buffer.of(f"signs.{i}", np.packbits(rng.random((rows, columns)) < 0.5, axis=1, bitorder="little"), "U8")
        u, vt = (
            Buffer.of(f"{name}.{i}", (rng.standard_normal(shape) * 0.6**i).astype(np.float16), "F16")
            for name, shape in (("u", (rows, rank)), ("vt", (rank, columns)))
        )
        product = LowRank(*(Codes(b.shape, (b,), PLAIN, "f16") for b in (u, vt)))
        terms.append(Term(Codes((rows, columns), (signs,), Layout("bits", 1), "sign", scale=Param(product, (1, 1)))))
    return QTensor((rows, columns), "F16", tuple(terms))


def by_definition(weight: np.ndarray, planes: int, group: int) -> np.ndarray:
    """The sum of the planes, group by group."""
    left, total = weight.copy(), np.zeros_like(weight)
    for _ in range(planes):
        for row in range(weight.shape[0]):
            for start in range(0, weight.shape[1], group):
                part = left[row, start : start + group]
                scale = np.float32(np.float16(np.abs(part).mean(dtype=np.float64)))
                plane = np.where(part >= 0, scale, -scale)
                total[row, start : start + group] += plane
                part -= plane
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 300), st.integers(1, 4), st.sampled_from([1, 7, 64, 128]), st.integers(0, 99))
def test_planes_are_those_of_the_definition(rows, columns, blocks, group, seed) -> None:
    source = stack(rows, columns, blocks, 2, seed)
    losses: dict[str, float] = {}
    output = sign_planes("w", source, losses, group=group)
    rules.check(output, "w")
    weight, decoded = source.decode(), output.decode()
    wanted = by_definition(weight, blocks, group)
    assert np.linalg.norm(decoded - wanted) <= 2e-3 * np.linalg.norm(weight)
    noise = np.linalg.norm(weight - decoded)
    measured = 20 * np.log10(np.linalg.norm(weight) / noise) if noise else np.inf
    assert losses["w"] == pytest.approx(measured, abs=0.01) or measured > 90


def test_steps_of_rows_in_any_order_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    source = stack(50, 200, 3, 2)
    whole = sign_planes("w", source, {})
    monkeypatch.setattr(room, "_BLOCK", 200 * 7)
    parts = sign_planes("w", source, {})
    for one, many in zip(list(buffers(whole))[::-1], list(buffers(parts))[::-1], strict=True):
        pieces = [many.read(i, min(i + 9, 50)) for i in range(0, 50, 9)]
        np.testing.assert_array_equal(np.concatenate(pieces), one.read())
        assert many.read(3, 3).shape == (0, *many.shape[1:])


def test_every_rung_is_closer_and_there_are_as_many_as_blocks() -> None:
    source = stack(64, 256, 4, 3)
    output = sign_planes("w", source, {})
    weight = source.decode()
    errors = [np.linalg.norm(weight - decode_tensor(output, rung=i)) for i in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert len(output.terms) == len(output.rungs) == 4
    assert output.source is None


def test_what_a_plane_leaves_has_no_mean_in_any_group() -> None:
    left = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    before = left.copy()
    peel(left, 32)
    projected = (left * np.where(before >= 0, 1, -1)).reshape(6, 3, 32).mean(-1)
    assert np.abs(projected).max() < 1e-3


def test_only_a_bitstack_stack_is_lowered() -> None:
    tensor = plain(Buffer.of("data", np.ones((4, 4), np.float32), "F32"), "f32")
    assert isinstance(view(tensor), Floats)
    with pytest.raises(UnsupportedError):
        sign_planes("w", tensor, {})
