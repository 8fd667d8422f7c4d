"""Every form of a weight computes in ONNX Runtime what the tensor means in numpy."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_forms import affine_tensor, error_of, packed, plain_codes, scales, tensor_of, write

from qdeploy.ir.tensor import Buffer, Layout, LowRank, Param, QTensor, Table, Term
from qdeploy.ir.views import view
from qdeploy.ir.views.integers import power_of_two_unit

EXACT, INT8 = 5e-6, 2e-2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    width=st.integers(1, 8),
    zero=st.sampled_from(["none", "middle", "codes", "float"]),
    group=st.sampled_from([8, 16, 24, 32, 48, 64, 128, 512]),
    columns=st.integers(17, 200),
    offset=st.booleans(),
    use=st.sampled_from(["linear", "gather"]),
)
def test_any_affine_matrix_is_exact_with_float_activations(seed, width, zero, group, columns, offset, use):
    tensor = affine_tensor(seed, 9, columns, width, min(group, columns), zero, offset)
    with tempfile.TemporaryDirectory() as folder:
        assert error_of(Path(folder), tensor, use) < EXACT


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    width=st.integers(1, 8),
    group=st.sampled_from([16, 32, 64, 128, 40]),
    zero=st.sampled_from(["middle", "codes"]),
)
def test_any_affine_matrix_is_close_with_int8_activations(seed, width, group, zero):
    with tempfile.TemporaryDirectory() as folder:
        assert error_of(Path(folder), affine_tensor(seed, 32, 512, width, group, zero), "linear", "int8") < INT8
    with tempfile.TemporaryDirectory() as folder:  # a look-up has no activations
        assert error_of(Path(folder), affine_tensor(seed, 8, 250, width, group, zero), "gather", "int8") < 1e-6


@pytest.mark.parametrize(("width", "group"), [*itertools.product(range(1, 9), (16, 64, 24))])
def test_the_codes_in_the_file_are_the_codes_of_the_source(width, group, tmp_path):
    """Undone by hand from the bytes of the file, without ONNX Runtime: (code - zero) * scale bit for bit."""
    tensor = affine_tensor(3, 7, 96, width, group)
    written = write(tmp_path, tensor)
    assert np.array_equal(_by_hand(written), tensor.decode())


def _by_hand(written) -> np.ndarray:
    """Decodes the initializers of a MatMulNBits form with Python's own integers."""
    raw, places = (written.path.parent / "model.onnx.data").read_bytes(), written.builder.places()
    stored = {name: raw[p.offset : p.offset + p.blob.nbytes] for name, p in places.items()}
    form = written.ruling.form
    rows, columns = form.shape
    blocking, parts = form.blocking, ("w.high", "w.low") if form.split else ("w",)
    scale = np.frombuffer(stored["w.scale"], "<f4").reshape(rows, blocking.count)

    def fields(data: bytes, count: int) -> np.ndarray:
        run = len(data) // rows
        whole = [int.from_bytes(data[i * run : (i + 1) * run], "little") for i in range(rows)]
        return np.array([[w >> j * form.bits & (1 << form.bits) - 1 for j in range(count)] for w in whole])

    code = zero = 0
    for part in parts:
        implied = np.full((rows, blocking.count), 1 << form.bits - 1)
        zeros = fields(stored[f"{part}.zero"], blocking.count) if f"{part}.zero" in stored else implied
        code = code * 16 + fields(stored[f"{part}.codes"], blocking.count * blocking.block)
        zero = zero * 16 + zeros
    wide = np.repeat(zero, blocking.block, axis=1), np.repeat(scale, blocking.block, axis=1)
    values = (code - wide[0]).astype(np.float32) * wide[1]
    if blocking.columns is None:
        return values[:, :columns]
    whole = np.zeros((rows, columns + 1), np.float32)
    whole[:, blocking.columns] = values
    return whole[:, :columns]


