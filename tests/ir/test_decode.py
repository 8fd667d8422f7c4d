"""Published encodings that have no checkpoint at hand: each against first principles, written out in numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from qdeploy.errors import BadArgumentError
from qdeploy.ir import rules
from qdeploy.ir.decode import decode_lowrank, decode_param, decode_tensor, slabs
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Rung, Table, Term, plain
from qdeploy.pack import bits, planes, radix
from qdeploy.store.storage import STORAGE_TYPES, storage_dtype

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
STORAGE = {storage_dtype(name): name for name in STORAGE_TYPES}
N, K = 24, 40


def plain_codes(key: str, array: Array, **params: Any) -> Codes:
    dtype = STORAGE[array.dtype]
    return Codes(array.shape, (Buffer.of(key, array, dtype),), PLAIN, plain_name(dtype), **params)


def packed(key: str, codes: Array, width: int, table: str | Table, **params: Any) -> Codes:
    buffer = Buffer.of(key, bits.pack(codes.astype(np.uint16), width), "U8")
    return Codes(codes.shape, (buffer,), Layout("bits", width), table, **params)


def planar(key: str, codes: Array, width: int, table: str | Table, **params: Any) -> Codes:
    data = tuple(Buffer.of(f"{key}.{i}", p, "U8") for i, p in enumerate(planes.pack(codes, width)))
    return Codes(codes.shape, data, Layout("planes", width), table, **params)


def codebook(key: str, values: Array, select: Param | None = None) -> Table:
    return Table(Buffer.of(key, values, STORAGE[values.dtype]), select)


def whole(shape: tuple[int, ...], *terms: Term, **rest: Any) -> QTensor:
    tensor = QTensor(shape, "F32", terms, **rest)
    rules.check(tensor, "w")
    rules.check_values(tensor, "w")
    return tensor


def assert_decodes(tensor: QTensor, want: Array) -> None:
    got = tensor.decode()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want.astype(np.float32))
    np.testing.assert_array_equal(tensor.decode(slice(5, 18)), want[5:18].astype(np.float32))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def halves(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float16)


def test_bitstack_is_signs_times_a_low_rank_product(rng: np.random.Generator) -> None:
    terms, want = [], np.zeros((N, K), np.float32)
    for i in range(3):
        sign, u, vt = rng.integers(0, 2, (N, K)), halves(rng, N, 4), halves(rng, 4, K)
        magnitude = Param(LowRank(plain_codes(f"u{i}", u), plain_codes(f"vt{i}", vt)), (1, 1))
        terms.append(Term(packed(f"sign{i}", sign, 1, "sign", scale=magnitude)))
        product = np.zeros((N, K), np.float32)
        for j in range(4):
            product = product + u[:, j : j + 1].astype(np.float32) * vt[j].astype(np.float32)
        want = want + (2 * sign - 1).astype(np.float32) * product
    rungs = tuple(Rung((1,) * i + (0,) * (3 - i)) for i in range(4))
    tensor = whole((N, K), *terms, rungs=rungs)
    assert_decodes(tensor, want)
    np.testing.assert_array_equal(decode_tensor(tensor, rung=3), want)
    np.testing.assert_array_equal(decode_tensor(tensor, rung=0), np.zeros((N, K)))


def test_any_precision_reads_a_prefix_of_planes_with_that_rungs_table(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 16, (N, K)).astype(np.uint8)
    rows = plain_codes("row", np.arange(N, dtype=np.int32)[:, None])
    tables = {width: halves(rng, N, 1 << width) for width in (2, 3, 4)}

    def term(width: int) -> Term:
        table = codebook(f"table{width}", tables[width], Param(rows, (1, K)))
        full = planar("plane", codes, 4, table)
        return Term(Codes(full.shape, full.data[:width], Layout("planes", width), table))

    rungs = tuple(Rung((width,), (term(width),)) for width in (2, 3, 4))
    tensor = whole((N, K), term(4), rungs=rungs)
    assert_decodes(tensor, np.take_along_axis(tables[4], codes, 1))
    for i, width in enumerate((2, 3, 4)):
        want = np.take_along_axis(tables[width], codes >> (4 - width), 1).astype(np.float32)
        np.testing.assert_array_equal(decode_tensor(tensor, rung=i), want)
        np.testing.assert_array_equal(decode_tensor(tensor, slice(3, 9), rung=i), want[3:9])


def test_planes_that_are_not_resident_read_as_zero(rng: np.random.Generator) -> None:
    codes, scale = rng.integers(0, 16, (N, K)).astype(np.uint8), halves(rng, N, 1)
    tensor = whole(
        (N, K),
        Term(planar("q", codes, 4, "uint4", scale=Param(plain_codes("s", scale), (1, K)))),
        rungs=(Rung((2,)), Rung((4,))),
    )
    np.testing.assert_array_equal(decode_tensor(tensor, rung=0), (codes & 12) * scale.astype(np.float32))
    np.testing.assert_array_equal(decode_tensor(tensor, rung=1), tensor.decode())
    with pytest.raises(BadArgumentError):
        decode_tensor(tensor, rung=2)


def test_aqlm_scales_after_the_sum_of_its_codebooks(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, (2, N, K // 8)).astype(np.uint8)
    books, scale = halves(rng, 2, 256, 8), halves(rng, N, 1)
    terms = [Term(plain_codes(f"q{i}", codes[i])) for i in range(2)]
    terms = [
        Term(Codes(t.values.shape, t.values.data, PLAIN, codebook(f"book{i}", books[i].reshape(1, 256, 1, 8))))
        for i, t in enumerate(terms)
        if isinstance(t.values, Codes)
    ]
    total = sum(books[i].astype(np.float32)[codes[i]].reshape(N, K) for i in range(2))
    tensor = whole((N, K), *terms, scale=Param(plain_codes("scale", scale), (1, K)))
    assert_decodes(tensor, total * scale.astype(np.float32))


def test_codebook_blocks_may_span_rows(rng: np.random.Generator) -> None:
    codes, book = rng.integers(0, 16, (N // 2, K // 4)), halves(rng, 1, 16, 2, 4)
    want = np.zeros((N, K), np.float32)
    for i, j in np.ndindex(*codes.shape):
        want[2 * i : 2 * i + 2, 4 * j : 4 * j + 4] = book[0, codes[i, j]]
    assert_decodes(whole((N, K), Term(packed("q", codes, 4, codebook("book", book)))), want)


def test_bitmod_chooses_a_table_per_group(rng: np.random.Generator) -> None:
    base = np.array([0, 1, 2, 4, 0, -1, -2, -4], np.float32)
    tables = np.stack([np.where(np.arange(8) == 4, special, base) for special in (3, -3, 6, -6)]).astype(np.float32)
    codes, chosen = rng.integers(0, 8, (N, K)), rng.integers(0, 4, (N, 5))
    fine, coarse = rng.integers(0, 256, (N, 5)).astype(np.uint8), halves(rng, N, 1)
    scale = plain_codes("scale", fine, scale=Param(plain_codes("scale.scale", coarse), (1, 5)))
    table = codebook("tables", tables, Param(packed("select", chosen, 2, "uint2"), (1, 8)))
    tensor = whole((N, K), Term(packed("q", codes, 3, table, scale=Param(scale, (1, 8)))))
    want = tables[np.repeat(chosen, 8, 1), codes] * np.repeat(fine * coarse.astype(np.float32), 8, 1)
    assert_decodes(tensor, want)


def test_pb_llm_sets_the_salient_weights_in_place(rng: np.random.Generator) -> None:
    salient = rng.random((N, K)) < 0.2
    sign, alpha, mu = rng.integers(0, 2, (N, K)), halves(rng, N, 5), halves(rng, N, 5)
    q, scale, zero = rng.integers(0, 256, (N, K)).astype(np.uint8), halves(rng, N, 1), rng.integers(0, 256, (N, 1))
    binary = packed(
        "sign",
        sign,
        1,
        "sign",
        scale=Param(plain_codes("alpha", alpha), (1, 8)),
        offset=Param(plain_codes("mu", mu), (1, 8)),
    )
    run = Codes(
        (N, K),
        (Buffer.of("q", q[salient], "U8"),),
        PLAIN,
        "uint8",
        zero=Param(plain_codes("zero", zero.astype(np.uint8)), (1, K)),
        scale=Param(plain_codes("scale", scale), (1, K)),
    )
    mask = packed("mask", salient, 1, "uint1")
    alpha32, mu32 = (np.repeat(a, 8, 1).astype(np.float32) for a in (alpha, mu))
    low = (2 * sign - 1).astype(np.float32) * alpha32 + mu32
    high = (q.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    assert_decodes(whole((N, K), Term(binary), Term(run, mask, "set")), np.where(salient, high, low))
    assert_decodes(whole((N, K), Term(binary), Term(run, mask)), np.where(salient, low + high, low))


def test_whole_columns_are_set_by_a_mask_of_one_row(rng: np.random.Generator) -> None:
    columns = rng.random(K) < 0.3
    q, outliers = rng.integers(0, 16, (N, K)), halves(rng, N, int(columns.sum()))
    run = Codes((N, K), (Buffer.of("outliers", outliers.reshape(-1), "F16"),), PLAIN, "f16")
    tensor = whole((N, K), Term(packed("q", q, 4, "int4")), Term(run, packed("mask", columns[None], 1, "uint1"), "set"))
    want = (q - 16 * (q > 7)).astype(np.float32)
    want[:, columns] = outliers
    assert_decodes(tensor, want)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_selected_codes_may_be_packed(width: int, rng: np.random.Generator) -> None:
    mask = rng.random((N, K)) < 0.4
    q = rng.integers(0, 1 << width, (N, K)).astype(np.uint8)
    run = Codes((N, K), (Buffer.of("q", bits.pack(q[mask], width), "U8"),), Layout("bits", width), f"uint{width}")
    assert_decodes(whole((N, K), Term(run, packed("mask", mask, 1, "uint1"))), np.where(mask, q, 0))


def test_double_quantized_blocks_straddle_the_rows(rng: np.random.Generator) -> None:
    size, blocks = N * K, -(-N * K // 64)
    codes, absmax = rng.integers(0, 16, blocks * 64), rng.integers(0, 256, blocks).astype(np.uint8)
    nf4, dynamic = np.sort(rng.normal(size=16)).astype(np.float32), rng.normal(size=256).astype(np.float32)
    nested, offset = rng.uniform(0.1, 1, (-(-blocks // 4), 1)).astype(np.float32), np.array([[0.037]], np.float32)
    table = codebook("dynamic", dynamic[None])
    scale = Codes(
        (blocks, 1),
        (Buffer.of("absmax", absmax[:, None], "U8"),),
        PLAIN,
        table,
        scale=Param(plain_codes("nested", nested), (4, 1)),
        offset=Param(plain_codes("offset", offset), (blocks, 1)),
    )
    grid = packed("q", codes.reshape(blocks, 64), 4, codebook("nf4", nf4[None]), scale=Param(scale, (1, 64)))
    per_block = dynamic[absmax] * nested[np.arange(blocks) // 4, 0] + offset[0, 0]
    want = (nf4[codes] * np.repeat(per_block, 64))[:size].reshape(N, K)
    assert_decodes(whole((N, K), Term(grid)), want)


def test_ifairy_is_one_code_per_complex_weight(rng: np.random.Generator) -> None:
    codes, scale = rng.integers(0, 4, (N, K // 2)), np.array([[0.5, 0.25]], np.float32)
    roots = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # 1, -1, i, -i as (real, imaginary)
    both = Param(plain_codes("scale", np.tile(scale, (1, K // 2))), (N, 1))
    tensor = whole((N, K), Term(packed("q", codes, 2, codebook("roots", roots.reshape(1, 4, 1, 2)), scale=both)))
    assert_decodes(tensor, (roots[codes] * scale).reshape(N, K))


@pytest.mark.parametrize("divide", [False, True])
def test_nvfp4_multiplies_or_divides_by_its_global_scale(divide: bool, rng: np.random.Generator) -> None:
    codes, block = rng.integers(0, 16, (N, 48)), rng.uniform(1, 400, (N, 3)).astype(ml_dtypes.float8_e4m3fn)
    total = np.array([[2688.0 / 3]], np.float32)
    scale = plain_codes("scale", block, scale=Param(plain_codes("scale.scale", total), (N, 3), divide=divide))
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    want = np.concatenate([e2m1, -e2m1])[codes]
    local = block.astype(np.float32) / total if divide else block.astype(np.float32) * total
    tensor = whole((N, 48), Term(packed("q", codes, 4, "e2m1", scale=Param(scale, (1, 16)))))
    assert_decodes(tensor, want * np.repeat(local, 16, 1))


def test_trits_lie_five_to_a_byte(rng: np.random.Generator) -> None:
    codes, scale = rng.integers(0, 3, (N, 43)), halves(rng, N, 1)
    data = Buffer.of("q", radix.pack(codes, 3, 5), "U8")
    params = Param(plain_codes("scale", scale), (1, 43), divide=True)
    grid = Codes((N, 43), (data,), Layout("radix", base=3, digits=5), "ternary", scale=params)
    assert_decodes(whole((N, 43), Term(grid)), (codes - 1) / scale.astype(np.float32))


def test_act_order_takes_the_group_of_each_column(rng: np.random.Generator) -> None:
    codes, zero, scale = rng.integers(0, 16, (N, K)), rng.integers(0, 16, (N, 5)), halves(rng, N, 5)
    index = rng.integers(0, 5, K).astype(np.int32)
    where = Buffer.of("index", index, "I32")
    grid = packed(
        "q",
        codes,
        4,
        "uint4",
        zero=Param(packed("zero", zero, 4, "uint4"), (1, 1), where),
        scale=Param(plain_codes("scale", scale), (1, 1), where),
    )
    assert_decodes(whole((N, K), Term(grid)), (codes - zero[:, index]) * scale[:, index].astype(np.float32))


def test_the_order_of_the_steps_is_part_of_the_meaning(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, (N, K)).astype(np.uint8)
    zero, scale = (rng.normal(size=(N, 1)).astype(np.float32) for _ in range(2))
    grid = plain_codes(
        "q", codes, zero=Param(plain_codes("zero", zero), (1, K)), scale=Param(plain_codes("scale", scale), (1, K))
    )
    want = (codes.astype(np.float32) - zero) * scale
    assert_decodes(whole((N, K), Term(grid)), want)
    assert not np.array_equal(codes.astype(np.float32) * scale - zero * scale, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_plain_floats_keep_signed_zeros_infinities_and_nan(dtype: Any) -> None:
    numbers = np.array([[0.0, -0.0, np.inf, -np.inf], [1.5, -2.5, np.nan, 3]], np.float32).astype(dtype)
    tensor = plain(Buffer.of("w", numbers, STORAGE[np.dtype(dtype)]), plain_name(STORAGE[np.dtype(dtype)]))
    rules.check(tensor, "w")
    rules.check_values(tensor, "w")
    np.testing.assert_array_equal(tensor.decode().view(np.uint32), numbers.astype(np.float32).view(np.uint32))


def test_a_scalar_has_no_axes() -> None:
    tensor = whole((), Term(plain_codes("w", np.array([2.5], np.float32))))
    assert tensor.decode().shape == ()
    assert float(tensor.decode()) == 2.5


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_an_empty_tensor_is_empty(shape: tuple[int, ...]) -> None:
    assert whole(shape, Term(plain_codes("w", np.zeros(shape, np.float32)))).decode().shape == shape


def test_low_rank_terms_add_to_codes(rng: np.random.Generator) -> None:
    q, u, vt = rng.integers(0, 16, (N, K)), halves(rng, N, 1), halves(rng, 1, K)
    low = LowRank(plain_codes("u", u), plain_codes("vt", vt))
    want = q.astype(np.float32) + u.astype(np.float32) * vt.astype(np.float32)
    assert_decodes(whole((N, K), Term(packed("q", q, 4, "uint4")), Term(low)), want)
    np.testing.assert_array_equal(decode_lowrank(low, slice(2, 4)), (u.astype(np.float32) * vt.astype(np.float32))[2:4])


def test_a_param_for_all_rows_is_not_repeated() -> None:
    one = Param(plain_codes("s", np.array([[2.0]], np.float32)), (1 << 20, 1 << 10))
    spread = decode_param(one, None, (1 << 20, 1 << 10))
    assert spread.shape == (1 << 20, 1 << 10)
    assert spread.strides == (0, 0)


def test_rows_are_read_without_a_step() -> None:
    with pytest.raises(BadArgumentError):
        plain(Buffer.of("w", np.zeros((4, 2), np.float32), "F32"), "f32").decode(slice(0, 4, 2))


def test_slabs_cover_the_rows_and_keep_tiles_whole() -> None:
    scale = Param(plain_codes("s", np.ones((4, 2), np.float32)), (128, 128))
    tensor = whole((400, 200), Term(plain_codes("q", np.zeros((400, 200), np.uint8), scale=scale)))
    parts = list(slabs(tensor, 300 * 200 * 4))
    assert [(p.start, p.stop) for p in parts] == [(0, 256), (256, 400)]
    assert [p.stop - p.start for p in slabs(tensor, 1)] == [1] * 400


def test_slabs_keep_the_rows_of_a_reshaped_grid_whole() -> None:
    tensor = whole((64, 100), Term(plain_codes("q", np.zeros((8, 800), np.uint8))))
    assert [(p.start, p.stop) for p in slabs(tensor, 20 * 400)] == [(i, i + 16) for i in range(0, 64, 16)]
