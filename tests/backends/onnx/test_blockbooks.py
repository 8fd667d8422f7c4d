"""Vector codebooks whose entries span rows, with tables per group of columns and an offset, in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx_forms import error_of, tensor_of

from qdeploy.backends.onnx.rules import rule
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Table, Term
from qdeploy.ir.views import Vector, view

EXACT = 5e-6


def book(rng, key: str, shape: tuple[int, int], entries: int, block: tuple[int, int], tables: int = 1) -> Term:
    """A term of random codes; with several tables each run of columns has its own."""
    codes = rng.integers(0, entries, shape).astype(np.uint16 if entries > 256 else np.uint8)
    values = rng.standard_normal((tables, entries, *block)).astype(np.float16)
    select = None
    if tables > 1:
        chosen = (np.arange(shape[1]) % tables).astype(np.uint8).reshape(1, -1)
        grid = Codes((1, shape[1]), (Buffer.of(f"{key}.select", chosen, "U8"),), PLAIN, "uint8")
        select = Param(grid, (shape[0], 1))
    data = Buffer.of(key, codes, "U16" if entries > 256 else "U8")
    return Term(Codes(shape, (data,), PLAIN, Table(Buffer.of(f"{key}.table", values, "F16"), select)))


def numbers(rng, key: str, grid: tuple[int, int], tile: tuple[int, int]) -> Param:
    data = Buffer.of(key, rng.standard_normal(grid).astype(np.float32), "F32")
    return Param(Codes(grid, (data,), PLAIN, "f32"), tile)


@pytest.mark.parametrize("use", ["linear", "gather"])
@pytest.mark.parametrize(
    ("rows", "block", "entries", "tables"),
    [(32, (8, 1), 256, 1), (30, (8, 1), 16, 1), (32, (2, 4), 300, 1), (24, (4, 1), 64, 3), (60, (6, 1), 4096, 2)],
)
def test_entries_that_span_rows_are_exact(rows, block, entries, tables, use, tmp_path, rng):
    shape = (-(-rows // block[0]), 40 // block[1])
    terms = tuple(book(rng, f"codes{i}", shape, entries, block, tables) for i in range(2))
    plain = QTensor((rows, 40), "F16", terms)
    whole = replace(plain, scale=numbers(rng, "s", (1, 40), (rows, 1)), offset=numbers(rng, "o", (1, 40), (rows, 1)))
    for tensor in (plain, whole):
        assert isinstance(view(tensor), Vector)
        folder = tmp_path / str(tensor is whole)
        folder.mkdir()
        assert error_of(folder, tensor, use) < EXACT
        ruling = rule("w", tensor, "exact")
        assert ruling.lossless and ruling.form.label.startswith("2 codebooks of")


def test_scales_per_rows_of_an_entry_are_exact(tmp_path, rng):
    tensor = QTensor((32, 40), "F16", (book(rng, "codes", (4, 40), 256, (8, 1)),))
    assert error_of(tmp_path, replace(tensor, scale=numbers(rng, "s", (4, 1), (8, 40)))) < EXACT


def test_scales_that_vary_along_both_axes_leave_the_floats(tmp_path, rng):
    tensor = QTensor((32, 40), "F16", (book(rng, "codes", (4, 40), 256, (8, 1)),))
    tensor = replace(tensor, scale=numbers(rng, "s", (4, 10), (8, 4)))
    assert error_of(tmp_path, tensor) < EXACT
    assert rule("w", tensor, "exact").form.label == "f32"


def test_masked_columns_of_vectors_are_the_floats_that_they_decode_to(tmp_path, rng):
    chosen = rng.integers(0, 2, 40).astype(bool)
    mask = Codes((1, 40), (Buffer.of("where", np.packbits(chosen, bitorder="little")[None], "U8"),), PLAIN, "uint1")
    whole = book(rng, "codes", (4, 40), 256, (8, 1)).values
    run = Buffer.of("codes", whole.data[0].read()[:, chosen].reshape(-1), "U8")
    layout = replace(mask, layout=replace(PLAIN, kind="bits", width=1))
    tensor = QTensor((32, 40), "F16", (Term(replace(whole, data=(run,)), layout),))
    np.testing.assert_array_equal(tensor.decode(), np.where(chosen, tensor_of(whole).decode(), 0))
    np.testing.assert_array_equal(tensor.decode(slice(5, 19)), tensor.decode()[5:19])
    assert error_of(tmp_path, tensor) < EXACT
