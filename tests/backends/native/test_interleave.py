"""Codes to bytes and back: every unit is a bijection, and lies as the format's pictures say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.backends.native import interleave as i
from qdeploy.backends.native.checksum import crc32c, page_checksums

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))


def codes(size, bits):
    blocks, units, seed = size
    return np.random.default_rng(seed).integers(0, 1 << bits, (16 * blocks, 32 * units)).astype(np.uint8)


@pytest.mark.parametrize(
    ("bits", "pack", "unpack"),
    [
        (4, i.nibbles, i.from_nibbles),
        (2, i.pairs, i.from_pairs),
        (8, i.whole_bytes, i.from_whole_bytes),
        (3, i.triples, i.from_triples),
    ],
)
@settings(deadline=None, max_examples=10)
@given(size=SIZES)
def test_packed_codes_come_back(bits, pack, unpack, size):
    given_codes = codes(size, bits)
    packed = pack(given_codes)
    assert packed.dtype == np.uint8
    assert packed.size * 8 == given_codes.size * bits
    assert np.array_equal(unpack(packed), given_codes)


@settings(deadline=None, max_examples=20)
@given(size=SIZES, count=st.integers(1, 8))
def test_planes_come_back_and_leading_planes_are_leading_bits(size, count):
    given_codes = codes(size, count)
    packed = i.planes(given_codes, count)
    assert np.array_equal(i.from_planes(packed, count), given_codes)
    kept = (count + 1) // 2
    assert np.array_equal(i.from_planes(packed[:kept], count), given_codes >> (count - kept) << (count - kept))


@settings(deadline=None, max_examples=10)
@given(size=SIZES, books=st.integers(1, 3))
def test_params_and_vector_codes_come_back(size, books):
    given_codes = codes(size, 8)
    assert np.array_equal(i.from_columns(i.by_columns(given_codes)), given_codes)
    several = np.stack([given_codes + k for k in range(books)])
    assert np.array_equal(i.from_entries(i.entries(several)), several)


def place(pack, row, column, value, columns=64):
    result = np.zeros((32, columns), np.uint8)
    result[row, column] = value
    flat = pack(result).reshape(2, -1)
    (where,) = np.nonzero(flat[row // 16])
    assert len(where) == 1
    return int(where[0]), int(flat[row // 16, where[0]])


def test_units_lie_as_the_format_says():
    row, r = 21, 5
    assert place(i.nibbles, row, 8 + 2, 9) == (64 + 4 * r + 2, 9)
    assert place(i.nibbles, row, 8 + 4 + 3, 9) == (64 + 4 * r + 3, 9 << 4)
    assert place(i.pairs, row, 16 + 4 * 2 + 1, 3) == (64 + 4 * r + 1, 3 << 4)
    assert place(i.whole_bytes, row, 4 + 3, 77) == (64 + 4 * r + 3, 77)
    assert place(lambda c: i.planes(c, 1)[0], row, 32 + 4 * 2 + 3, 1) == (64 + 16 * 2 + r, 1 << 3)
    assert place(lambda c: i.planes(c, 1)[0], row, 32 + 16 + 4 * 2 + 3, 1) == (64 + 16 * 2 + r, 1 << 7)
    assert place(i.triples, row, 32 + 16 + 5, 2) == (192 + 64 + 4 * r + 1, 2 << 2)
    assert place(i.triples, row, 32 + 16 + 5, 4) == (192 + 128 + 4 * r + 1, 1 << 5)
    assert place(i.by_columns, row, 7, 5) == (7 * 16 + r, 5)


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"") == 0


def test_pages_are_summed_one_by_one():
    data = np.random.default_rng(0).integers(0, 256, 2 * 65536 + 100).astype(np.uint8)
    want = [slow_crc32c(data[at : at + 65536].tobytes()) for at in (0, 65536, 131072)]
    assert page_checksums(data).tolist() == want
    assert crc32c(data[:70000]) == slow_crc32c(data[:70000].tobytes())
