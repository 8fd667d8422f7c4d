"""Factors as a multiplier and a shift."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import UnsupportedError
from qdeploy.ir.dyadic import ONE, dyadic, dyadics, quotient


@settings(deadline=None, max_examples=200)
@given(st.floats(2.0**-32, 2.0**28, exclude_max=True))
def test_a_factor_is_normalised_and_next_to_the_real_one(factor: float):
    m, e = dyadic(factor)
    assert 1 << 30 <= m < 1 << 31 and 1 <= e <= 62
    assert abs(Fraction(m, 1 << e) - Fraction(factor)) <= Fraction(1, 1 << (e + 1)) * 2


def test_a_mantissa_that_rounds_up_to_a_power_of_two_is_normalised():
    for factor in (np.nextafter(1.0, 0), np.nextafter(0.25, 0)):
        assert dyadic(float(factor)) == dyadic(float(np.nextafter(factor, 2)))
    assert dyadic(1.0) == ONE


def test_a_factor_too_small_to_matter_is_zero_and_one_too_large_is_refused():
    assert dyadic(0.0) == dyadic(2.0**-33) == (0, 31)
    assert dyadic(2.0**-32) == (1 << 30, 62)
    for factor in (-0.1, 2.0**29, float("inf"), float("nan")):
        with pytest.raises(UnsupportedError, match="factor"):
            dyadic(factor)


def test_several_factors_are_data():
    m, e = dyadics([0.5, 0.75])
    assert m.dtype == e.dtype == np.int32 and m.tolist() == [1 << 30, 3 << 29] and e.tolist() == [31, 31]


def test_the_numerator_of_hawq_is_rounded_to_float32():
    scales = np.array([0.1, 0.3]) * 0.7
    assert (quotient(scales, 0.11) == scales / 0.11).all()
    wanted = scales.astype(np.float32).astype(np.float64) / float(np.float32(0.11))
    assert (quotient(scales, 0.11, hawq=True) == wanted).all()
