"""Every code of every small number format, against ml_dtypes and against arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qdeploy.errors import UnsupportedError
from qdeploy.ir.datatype import DATATYPES, PLAIN_TABLE, datatype
from qdeploy.store.storage import STORAGE_TYPES, storage_dtype

MINIFLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}


def spelled(code: int, exponent: int, mantissa: int, bias: int) -> float:
    """A finite minifloat from its fields (arXiv 2310.10537, section 3)."""
    sign = -1.0 if code >> (exponent + mantissa) else 1.0
    e, m = code >> mantissa & ((1 << exponent) - 1), code & ((1 << mantissa) - 1)
    scale = 2.0 ** (max(e, 1) - bias)
    return sign * scale * ((e > 0) + m / (1 << mantissa))


@pytest.mark.parametrize("name", MINIFLOATS)
def test_minifloats_are_those_of_ml_dtypes(name: str) -> None:
    kind = datatype(name)
    codes = np.arange(1 << kind.bits, dtype=np.uint8)
    want = codes.view(MINIFLOATS[name]).astype(np.float32)
    np.testing.assert_array_equal(kind.values(), want)
    np.testing.assert_array_equal(kind.decode(codes), want)


FIELDS = [("e4m3", 4, 3, 7), ("e5m2", 5, 2, 15), ("e2m1", 2, 1, 1), ("e2m3", 2, 3, 1), ("e3m2", 3, 2, 3)]


@pytest.mark.parametrize(("name", "exponent", "mantissa", "bias"), FIELDS)
def test_minifloats_are_what_their_fields_spell(name: str, exponent: int, mantissa: int, bias: int) -> None:
    values = datatype(name).values()
    finite = np.flatnonzero(np.isfinite(values))
    assert len(finite) >= len(values) - 8
    want = [spelled(int(code), exponent, mantissa, bias) for code in finite]
    np.testing.assert_array_equal(values[finite], np.array(want, np.float32))


def test_e8m0_is_a_power_of_two() -> None:
    values = datatype("e8m0").values()
    np.testing.assert_array_equal(values[:255], np.ldexp(np.float32(1), np.arange(255) - 127))
    assert np.isnan(values[255])


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_are_unsigned_or_twos_complement(bits: int) -> None:
    codes = range(1 << bits)
    assert datatype(f"uint{bits}").values().tolist() == list(codes)
    assert datatype(f"int{bits}").values().tolist() == [c - (1 << bits) * (c >= 1 << (bits - 1)) for c in codes]


def test_signs_and_trits() -> None:
    assert datatype("sign").values().tolist() == [-1, 1]
    assert datatype("ternary").values().tolist()[:3] == [-1, 0, 1]


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_half_is_widened_exactly(name: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    want = codes.view(storage_dtype(datatype(name).storage)).astype(np.float32)
    np.testing.assert_array_equal(datatype(name).decode(codes), want)


@pytest.mark.parametrize("name", ["int16", "uint16", "int32", "uint32", "int64", "f32", "f64"])
def test_wide_formats_are_a_view_of_their_bits(name: str) -> None:
    native = storage_dtype(datatype(name).storage)
    numbers = np.array([0, 1, 2, 100, 12345], native)
    np.testing.assert_array_equal(
        datatype(name).decode(numbers.view(f"<u{native.itemsize}")), numbers.astype(np.float32)
    )


def test_every_storage_type_has_a_plain_number_format() -> None:
    assert set(PLAIN_TABLE) | {"U64"} == set(STORAGE_TYPES)
    assert set(PLAIN_TABLE.values()) <= DATATYPES.keys()


def test_value_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        datatype("int4").values()[0] = 1


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="int9"):
        datatype("int9")
