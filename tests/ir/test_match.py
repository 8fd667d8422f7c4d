"""Each pattern answers for what it names, and for nothing that has more than it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qdeploy.ir import match
from qdeploy.ir.datatype import PLAIN_TABLE
from qdeploy.ir.decode import decode_codes, decode_lowrank, decode_param, read_codes
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Table, Term, plain
from qdeploy.pack import bits, radix

Array = npt.NDArray[Any]
N, K = 12, 64
PATTERNS = (
    match.affine_grouped,
    match.table_grouped,
    match.ternary,
    match.minifloat_block,
    match.sign_lowrank,
    match.vector,
    match.plain_float,
)


def floats(key: str, *shape: int, seed: int = 0) -> Codes:
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    return Codes(shape, (Buffer.of(key, numbers, "F16"),), PLAIN, "f16")


def integer(value: int) -> Codes:
    return Codes((1, 1), (Buffer.of("zero", np.array([[value]], np.uint8), "U8"),), PLAIN, "uint8")


def packed(key: str, width: int, table: str | Table, *shape: int, **params: Any) -> Codes:
    shape = shape or (N, K)
    codes = np.random.default_rng(1).integers(0, 1 << width, shape).astype(np.uint8)
    return Codes(shape, (Buffer.of(key, bits.pack(codes, width), "U8"),), Layout("bits", width), table, **params)


def tensor(*values: Codes | LowRank, **rest: Any) -> QTensor:
    return QTensor((N, K), "F16", tuple(Term(v) for v in values), **rest)


def book(*shape: int, select: Param | None = None) -> Table:
    numbers = np.random.default_rng(2).normal(size=shape).astype(np.float16)
    return Table(Buffer.of("book", numbers, "F16"), select)


def grouped(*, signed: bool = False, **params: Any) -> QTensor:
    scale = Param(floats("scale", N, 4), (1, 16))
    return tensor(packed("q", 4, "int4" if signed else "uint4", scale=scale, **params))


def only(tensor: QTensor, *expected: Any) -> None:
    """No other pattern than these answers."""
    assert {p for p in PATTERNS if p(tensor) is not None} == set(expected)


@pytest.mark.parametrize("signed", [False, True])
def test_integers_with_a_scale_per_group_are_affine(signed: bool) -> None:
    zero = Param(packed("zero", 4, "uint4", N, 4), (1, 16))
    subject = grouped(signed=signed, zero=zero)
    found = match.affine_grouped(subject)
    assert found is not None
    assert (found.bits, found.signed, found.group, found.zero, found.offset, found.index) == (
        4,
        signed,
        16,
        zero,
        None,
        None,
    )
    only(subject, match.affine_grouped)
    codes = read_codes(found.codes, 0, N).astype(np.float32)
    values = codes - 16 * (codes > 7) if signed else codes
    scale = decode_param(found.scale, None, (N, K)) if found.scale else None
    np.testing.assert_array_equal((values - decode_param(zero, None, (N, K))) * scale, subject.decode())


def test_one_zero_for_all_is_a_number() -> None:
    found = match.affine_grouped(grouped(zero=Param(integer(8), (N, K))))
    assert found is not None
    assert found.zero == 8


@pytest.mark.parametrize(
    ("scale", "group"),
    [
        (None, K),
        (Param(floats("scale", N, 1), (1, K)), K),
        (Param(floats("scale", 1, 1), (N, K)), K),
        (Param(floats("scale", N, 3), (1, 24)), 24),
    ],
)
def test_the_group_is_what_shares_a_scale_along_the_last_axis(scale: Param | None, group: int) -> None:
    found = match.affine_grouped(tensor(packed("q", 8, "uint8", scale=scale)))
    assert found is not None
    assert found.group == group


def test_act_order_is_affine_with_its_index() -> None:
    index = Buffer.of("index", np.random.default_rng(0).integers(0, 4, K).astype(np.int32), "I32")
    codes = packed(
        "q",
        4,
        "uint4",
        scale=Param(floats("scale", N, 4), (1, 1), index),
        zero=Param(packed("zero", 4, "uint4", N, 4), (1, 1), index),
    )
    found = match.affine_grouped(tensor(codes))
    assert found is not None
    assert (found.group, found.index) == (16, index)


def test_params_that_disagree_on_the_group_are_not_affine() -> None:
    assert match.affine_grouped(grouped(zero=Param(packed("zero", 4, "uint4", N, 2), (1, 32)))) is None


def test_a_scale_per_block_of_rows_is_not_affine() -> None:
    assert match.affine_grouped(tensor(packed("q", 8, "int8", scale=Param(floats("scale", 3, 4), (4, 16))))) is None


@pytest.mark.parametrize("extra", ["scale", "offset"])
def test_what_comes_after_the_sum_is_never_lost(extra: str) -> None:
    subject = replace(grouped(), **{extra: Param(floats("extra", N, 1), (1, K))})
    only(subject)


def test_a_mask_or_a_second_term_is_never_lost() -> None:
    codes = packed("q", 4, "uint4")
    only(QTensor((N, K), "F16", (Term(codes, packed("mask", 1, "uint1")),)))
    only(tensor(codes, LowRank(floats("u", N, 2), floats("vt", 2, K))))


def test_a_codebook_with_a_scale_is_a_table() -> None:
    select = Param(packed("select", 1, "uint1", N, 4), (1, 16))
    subject = tensor(packed("q", 3, book(2, 8, select=select), scale=Param(floats("scale", N, 4), (1, 16))))
    found = match.table_grouped(subject)
    assert found is not None
    assert (found.bits, found.table.shape, found.select, found.group) == (3, (2, 8), select, 16)
    only(subject, match.table_grouped)
    chosen = np.repeat(read_codes(packed("select", 1, "uint1", N, 4), 0, N), 16, 1)
    want = found.table[chosen, read_codes(found.codes, 0, N)]
    np.testing.assert_array_equal(want * np.repeat(decode_codes(floats("scale", N, 4)), 16, 1), subject.decode())


def test_e2m1_is_a_minifloat_and_a_table() -> None:
    subject = tensor(packed("q", 4, "e2m1", scale=Param(floats("scale", N, 4), (1, 16))))
    only(subject, match.minifloat_block, match.table_grouped)
    table = match.table_grouped(subject)
    assert table is not None
    np.testing.assert_array_equal(table.table[0, :8], [0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_fp8_blocks_may_span_rows() -> None:
    codes = Codes(
        (N, K),
        (Buffer.of("q", np.zeros((N, K), np.uint8), "F8_E4M3"),),
        PLAIN,
        "e4m3",
        scale=Param(floats("scale", 2, 1), (8, 128)),
    )
    found = match.minifloat_block(tensor(codes))
    assert found is not None
    assert (found.kind, found.tile) == ("e4m3", (8, K))
    only(tensor(codes), match.minifloat_block)


def test_trits_are_ternary_in_either_spelling() -> None:
    data = Buffer.of("q", radix.pack(np.random.default_rng(0).integers(0, 3, (N, K)), 3, 5), "U8")
    scale = Param(floats("scale", 1, 1), (N, K), divide=True)
    named = Codes((N, K), (data,), Layout("radix", base=3, digits=5), "ternary", scale=scale)
    only(tensor(named), match.ternary)
    zeroed = replace(named, table="uint2", zero=Param(integer(1), (N, K)))
    only(tensor(zeroed), match.ternary, match.affine_grouped)
    found = match.ternary(tensor(zeroed))
    assert found is not None
    assert found.scale is not None
    assert found.scale.divide
    np.testing.assert_array_equal(tensor(named).decode(), tensor(zeroed).decode())


def test_signs_times_low_rank_products_are_listed() -> None:
    scales = [LowRank(floats(f"u{i}", N, 2), floats(f"vt{i}", 2, K)) for i in range(3)]
    subject = tensor(*(packed(f"s{i}", 1, "sign", scale=Param(s, (1, 1))) for i, s in enumerate(scales)))
    only(subject, match.sign_lowrank)
    found = match.sign_lowrank(subject)
    assert found is not None
    want = np.zeros((N, K), np.float32)
    for signs, u, vt in found.terms:
        want = want + decode_codes(replace(signs, scale=None)) * decode_lowrank(LowRank(u, vt))
    np.testing.assert_array_equal(want, subject.decode())


def test_summed_codebooks_are_vectors() -> None:
    books = [Table(Buffer.of(f"book{i}", np.ones((1, 256, 1, 8), np.float16), "F16")) for i in range(2)]
    grids = [packed(f"q{i}", 8, table, N, K // 8) for i, table in enumerate(books)]
    scale = Param(floats("scale", N, 1), (1, K))
    subject = tensor(*grids, scale=scale)
    found = match.vector(subject)
    assert found is not None
    assert (found.block, found.scale) == ((1, 8), scale)
    assert (len(found.codes), found.codebooks[0].shape) == (2, (256, 1, 8))
    only(subject, match.vector)


@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_unquantized_tensors_are_plain_floats(dtype: str) -> None:
    numbers = np.zeros((N, K), np.float32) if dtype == "F32" else np.zeros((N, K), np.uint16)
    codes = Buffer("w", dtype, (N, K), Buffer.of("w", numbers, "F32" if dtype == "F32" else "U16").rows)
    subject = plain(codes, PLAIN_TABLE[dtype])
    only(subject, match.plain_float)
    found = match.plain_float(subject)
    assert found is not None
    assert found.dtype == dtype


def test_integers_are_no_floats() -> None:
    only(plain(Buffer.of("w", np.zeros((N, K), np.int32), "I32"), "int32"))
