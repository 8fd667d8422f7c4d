from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qdeploy.errors import BadArgumentError
from qdeploy.pack import planes

RUNS = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=19)


def codes_of(width: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint16, RUNS, elements=st.integers(0, (1 << width) - 1))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 16).flatmap(lambda width: st.tuples(st.just(width), codes_of(width))))
def test_element_j_is_bit_j_of_its_byte_most_significant_plane_first(case: tuple[int, np.ndarray]) -> None:
    width, codes = case
    packed = planes.pack(codes, width)
    assert len(packed) == width
    runs = codes.reshape(-1, codes.shape[-1]) if codes.size else np.empty((0, 0), np.uint16)
    for i, run in enumerate(runs):
        for p, plane in enumerate(packed):
            octets = plane.reshape(len(runs), -1)[i]
            bits = [int(octets[j // 8]) >> j % 8 & 1 for j in range(len(run))]
            assert bits == [int(code) >> width - 1 - p & 1 for code in run]
    np.testing.assert_array_equal(planes.unpack(packed, codes.shape[-1], width), codes)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_missing_planes_read_as_zero(width: int, kept: int, seed: int) -> None:
    kept = min(kept, width)
    codes = np.random.default_rng(seed).integers(0, 1 << width, (3, 21)).astype(np.uint8)
    coarse = planes.unpack(planes.pack(codes, width)[:kept], 21, width)
    np.testing.assert_array_equal(coarse, codes >> (width - kept) << (width - kept))


@pytest.mark.parametrize(("count", "given"), [(9, 1), (8, 0), (8, 4)])
def test_planes_that_do_not_fit_are_refused(count: int, given: int) -> None:
    with pytest.raises(BadArgumentError):
        planes.unpack([np.zeros((2, 1), np.uint8)] * given, count, 3)
