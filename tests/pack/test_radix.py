from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qdeploy.errors import BadArgumentError
from qdeploy.pack import radix

RUNS = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=17)
BASES = st.sampled_from([(3, 5), (3, 4), (2, 8), (5, 3), (6, 3), (15, 2), (16, 2), (200, 1)])


@settings(deadline=None, max_examples=100)
@given(BASES.flatmap(lambda b: st.tuples(st.just(b), hnp.arrays(np.uint8, RUNS, elements=st.integers(0, b[0] - 1)))))
def test_a_byte_is_the_number_its_digits_spell(case: tuple[tuple[int, int], np.ndarray]) -> None:
    (base, digits), codes = case
    packed = radix.pack(codes, base, digits)
    count = codes.shape[-1]
    flat = codes.reshape(-1, count) if codes.size else np.empty((0, 0), np.uint8)
    for i, run in enumerate(flat):
        want = [sum(int(c) * base**k for k, c in enumerate(run[j : j + digits])) for j in range(0, count, digits)]
        assert packed.reshape(len(flat), -1)[i].tolist() == want
    np.testing.assert_array_equal(radix.unpack(packed, count, base, digits), codes)


def test_no_byte_gives_a_digit_outside_of_the_base() -> None:
    every = np.arange(256, dtype=np.uint8)[:, None]
    codes = radix.unpack(every, 5, 3, 5)
    assert codes.max() == 2
    np.testing.assert_array_equal(radix.pack(codes, 3, 5)[:243], every[:243])


@pytest.mark.parametrize(("count", "base", "digits"), [(11, 3, 5), (4, 3, 5), (10, 3, 6), (10, 1, 5), (10, 3, 0)])
def test_digits_that_do_not_fit_are_refused(count: int, base: int, digits: int) -> None:
    with pytest.raises(BadArgumentError):
        radix.unpack(np.zeros((2, 2), np.uint8), count, base, digits)