@pytest.mark.parametrize("use", ["linear", "gather"])
@pytest.mark.parametrize("even", [True, False])
def test_act_order_brings_the_columns_of_a_group_together(use, even, tmp_path, rng):
    columns, groups = 128, 4
    index = np.repeat(np.arange(groups), columns // groups) if even else rng.integers(0, groups, columns)
    index = rng.permutation(index).astype("<i4")
    codes = rng.integers(0, 16, (8, columns), dtype=np.uint8)
    buffer = Buffer.of("index", index, "I32")
    scale = Param(plain_codes(rng.random((8, groups)).astype(np.float32), "F32", "f32"), (1, 1), buffer)
    zero = Param(packed(rng.integers(0, 16, (8, groups), dtype=np.uint8), 4, "uint4", "zero"), (1, 1), buffer)
    tensor = tensor_of(packed(codes, 4, "uint4", zero=zero, scale=scale))
    assert error_of(tmp_path, tensor, use) < EXACT
    form = write_again(tmp_path, tensor).ruling.form
    assert form.blocking.padded != even  # only uneven groups need columns of zeros


def write_again(folder: Path, tensor: QTensor, **how):
    (folder / "again").mkdir()
    return write(folder / "again", tensor, **how)


def test_an_index_that_is_the_ramp_costs_nothing(tmp_path, rng):
    index = Buffer.of("index", (np.arange(96) // 32).astype("<i4"), "I32")
    scale = Param(plain_codes(rng.random((4, 3)).astype(np.float32), "F32", "f32"), (1, 1), index)
    tensor = tensor_of(packed(rng.integers(0, 16, (4, 96), dtype=np.uint8), 4, "uint4", scale=scale))
    assert [n.op_type for n in write(tmp_path, tensor).proto().graph.node] == ["MatMulNBits"]


@pytest.mark.parametrize("activations", ["exact", "int8"])
@pytest.mark.parametrize("name", ["e2m1", "e2m3", "ternary", "sign", "int3", "int4", "int8"])
def test_tables_of_multiples_of_a_power_of_two_are_integers(name, activations, tmp_path, rng):
    width = {"e2m1": 4, "e2m3": 6, "ternary": 2, "sign": 1, "int3": 3, "int4": 4, "int8": 8}[name]
    codes = rng.integers(0, 3 if name == "ternary" else 1 << width, (16, 256), dtype=np.uint8)
    tensor = tensor_of(packed(codes, width, name, scale=scales(rng, 16, 8, (1, 32))))
    assert error_of(tmp_path, tensor, "linear", activations) < (EXACT if activations == "exact" else INT8)
    if activations == "exact":
        assert error_of(_sub(tmp_path), tensor, "gather") < 1e-7


def _sub(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub"


def test_a_plane_of_signs_goes_into_the_integers(tmp_path, rng):
    signs = packed(rng.integers(0, 2, (8, 64), dtype=np.uint8), 1, "sign", "signs", scale=scales(rng, 8, 2, (1, 32)))
    tensor = tensor_of(packed(rng.integers(0, 8, (8, 64), dtype=np.uint8), 3, "uint3", scale=Param(signs, (1, 1))))
    assert view(tensor).grouped.top == 14
    assert error_of(tmp_path, tensor) < EXACT


def test_a_vector_codebook_of_integers_with_zeros_between_them(tmp_path, rng):
    grid = Table(Buffer.of("grid", rng.integers(-1, 2, (1, 16, 1, 8)).astype(np.int8), "I8"))
    delta = Param(plain_codes(rng.choice([-0.125, 0.125], (4, 8)).astype(np.float32), "F32", "f32", "zero"), (1, 8))
    codes = packed(rng.integers(0, 16, (4, 8), dtype=np.uint8), 4, grid, zero=delta, scale=scales(rng, 4, 2, (1, 32)))
    assert error_of(tmp_path, tensor_of(codes)) < EXACT


@pytest.mark.parametrize("tile", [(8, 64), (1, 64), (4, 16), (3, 32)])
def test_scales_of_tiles_of_several_rows_are_repeated(tile, tmp_path, rng):
    grid = -(-8 // tile[0]), -(-64 // tile[1])
    codes = packed(rng.integers(0, 16, (8, 64), dtype=np.uint8), 4, "int4", scale=scales(rng, *grid, tile))
    assert error_of(tmp_path, tensor_of(codes)) < EXACT


def test_a_grid_of_groups_is_a_matrix(tmp_path, rng):
    """Codes kept as [N * K / 32, 32], one scale per row of the grid."""
    codes = packed(rng.integers(0, 16, (8 * 4, 32), dtype=np.uint8), 4, "int4", scale=scales(rng, 32, 1, (1, 32)))
    tensor = replace(tensor_of(codes), shape=(8, 128))
    assert error_of(tmp_path, tensor) < EXACT


def test_a_dividing_scale_is_not_called_lossless(tmp_path, rng):
    scale = replace(scales(rng, 4, 2, (1, 32)), divide=True)
    tensor = tensor_of(packed(rng.integers(0, 16, (4, 64), dtype=np.uint8), 4, "int4", scale=scale))
    assert error_of(tmp_path, tensor) < EXACT
    assert not write_again(tmp_path, tensor).ruling.lossless


@pytest.mark.parametrize("use", ["linear", "gather"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_floats_stay_in_their_stored_type(dtype, use, tmp_path, rng):
    from qdeploy.store.storage import storage_dtype

    values = rng.standard_normal((12, 40)).astype(storage_dtype(dtype))
    tensor = tensor_of(plain_codes(values, dtype, dtype.lower()))
    assert error_of(tmp_path, tensor, use) < EXACT
    assert (tmp_path / "model.onnx.data").read_bytes() == values.tobytes()


@pytest.mark.parametrize("tile", [(1, 32), (16, 32), (1, 64), (16, 64)])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_eight_bit_floats_are_dequantized_exactly(name, tile, tmp_path, rng):
    codes = rng.integers(0, 0x70, (16, 64), dtype=np.uint8)
    grid = 16 // tile[0], 64 // tile[1]
    storage = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}[name]
    values = replace(plain_codes(codes, storage, name, "codes"), scale=scales(rng, *grid, tile))
    assert error_of(tmp_path, tensor_of(values)) < EXACT
    ruling = write_again(tmp_path, tensor_of(values)).ruling
    assert ruling.lossless
    assert ruling.reason.startswith("slow")


def test_what_has_no_form_is_stored_as_what_it_decodes_to_and_rounded_on_request(tmp_path, rng):
    low = LowRank(
        *(
            plain_codes(rng.standard_normal(s).astype(np.float32), "F32", "f32", k)
            for k, s in (("u", (24, 4)), ("vt", (4, 64)))
        )
    )
    tensor = QTensor((24, 64), "F32", tensor_of(low).terms)
    assert error_of(tmp_path, tensor) < EXACT
    plain = write_again(tmp_path, tensor).ruling
    assert plain.lossless and plain.form.label == "f32" and "low rank" in plain.reason
    written = write(_sub(tmp_path), tensor, requantize=True)
    assert not written.ruling.lossless
    assert "dB" in written.ruling.reason
    x = rng.standard_normal((1, 3, 64)).astype(np.float32)
    assert np.linalg.norm(written.run(x) - x @ tensor.decode().T) < 0.2 * np.linalg.norm(x @ tensor.decode().T)


@given(values=st.lists(st.integers(-127, 127), min_size=1, max_size=30), power=st.integers(-30, 30))
def test_the_unit_is_the_greatest_power_of_two(values, power):
    result = power_of_two_unit(np.array(values, np.float32) * np.float32(2.0**power))
    whole = np.array(values) * 2.0**power / result
    assert np.array_equal(whole, np.rint(whole))
    assert not any(values) or np.any(np.rint(whole).astype(int) % 2)


def test_radix_codes_are_read(tmp_path, rng):
    trits = rng.integers(0, 3, (4, 60), dtype=np.uint8)
    bytes_ = (trits.reshape(4, 12, 5) * 3 ** np.arange(5)).sum(axis=2).astype(np.uint8)
    codes = replace(
        packed(trits, 8, "ternary", scale=scales(rng, 4, 1, (1, 60))),
        data=(Buffer.of("codes", bytes_, "U8"),),
        layout=Layout("radix", base=3, digits=5),
    )
    assert error_of(tmp_path, tensor_of(codes)) < EXACT


def test_shared_activations_are_gathered_once(tmp_path, rng):
    """Three projections with one order of columns permute their input once."""
    from qdeploy.backends.onnx.proto import GraphBuilder
    from qdeploy.backends.onnx.rules import rule

    index = Buffer.of("index", rng.permutation(np.repeat([0, 1], 32)).astype("<i4"), "I32")
    builder = GraphBuilder()
    x = builder.input("x", onnx.TensorProto.FLOAT, (1, "tokens", 64))
    for name in "qkv":
        scale = Param(plain_codes(rng.random((4, 2)).astype(np.float32), "F32", "f32"), (1, 1), index)
        tensor = tensor_of(packed(rng.integers(0, 16, (4, 64), dtype=np.uint8), 4, "uint4", scale=scale))
        rule(name, tensor, "exact").form.linear(builder, x, f"{name}.out")
    assert [n.op_type for n in builder.graph.node].count("Gather") == 1


@pytest.mark.parametrize("use", ["linear", "gather"])
@pytest.mark.parametrize("kind", ["table", "tables", "vector", "e4m3", "e3m2"])
def test_codebooks_and_floats_know_folded_grids(kind, use, tmp_path, rng):
    """Blocks of 32 columns are the rows of the grid, as where a library quantizes a flat tensor."""
    rows, columns, fold = 8, 96, 3
    grid = (rows * fold, columns // fold)
    scale = scales(rng, rows * fold, 1, (1, 32))
    if kind == "vector":
        table = Table(Buffer.of("book", rng.standard_normal((1, 256, 1, 8)).astype(np.float32), "F32"))
        codes = plain_codes(rng.integers(0, 256, (grid[0], grid[1] // 8), dtype=np.uint8), "U8", table, "codes")
    elif kind.startswith("table"):
        select = Param(plain_codes(rng.integers(0, 2, (grid[0], 1), dtype=np.uint8), "U8", "uint8", "select"), (1, 32))
        values = rng.standard_normal((2, 16)).astype(np.float32)
        table = Table(Buffer.of("book", values if kind == "tables" else values[:1], "F32"), None)
        table = replace(table, select=select) if kind == "tables" else table
        codes = packed(rng.integers(0, 16, grid, dtype=np.uint8), 4, table, scale=scale)
    else:
        width = 8 if kind == "e4m3" else 6
        numbers = rng.integers(0, 1 << width, grid, dtype=np.uint8) & 0x7E
        codes = packed(numbers, width, kind, scale=scale)
    tensor = QTensor((rows, columns), "F32", (Term(codes),))
    assert error_of(tmp_path, tensor, use) < EXACT
