"""Integer rows against first principles: Python's unbounded integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.integer_arithmetic import ROUNDINGS, dyadic_product, integer_sqrt
from qdeploy.ir.ops.table import op

SETTINGS = settings(deadline=None, max_examples=60)
RNG = np.random.default_rng(4)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
FACTORS = st.one_of(st.integers(1 << 30, (1 << 31) - 1), st.just(1 << 30), st.just(0))


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def exact_rounding(x: int, m: int, e: int, rounding: str) -> int:
    quotient = Fraction(x * m, 1 << e)
    if rounding == "half_up":
        return math.floor(quotient + Fraction(1, 2))
    if rounding == "half_even":
        return round(quotient)
    size = math.floor(abs(quotient) + Fraction(1, 2))
    return size if quotient >= 0 else -size


def tflite(x: int, m: int, e: int) -> int:
    """MultiplyByQuantizedMultiplier with two roundings, as gemmlowp defines its parts."""
    x <<= max(31 - e, 0)
    nudged = x * m + ((1 << 30) if x * m >= 0 else 1 - (1 << 30))
    high = abs(nudged) // (1 << 31) * (1 if nudged >= 0 else -1)
    return exact_rounding(high, 1, max(e - 31, 0), "half_away")


@SETTINGS
@given(x=INT32, m=FACTORS, e=st.integers(1, 62), rounding=st.sampled_from(ROUNDINGS[:3]))
def test_a_rounding_is_that_of_fractions(x: int, m: int, e: int, rounding: str):
    result = dyadic_product(np.array([x], np.int64), np.array([m], np.int64), np.array([e], np.int64), rounding)
    assert int(result[0]) == exact_rounding(x, m, e, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS[:3])
def test_ties_go_where_the_rounding_says(rounding: str):
    x = np.arange(-9, 10, dtype=np.int64)
    result = dyadic_product(x, np.array(1 << 30), np.array(31), rounding)  # x / 2
    assert result.tolist() == [exact_rounding(int(n), 1, 1, rounding) for n in x]


@SETTINGS
@given(x=st.integers(-(1 << 20), 1 << 20), m=st.integers(1 << 30, (1 << 31) - 1), e=st.integers(22, 62))
def test_two_roundings_are_those_of_tflite(x: int, m: int, e: int):
    result = op("Requantize").numpy(
        i32(x), i32(m), i32(e), lo=-(1 << 31), hi=(1 << 31) - 1, dtype="I32", rounding="tflite_double"
    )
    assert int(result[0]) == tflite(x, m, e)


@SETTINGS
@given(x=arrays.arrays(np.int32, (2, 3, 2)), zero=st.integers(-128, 127), x_zero=st.integers(-300, 300), data=st.data())
def test_requantize_is_limited_per_channel(x: np.ndarray, zero: int, x_zero: int, data: st.DataObject):
    m = [data.draw(FACTORS) for _ in range(3)]
    e = [data.draw(st.integers(1, 62)) for _ in range(3)]
    result = op("Requantize").numpy(x, i32(*m), i32(*e), lo=-7, hi=100, dtype="I8", zero=zero, x_zero=x_zero)
    assert result.dtype == np.int8
    for place in np.ndindex(x.shape):
        value = exact_rounding(int(x[place]) - x_zero, m[place[1]], e[place[1]], "half_up") + zero
        assert int(result[place]) == min(max(value, -7), 100)


def test_requantize_follows_its_axis_and_raises_first():
    x = i32(1, 2, 3)[None].repeat(2, 0)
    result = op("Requantize").numpy(
        x, i32(1 << 30, 1 << 30), i32(30, 31), lo=-100, hi=100, dtype="I16", axis=0, left_shift=3
    )
    assert result.tolist() == [[8, 16, 24], [4, 8, 12]]


@pytest.mark.parametrize("m, e", [(1, 31), ((1 << 30) - 1, 31), (-(1 << 30), 31), (1 << 30, 0), (1 << 30, 63)])
def test_a_factor_that_is_not_dyadic_is_refused(m: int, e: int):
    with pytest.raises(BadFileError):
        op("Requantize").numpy(i32(5), i32(m), i32(e), lo=0, hi=1, dtype="I32")


def test_what_cannot_be_computed_is_refused():
    row, one = op("Requantize").numpy, (i32(1 << 30), i32(31))
    with pytest.raises(UnsupportedError):
        row(i32(5), *one, lo=0, hi=1, dtype="I8", rounding="up")
    with pytest.raises(BadFileError, match="limits"):
        row(i32(5), *one, lo=0, hi=200, dtype="I8")
    with pytest.raises(BadFileError, match="overflow"):
        row(i32(1 << 30), *one, lo=0, hi=100, dtype="I8", left_shift=20)
    with pytest.raises(BadFileError, match="integers only"):
        op("IntegerAdd").numpy(np.ones(2, np.float32), i32(1, 2))
    with pytest.raises(BadFileError, match="8 bits"):
        op("Lookup").numpy(i32(1), np.zeros(256, np.int8))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16])
@pytest.mark.parametrize(
    "group, strides, pads, dilations", [(1, [1, 1], [1, 1, 1, 1], [1, 1]), (2, [2, 1], [0, 2, 1, 0], [1, 2])]
)
def test_integer_conv_is_the_sum_of_products(kind, group, strides, pads, dilations):
    limits = np.iinfo(kind)
    x = RNG.integers(limits.min, limits.max, (2, 4, 6, 7), kind, endpoint=True)
    weight, bias = RNG.integers(-128, 128, (4, 4 // group, 2, 3)).astype(np.int8), RNG.integers(-9999, 9999, 4)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "x_zero": 3}
    result = op("IntegerConv").numpy(x, weight, bias.astype(np.int32), **attrs)
    padded = np.pad(x.astype(object) - 3, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    width = 4 // group
    for n, m, i, j in np.ndindex(result.shape):
        total = int(bias[m])
        for c, u, v in np.ndindex(width, 2, 3):
            row, column = i * strides[0] + u * dilations[0], j * strides[1] + v * dilations[1]
            total += int(padded[n, m // (4 // group) * width + c, row, column]) * int(weight[m, c, u, v])
        assert int(result[n, m, i, j]) == total
    turned = op("IntegerConv").numpy(
        x.transpose(0, 2, 3, 1), weight.transpose(0, 2, 3, 1), bias.astype(np.int32), layout="NHWC", **attrs
    )
    assert result.dtype == np.int32 and (turned == result.transpose(0, 2, 3, 1)).all()


@SETTINGS
@given(data=st.data(), k=st.integers(1, 40))
def test_products_of_matrices_are_exact(data: st.DataObject, k: int):
    x = data.draw(arrays.arrays(np.int16, (3, k)))
    weight = data.draw(arrays.arrays(np.int8, (2, k)))
    wanted = (x.astype(object) - 7) @ weight.astype(object).T
    assert (op("IntegerLinear").numpy(x, weight, i32(5, -6), x_zero=7) == wanted + i32(5, -6)).all()
    assert (op("IntegerMatMul").numpy(x, weight, a_zero=7, transpose_b=1) == wanted).all()
    assert (op("IntegerMatMul").numpy(x, weight.T.copy(), a_zero=7) == wanted).all()


def test_an_accumulator_that_overflows_is_refused():
    x, weight = np.full((1, 1 << 10), 32767, np.int16), np.full((1, 1 << 10), 127, np.int8)
    with pytest.raises(BadFileError, match="does not fit its type"):
        op("IntegerLinear").numpy(x, weight)
    with pytest.raises(BadFileError, match="does not fit its type"):
        op("IntegerAdd").numpy(i32((1 << 31) - 1), i32(1))
    with pytest.raises(BadFileError, match="does not fit its type"):
        op("IntegerMul").numpy(i32(1 << 16), i32(1 << 15))
    with pytest.raises(BadFileError, match="does not fit its type"):
        op("IntegerSum").numpy(i32(1 << 30, 1 << 30), axes=[0])


@pytest.mark.parametrize("rounding", ["floor", "half_away"])
def test_means_are_rounded_as_said(rounding: str):
    x = RNG.integers(-128, 128, (2, 3, 5, 5)).astype(np.int8)
    mean = op("IntegerMean").numpy(x, axes=[2, 3], rounding=rounding)
    pooled = op("IntegerAveragePool").numpy(
        x, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0], rounding=rounding, lo=-20, hi=20
    )

    def wanted(part: np.ndarray) -> int:
        quotient = Fraction(int(part.astype(int).sum()), part.size)
        if rounding == "floor":
            return math.floor(quotient)
        return int(math.copysign(math.floor(abs(quotient) + Fraction(1, 2)), quotient))

    assert mean.dtype == pooled.dtype == np.int8
    for n, c in np.ndindex(2, 3):
        assert mean[n, c, 0, 0] == wanted(x[n, c])
        for i, j in np.ndindex(3, 3):
            inside = x[n, c, max(0, 2 * i - 1) : 2 * i + 1, max(0, 2 * j - 1) : 2 * j + 1]
            assert pooled[n, c, i, j] == min(max(wanted(inside), -20), 20)


@SETTINGS
@given(st.integers(0, (1 << 63) - 1), st.integers(1, 1 << 31))
def test_the_integer_square_root_is_exact(x: int, root: int):
    values = [x, root * root, root * root - 1, min(root * root + 1, 1 << 62)]
    assert integer_sqrt(np.array(values, np.int64)).tolist() == [math.isqrt(n) for n in values]


def test_a_table_is_addressed_from_the_least_code():
    table = RNG.integers(-128, 128, 256).astype(np.int8)
    codes = np.arange(-128, 128).astype(np.int8)
    assert (op("Lookup").numpy(codes, table) == table).all()
    assert (op("Lookup").numpy((codes.astype(int) + 128).astype(np.uint8), table) == table).all()


def exp_constants(scale: float, room: int = 30) -> dict[str, int]:
    c = math.floor(2.79211 / scale**2)
    return {
        "ln2": math.floor(math.log(2) / scale),
        "b": math.floor(2.70732 / scale),
        "c": c,
        "left": max(0, room - c.bit_length()),
    }


@pytest.mark.parametrize("scale", [0.05, 0.01, 1e-3])
def test_exp_and_softmax_are_close_to_the_real_ones(scale: float):
    constants = exp_constants(scale)
    x = -np.arange(0, int(12 / scale), 7, dtype=np.int32)
    unit = 0.35815147 * scale**2 / 2.0 ** constants["left"]
    error = np.abs(op("IntegerExp").numpy(x, **constants) * unit - np.exp(x * scale)).max()
    assert error < 0.003 + 1.5 * scale
    scores = RNG.normal(0, 2, (4, 9)) / scale
    codes = np.rint(scores).astype(np.int32)
    mask = np.ones((4, 9), np.int64)
    mask[:, 6:] = 0
    wanted = np.exp(codes[:, :6] * scale)
    wanted /= wanted.sum(axis=1, keepdims=True)
    result = op("IntegerSoftmax").numpy(codes, mask, **constants)
    assert result.dtype == np.uint8 and not result[:, 6:].any()
    assert np.abs(result[:, :6] / 256 - wanted).max() < 0.006 + scale
    assert not op("IntegerSoftmax").numpy(codes, mask * 0, **constants).any()


def test_softmax_is_what_its_formula_says():
    constants = exp_constants(0.02)
    codes = RNG.integers(-400, 400, (3, 5)).astype(np.int32)
    results = op("IntegerSoftmax").numpy(codes, **constants, bits=12, hi=4095, dtype="I16")
    for row, result in zip(codes.tolist(), results.tolist(), strict=True):
        exponentials = []
        for x in row:
            down = min(max(row) - x, 31 * constants["ln2"])
            q, r = divmod(down, constants["ln2"])
            polynomial = -r * (-r + constants["b"]) + constants["c"]
            exponentials.append((polynomial << constants["left"]) >> q)
        factor = (1 << 62) // sum(exponentials)
        assert result == [min((n * factor + (1 << 49)) >> 50, 4095) for n in exponentials]


@pytest.mark.parametrize("bits, top", [(8, 6.0), (16, 6.0), (16, 20.0), (8, 3.0)])
def test_gelu_with_a_derived_shift_is_close_at_every_width(bits: int, top: float):
    limit = (1 << (bits - 1)) - 1
    scale = top / limit
    b, c = math.floor(1.769 * math.sqrt(2) / scale), math.floor(2 / (0.2888 * scale**2))
    shift = max(0, (2 * c * limit).bit_length() - 31)
    x = np.arange(-limit, limit + 1).astype(np.int16)
    result = op("IntegerGelu").numpy(x, b=b, c=c, shift=shift) * (0.2888 * scale**3 * 2.0**shift / 4)
    real = x * scale
    wanted = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in real])
    assert np.abs(result - wanted).max() < 0.025


def test_norms_are_close_and_their_quotient_is_exact():
    n, scale = 48, 0.01
    x = np.rint(RNG.normal(0.7, 1.5, (6, n)) / scale).astype(np.int16)
    real = x * scale
    unit = math.sqrt(n) / 2**30
    layer = op("IntegerLayerNorm").numpy(x) * unit
    wanted = (real - real.mean(axis=1, keepdims=True)) / real.std(axis=1, keepdims=True)
    assert np.abs(layer - wanted).max() < 0.01
    rms = op("IntegerRMSNorm").numpy(x) * unit
    assert np.abs(rms - real / np.sqrt((real**2).mean(axis=1, keepdims=True))).max() < 0.01
    row = x[0].astype(object)
    y = row - (2 * sum(row) + n) // (2 * n)
    root = math.isqrt(sum(v * v for v in y) + 5)
    quotient = [(v * ((1 << 46) // root)) >> 16 for v in y]
    weight, bias = RNG.integers(-999, 999, n).astype(np.int32), RNG.integers(-999, 999, n).astype(np.int32)
    result = op("IntegerLayerNorm").numpy(x[:1], weight, bias, epsilon=5, shift=12)
    assert result[0].tolist() == [((q * int(w)) >> 12) + int(b) for q, w, b in zip(quotient, weight, bias, strict=True)]


def test_a_norm_of_zeros_is_its_bias():
    zeros = np.zeros((2, 8), np.int16)
    assert (op("IntegerLayerNorm").numpy(zeros, np.ones(8, np.int32), np.arange(8, dtype=np.int32)) == range(8)).all()


@pytest.mark.parametrize(
    "row, attrs",
    [
        ("IntegerExp", {"ln2": 0, "b": 1, "c": 1}),
        ("IntegerExp", {"ln2": 1, "b": 3, "c": 3, "left": 31}),
        ("IntegerSoftmax", {"ln2": 1, "b": 3, "c": 3, "bits": 31}),
        ("IntegerGelu", {"b": 9, "c": 3}),
        ("IntegerGelu", {"b": 1, "c": 1 << 61}),
        ("IntegerLayerNorm", {"shift": -1}),
    ],
)
def test_constants_that_do_not_fit_are_refused(row: str, attrs: dict[str, int]):
    with pytest.raises(BadFileError):
        op(row).numpy(i32(-5, -3000, -(1 << 30)), **attrs)
