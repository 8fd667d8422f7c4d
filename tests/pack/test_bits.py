"""Bit streams against whole-number arithmetic: code j is (stream >> j * width) % 2 ** width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qdeploy.errors import BadArgumentError
from qdeploy.pack import bits

WIDTHS = st.integers(1, 16)
RUNS = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=21)


def codes_of(width: int) -> st.SearchStrategy[np.ndarray]:
    dtype = np.uint8 if width <= 8 else np.uint16
    return hnp.arrays(dtype, RUNS, elements=st.integers(0, (1 << width) - 1))


@settings(deadline=None, max_examples=150)
@given(WIDTHS.flatmap(lambda width: st.tuples(st.just(width), codes_of(width))))
def test_a_stream_is_the_number_it_spells(case: tuple[int, np.ndarray]) -> None:
    width, codes = case
    count = codes.shape[-1]
    packed = bits.pack(codes, width)
    assert packed.shape == (*codes.shape[:-1], bits.row_bytes(count, width))
    assert packed.dtype == np.uint8
    runs = int(np.prod(codes.shape[:-1]))
    for run, octets in zip(codes.reshape(runs, count), packed.reshape(runs, packed.shape[-1]), strict=True):
        number = sum(int(code) << j * width for j, code in enumerate(run))
        assert octets.tobytes() == number.to_bytes(len(octets), "little")
    back = bits.unpack(packed, count, width)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 15), st.integers(0, 40), st.binary(min_size=80, max_size=80))
def test_every_canonical_stream_comes_back(width: int, count: int, noise: bytes) -> None:
    size = bits.row_bytes(count, width)
    number = int.from_bytes(noise, "little") & ((1 << count * width) - 1)  # the bits that pad the run are zero
    stream = np.frombuffer(number.to_bytes(80, "little"), np.uint8)[:size]
    np.testing.assert_array_equal(bits.pack(bits.unpack(stream, count, width), width), stream)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8).flatmap(lambda w: st.tuples(st.just(w), st.integers(w, 8), codes_of(w))))
def test_a_wider_field_holds_the_same_codes(case: tuple[int, int, np.ndarray]) -> None:
    width, wider, codes = case
    packed = bits.pack(codes, width)
    np.testing.assert_array_equal(bits.repack(packed, codes.shape[-1], width, wider), bits.pack(codes, wider))


@pytest.mark.parametrize("width", range(1, 17))
def test_long_streams_are_moved_in_pieces(width: int) -> None:
    count = 8 * bits._STEP + 8 * 3 + 5
    dtype = np.uint8 if width <= 8 else np.uint16
    codes = np.random.default_rng(width).integers(0, 1 << width, (1, count)).astype(dtype)
    packed = bits.pack(codes, width)
    np.testing.assert_array_equal(bits.unpack(packed, count, width), codes)
    tail = sum(int(c) << j * width for j, c in enumerate(codes[0, -5:]))
    assert int.from_bytes(packed[0, (count - 5) * width // 8 :].tobytes(), "little") == tail


@pytest.mark.parametrize("width", range(1, 17))
def test_packing_leaves_its_input_alone(width: int) -> None:
    codes = np.full((1, 8), (1 << width) - 1, np.uint8 if width <= 8 else np.uint16)
    packed = bits.pack(codes, width)
    assert (codes == (1 << width) - 1).all()
    before = packed.copy()
    bits.unpack(packed, 8, width)
    np.testing.assert_array_equal(packed, before)


def test_equal_width_is_not_copied() -> None:
    packed = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert bits.repack(packed, 8, 4, 4) is packed


@pytest.mark.parametrize(("count", "width"), [(9, 4), (6, 4), (8, 0), (8, 17), (8, 3)])
def test_a_run_of_another_length_is_refused(count: int, width: int) -> None:
    with pytest.raises(BadArgumentError):
        bits.unpack(np.zeros((2, 4), np.uint8), count, width)


def test_codes_never_move_to_a_narrower_field() -> None:
    with pytest.raises(BadArgumentError):
        bits.repack(np.zeros((2, 4), np.uint8), 8, 4, 3)
