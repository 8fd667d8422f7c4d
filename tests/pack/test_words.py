"""Turning matrices of packed words, against the plain way of saying it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.pack.words import transpose, transpose_nibbles, untranspose_nibbles

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 140),
    columns=st.integers(0, 140),
    dtype=st.sampled_from(["<i4", "<u2", "<f2", "u1", "<f4", "<u8"]),
    seed=st.integers(0, 99),
)
def test_a_transpose_is_the_transpose(rows: int, columns: int, dtype: str, seed: int) -> None:
    size = rows * columns * np.dtype(dtype).itemsize
    matrix = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).view(dtype).reshape(rows, columns)
    turned = transpose(matrix)
    assert turned.dtype == matrix.dtype
    assert turned.flags.c_contiguous
    assert turned.tobytes() == matrix.T.tobytes()


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 600), width=st.integers(1, 70), order=st.permutations(range(8)), seed=st.integers(0, 99))
def test_nibbles_lie_along_the_rows(count: int, width: int, order: list[int], seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 1 << 32, (count, width), dtype=np.uint32)
    codes = np.zeros((8 * width, count + count % 2), np.uint8)
    for slot, row in enumerate(order):
        codes[row::8, :count] = (words >> np.uint32(4 * slot) & np.uint32(15)).T
    rows = transpose_nibbles(words, tuple(order))
    assert np.array_equal(rows, codes[:, 0::2] | codes[:, 1::2] << 4)
    assert np.array_equal(untranspose_nibbles(rows, count, tuple(order)), words)


@pytest.mark.parametrize(("count", "width"), [(4096, 512), (264, 2048), (2048, 264)])
def test_large_and_aligned(count: int, width: int) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, (count, width), dtype=np.uint32)
    assert np.array_equal(transpose(words), words.T)
    assert np.array_equal(untranspose_nibbles(transpose_nibbles(words, AWQ), count, AWQ), words)
