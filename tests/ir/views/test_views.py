"""Every tensor has exactly one view, which answers for what it names, and for nothing that has more than it says."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from view_tensors import K, N, book, floats, grouped, integer, packed, rebuilt, tensor

from qdeploy.ir.decode import decode_codes, decode_lowrank
from qdeploy.ir.dtype import plain_name, rows
from qdeploy.ir.rules import check
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Table, Term, plain
from qdeploy.ir.views import (
    Affine,
    Decoded,
    Floats,
    Integers,
    Lookup,
    Masked,
    Minifloat,
    SignLowRank,
    Sum,
    Vector,
    View,
    first_codes,
    view,
)
from qdeploy.ir.views.params import Grid, grouping
from qdeploy.pack import radix


def test_the_set_of_views_is_closed() -> None:
    views = (Floats, Integers, Affine, Minifloat, Lookup, Vector, SignLowRank, Sum, Masked, Decoded)
    assert set(get_args(View)) == set(views)
    assert all(kind.__doc__ and len(kind.__doc__) > 60 for kind in views)


def test_a_tensor_is_looked_at_once_and_forgotten_with_it() -> None:
    from qdeploy.ir.views import recognise

    subject = grouped()
    assert view(subject) is view(subject)
    assert view(replace(subject)) is not view(subject)
    known = id(subject)
    assert known in recognise._SEEN
    del subject
    gc.collect()
    assert known not in recognise._SEEN


def test_nothing_is_read_to_recognise_a_tensor() -> None:
    class Unreadable:
        def read(self, start: int, stop: int) -> Any:
            raise AssertionError("read")

    def blind(codes: Codes) -> Codes:
        data = tuple(replace(b, rows=Unreadable()) for b in codes.data)
        table = codes.table if isinstance(codes.table, str) else Table(replace(codes.table.values, rows=Unreadable()))
        return replace(codes, data=data, table=table)

    scale = Param(blind(floats("scale", N, 4)), (1, 16))
    for codes in (packed("q", 4, "uint4"), packed("q", 4, "e2m1"), packed("q", 4, book(1, 16))):
        view(tensor(replace(blind(codes), scale=scale)))
    view(tensor(blind(packed("q", 8, book(1, 256, 1, 8), N, K // 8))))


# Integers with parameters per group.


@pytest.mark.parametrize("signed", [False, True])
def test_integers_with_a_scale_per_group_are_affine(signed: bool) -> None:
    subject = grouped(signed=signed, zero=Param(packed("zero", 4, "uint4", N, 4), (1, 16)))
    seen = view(subject)
    assert isinstance(seen, Affine)
    assert seen.grouped is not None
    assert (seen.grouped.group, seen.grouped.groups, seen.grouped.index) == (16, 4, None)
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


def test_one_zero_for_all_is_a_number() -> None:
    seen = view(grouped(zero=Param(integer(8), (N, K))))
    assert isinstance(seen, Affine)
    assert seen.grouped is not None
    assert seen.grouped.zero == 8


@pytest.mark.parametrize(
    ("scale", "group"),
    [
        (None, K),
        (Param(floats("scale", N, 1), (1, K)), K),
        (Param(floats("scale", 1, 1), (N, K)), K),
        (Param(floats("scale", N, 3), (1, 24)), 24),
        (Param(floats("scale", 3, 4), (4, 16)), 16),
    ],
)
@pytest.mark.parametrize("table", ["uint8", "sign", "e4m3", "e2m1", "book"])
def test_the_group_is_what_shares_a_scale_along_the_last_axis(scale: Param | None, group: int, table: str) -> None:
    width = {"sign": 1, "e2m1": 4, "book": 4}.get(table, 8)
    subject = tensor(packed("q", width, book(1, 16) if table == "book" else table, scale=scale))
    seen = view(subject)
    if isinstance(seen, Minifloat | Lookup):
        assert seen.tabled is not None
        assert seen.tabled.grouping.group == group
    if isinstance(seen, Minifloat):
        assert seen.floats is not None
        assert seen.floats.grouping.group == group
    if table in ("uint8", "sign", "e2m1") and not isinstance(seen, Integers):
        assert seen.grouped is not None
        assert seen.grouped.group == group
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


TABLES = ["uint4", "int4", "uint8", "int3", "sign", "ternary", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "book", "books"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TABLES),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["", "folded", "act-order"]),
    st.booleans(),
    st.integers(0, 1 << 20),
)
def test_every_reading_is_the_reference_decode(table: str, rows_: int, how: str, divide: bool, seed: int) -> None:
    """Folded grids, scattered columns, several tables: whatever a view reads, it reads what decoding gives."""
    rng = np.random.default_rng(seed)
    fold = 4 if how == "folded" else 1
    grid, group = (rows_ * fold, K // fold), 8
    index = Buffer.of("index", rng.integers(0, 8, K).astype(np.int32), "I32") if how == "act-order" else None
    groups = 8 if index else grid[1] // group
    tile = (1, 1) if index else (1, group)
    scale = Param(floats("scale", grid[0], groups, seed=seed), tile, index, divide)
    select = Param(packed("select", 1, "uint1", grid[0], groups), tile, index) if table == "books" else None
    kind = book(2 if select else 1, 16, select=select) if table.startswith("book") else table
    width = 4 if isinstance(kind, Table) else {r.name: r.bits for r in rows()}[kind]
    codes = packed("q", width, kind, *grid, scale=scale, most=3 if kind == "ternary" else 0, seed=seed)
    subject = QTensor((rows_, K), "F16", (Term(codes),))
    check(subject, "subject")
    seen = view(subject)
    readings = list(rebuilt(seen, every=True))
    assert readings
    for numbers in readings:
        if divide:
            np.testing.assert_allclose(numbers, subject.decode(), rtol=3e-7)
        else:
            np.testing.assert_array_equal(numbers, subject.decode())


def test_columns_in_order_need_no_index() -> None:
    index = Buffer.of("index", (np.arange(K) // 16).astype(np.int32), "I32")
    scale = Param(floats("scale", N, 4), (1, 1), index)
    for codes in (packed("q", 4, "uint4", scale=scale), packed("q", 4, book(1, 16), scale=scale)):
        seen = view(tensor(codes))
        assert isinstance(seen, Affine | Lookup)
        result = seen.tabled.grouping if isinstance(seen, Lookup) and seen.tabled else seen.grouped
        assert result is not None
        assert (result.index, result.group) == (None, 16)


def test_parameters_with_two_indices_have_no_reading() -> None:
    one, two = (Buffer.of(key, np.zeros(K, np.int32), "I32") for key in ("one", "two"))
    codes = packed(
        "q", 4, "uint4", scale=Param(floats("s", N, 4), (1, 1), one), offset=Param(floats("o", N, 4), (1, 1), two)
    )
    seen = view(tensor(codes))
    assert isinstance(seen, Affine)
    assert seen.grouped is None


def test_parameters_with_different_groups_are_read_at_the_smaller() -> None:
    subject = grouped(zero=Param(packed("zero", 4, "uint4", N, 2), (1, 32)))
    seen = view(subject)
    assert isinstance(seen, Affine)
    assert seen.grouped is not None
    assert seen.grouped.group == 16
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


def test_a_grid_whose_rows_straddle_those_of_the_matrix_has_no_reading() -> None:
    assert Grid.under((4, 96), (6, 64)) is None
    assert Grid.under((4, 96, 1), (4, 96)) is None
    assert Grid.under((0, 96), (0, 96)) is None
    grid = Grid.under((4, 96), (12, 32))
    assert grid == Grid((4, 96), 32, 3)
    assert grouping([], grid) is not None


# What is not there.


@pytest.mark.parametrize("extra", ["scale", "offset"])
def test_what_comes_after_the_sum_is_never_lost(extra: str) -> None:
    assert isinstance(view(replace(grouped(), **{extra: Param(floats("extra", N, 1), (1, K))})), Decoded)


def test_a_mask_is_never_lost() -> None:
    codes, mask = packed("q", 4, "uint4"), packed("mask", 1, "uint1")
    assert isinstance(view(QTensor((N, K), "F16", (Term(codes, mask),))), Decoded)
    seen = view(QTensor((N, K), "F16", (*grouped().terms, Term(codes, mask, "set"))))
    assert isinstance(seen, Masked)
    assert isinstance(seen.under, Affine)
    np.testing.assert_array_equal(seen.base.decode(), grouped().decode())


def test_a_second_term_is_never_lost() -> None:
    first = packed("q", 4, "uint4")
    seen = view(tensor(first, LowRank(floats("u", N, 2), floats("vt", 2, K))))
    assert isinstance(seen, Sum)
    assert [type(part) for part in seen.parts] == [Integers, Decoded]
    assert not seen.is_residual
    put = QTensor((N, K), "F16", (Term(first), Term(packed("p", 4, "uint4"), mode="set")))
    assert isinstance(view(put), Decoded)


def test_signs_that_correct_one_another_are_a_residual_sum() -> None:
    scale = Param(floats("scale", N, 4), (1, 16))
    seen = view(tensor(*(packed(f"s{i}", 1, "sign", scale=scale) for i in range(3))))
    assert isinstance(seen, Sum)
    assert seen.is_residual
    assert all(isinstance(part, Lookup) and part.is_signs for part in seen.parts)


# Codebooks and floats.


def test_a_codebook_with_a_scale_is_a_lookup() -> None:
    select = Param(packed("select", 1, "uint1", N, 4), (1, 16))
    subject = tensor(packed("q", 3, book(2, 8, select=select), scale=Param(floats("scale", N, 4), (1, 16))))
    seen = view(subject)
    assert isinstance(seen, Lookup)
    assert seen.tabled is not None
    assert (seen.tabled.bits, seen.tabled.values.shape, seen.tabled.grouping.group) == (3, (2, 8), 16)
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


def test_a_codebook_of_integers_is_integers_with_a_unit() -> None:
    values = Table(Buffer.of("book", np.array([[-6, -1, 0, 1.5]], np.float16), "F16"))
    subject = tensor(packed("q", 2, values, scale=Param(floats("scale", N, 4), (1, 16))))
    seen = view(subject)
    assert isinstance(seen, Lookup)
    assert seen.grouped is not None
    assert (seen.grouped.code_top, seen.grouped.zero) == (15, 12)
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


def test_e2m1_is_a_minifloat_and_a_table_and_integers() -> None:
    seen = view(tensor(packed("q", 4, "e2m1", scale=Param(floats("scale", N, 4), (1, 16)))))
    assert isinstance(seen, Minifloat)
    assert seen.tabled is not None
    np.testing.assert_array_equal(seen.tabled.values[0, :8], [0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert seen.grouped is not None
    assert seen.grouped.code_top == 24


def test_fp8_blocks_may_span_rows() -> None:
    codes = Codes(
        (N, K),
        (Buffer.of("q", np.arange(N * K).reshape(N, K).astype(np.uint8), "F8_E4M3"),),
        PLAIN,
        "e4m3",
        scale=Param(floats("scale", 2, 1), (8, 128)),
    )
    seen = view(tensor(codes))
    assert isinstance(seen, Minifloat)
    assert (seen.dtype.name, seen.grouped) == ("e4m3", None)
    np.testing.assert_array_equal(rebuilt(seen), tensor(codes).decode())


def test_trits_are_ternary_in_either_spelling() -> None:
    data = Buffer.of("q", radix.pack(np.random.default_rng(0).integers(0, 3, (N, K)), 3, 5), "U8")
    scale = Param(floats("scale", 1, 1), (N, K), divide=True)
    named = Codes((N, K), (data,), Layout("radix", base=3, digits=5), "ternary", scale=scale)
    zeroed = replace(named, table="uint2", zero=Param(integer(1), (N, K)))
    for codes, kind in ((named, Lookup), (zeroed, Affine)):
        seen = view(tensor(codes))
        assert isinstance(seen, kind)
        assert seen.is_ternary
        assert seen.divides
    np.testing.assert_array_equal(tensor(named).decode(), tensor(zeroed).decode())
    assert not view(tensor(replace(zeroed, zero=Param(integer(2), (N, K))))).is_ternary
    assert not view(tensor(replace(named, offset=scale))).is_ternary


def test_signs_times_low_rank_products_are_listed() -> None:
    scales = [LowRank(floats(f"u{i}", N, 2), floats(f"vt{i}", 2, K)) for i in range(3)]
    subject = tensor(*(packed(f"s{i}", 1, "sign", scale=Param(s, (1, 1))) for i, s in enumerate(scales)))
    seen = view(subject)
    assert isinstance(seen, SignLowRank)
    want = np.zeros((N, K), np.float32)
    for signs, u, vt in seen.terms:
        want = want + decode_codes(replace(signs, scale=None)) * decode_lowrank(LowRank(u, vt))
    np.testing.assert_array_equal(want, subject.decode())
    assert first_codes(seen) == seen.terms[0][0]


@pytest.mark.parametrize("fold", [1, 2])
def test_summed_codebooks_are_vectors(fold: int) -> None:
    tables = [book(1, 256, 1, 8, seed=i) for i in range(2)]
    grids = [packed(f"q{i}", 8, table, N * fold, K // 8 // fold, seed=i) for i, table in enumerate(tables)]
    subject = tensor(*grids, scale=Param(floats("scale", N, 1), (1, K)))
    seen = view(subject)
    assert isinstance(seen, Vector)
    assert (seen.block, seen.levels, seen.grouped) == ((1, 8), (256, 256), None)
    total = np.zeros((N, K), np.float32)
    for place in range(2):
        values = seen.book(place)
        assert values is not None
        total = total + values.reshape(256, 8)[seen.codes(place)(0, N)].reshape(N, K)
    np.testing.assert_array_equal(total * decode_codes(floats("scale", N, 1)), subject.decode())


def test_vectors_with_parameters_of_their_own_are_a_lookup_without_scalars() -> None:
    whole = Table(Buffer.of("book", np.arange(-128, 128, dtype=np.int8).reshape(1, 32, 1, 8), "I8"))
    subject = tensor(packed("q", 5, whole, N, K // 8, scale=Param(floats("scale", N, 4), (1, 16))))
    seen = view(subject)
    assert isinstance(seen, Lookup)
    assert seen.tabled is None
    np.testing.assert_array_equal(rebuilt(seen), subject.decode())


# Tensors that are not quantized.


@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_unquantized_tensors_are_floats(dtype: str) -> None:
    numbers = np.zeros((N, K), np.float32) if dtype == "F32" else np.zeros((N, K), np.uint16)
    codes = Buffer("w", dtype, (N, K), Buffer.of("w", numbers, "F32" if dtype == "F32" else "U16").rows)
    seen = view(plain(codes, plain_name(dtype)))
    assert isinstance(seen, Floats)
    assert (seen.dtype.storage, seen.grouped) == (dtype, None)
    assert seen.rows(2, 5).shape == (3, K)


def test_floats_with_a_scale_or_in_another_shape_are_only_decoded() -> None:
    codes = floats("w", N, K)
    assert isinstance(view(tensor(replace(codes, scale=Param(floats("s", 1, 1), (N, K))))), Decoded)
    assert isinstance(view(QTensor((K, N), "F16", (Term(codes),))), Decoded)


@pytest.mark.parametrize("row", [r for r in rows() if r.element and r.kind in ("unsigned", "signed", "bool")])
def test_integers_enter_a_graph_as_they_are(row: Any) -> None:
    numbers = np.arange(-8, 8) % (1 << row.bits) if row.bits < 8 else np.arange(16)
    numbers = numbers % 2 if row.kind == "bool" else numbers
    if row.bits < 8:
        codes = packed("w", row.bits, row.name, 2, 8)
    else:
        codes = Codes((2, 8), (Buffer.of("w", numbers.reshape(2, 8).astype(row.numpy), row.storage),), PLAIN, row.name)
    seen = view(QTensor((2, 8), row.element, (Term(codes),)))
    assert isinstance(seen, Integers)
    assert seen.element == row.element
    assert seen.value().dtype == row.numpy
    np.testing.assert_array_equal(seen.value().astype(np.float32), decode_codes(codes))


def test_integers_without_an_element_type_are_affine() -> None:
    assert isinstance(view(tensor(packed("q", 3, "uint3"))), Affine)
