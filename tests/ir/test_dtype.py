"""Every code of every small number type, against ml_dtypes, ONNX and arithmetic; and types that are added."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import pytest

from qdeploy.backends.native.layout import NumberKind
from qdeploy.backends.native.numbers import DTYPES
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir import dtype as table
from qdeploy.ir.dtype import DType, dtype
from qdeploy.store.storage import STORAGE_TYPES, storage_dtype

MINIFLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}
SMALL = [row for row in table.rows() if row.bits <= 8]
ELEMENTS = [row for row in table.rows() if row.element]
ONNX_NAMES = {
    "uint8": "UINT8",
    "int8": "INT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "uint32": "UINT32",
    "int32": "INT32",
    "uint64": "UINT64",
    "int64": "INT64",
    "bool": "BOOL",
    "f16": "FLOAT16",
    "f32": "FLOAT",
    "f64": "DOUBLE",
    "bf16": "BFLOAT16",
    "e4m3": "FLOAT8E4M3FN",
    "e5m2": "FLOAT8E5M2",
    "e8m0": "FLOAT8E8M0",
    "e4m3fnuz": "FLOAT8E4M3FNUZ",
    "e5m2fnuz": "FLOAT8E5M2FNUZ",
    "e2m1": "FLOAT4E2M1",
    "uint4": "UINT4",
    "int4": "INT4",
    "uint2": "UINT2",
    "int2": "INT2",
}


def spelled(code: int, exponent: int, mantissa: int, bias: int) -> float:
    """A finite minifloat from its fields (arXiv 2310.10537, section 3)."""
    sign = -1.0 if code >> (exponent + mantissa) else 1.0
    e, m = code >> mantissa & ((1 << exponent) - 1), code & ((1 << mantissa) - 1)
    scale = 2.0 ** (max(e, 1) - bias)
    return sign * scale * ((e > 0) + m / (1 << mantissa))


@pytest.mark.parametrize("name", MINIFLOATS)
def test_minifloats_are_those_of_ml_dtypes(name: str) -> None:
    kind = dtype(name)
    codes = np.arange(1 << kind.bits, dtype=np.uint8)
    want = codes.view(MINIFLOATS[name]).astype(np.float32)
    np.testing.assert_array_equal(kind.values(), want)
    np.testing.assert_array_equal(kind.decode(codes), want)
    assert kind.numpy == np.dtype(MINIFLOATS[name])


FIELDS = [("e4m3", 4, 3, 7), ("e5m2", 5, 2, 15), ("e2m1", 2, 1, 1), ("e2m3", 2, 3, 1), ("e3m2", 3, 2, 3)]


@pytest.mark.parametrize(("name", "exponent", "mantissa", "bias"), FIELDS)
def test_minifloats_are_what_their_fields_spell(name: str, exponent: int, mantissa: int, bias: int) -> None:
    values = dtype(name).values()
    finite = np.flatnonzero(np.isfinite(values))
    assert len(finite) >= len(values) - 8
    want = [spelled(int(code), exponent, mantissa, bias) for code in finite]
    np.testing.assert_array_equal(values[finite], np.array(want, np.float32))


def test_e8m0_is_a_power_of_two() -> None:
    values = dtype("e8m0").values()
    np.testing.assert_array_equal(values[:255], np.ldexp(np.float32(1), np.arange(255) - 127))
    assert np.isnan(values[255])


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_are_unsigned_or_twos_complement(bits: int) -> None:
    codes = range(1 << bits)
    assert dtype(f"uint{bits}").values().tolist() == list(codes)
    assert dtype(f"int{bits}").values().tolist() == [c - (1 << bits) * (c >= 1 << (bits - 1)) for c in codes]


def test_signs_and_trits() -> None:
    assert dtype("sign").values().tolist() == [-1, 1]
    assert dtype("ternary").values().tolist()[:3] == [-1, 0, 1]


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_a_small_type_is_its_table_of_values(row: DType) -> None:
    codes = np.arange(1 << row.bits, dtype=np.uint8)
    assert row.values().shape == (1 << row.bits,)
    assert row.values().dtype == np.float32
    np.testing.assert_array_equal(row.decode(codes), row.values())
    with pytest.raises(ValueError, match="read-only"):
        row.values()[0] = 1


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_half_is_widened_exactly(name: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    want = codes.view(storage_dtype(dtype(name).storage)).astype(np.float32)
    np.testing.assert_array_equal(dtype(name).decode(codes), want)


@pytest.mark.parametrize("name", ["int16", "uint16", "int32", "uint32", "int64", "uint64", "f32", "f64"])
def test_wide_formats_are_a_view_of_their_bits(name: str) -> None:
    native = storage_dtype(dtype(name).storage)
    numbers = np.array([0, 1, 2, 100, 12345], native)
    np.testing.assert_array_equal(dtype(name).decode(numbers.view(f"<u{native.itemsize}")), numbers.astype(np.float32))


def test_every_storage_type_has_a_plain_number_format() -> None:
    results = {storage: table.of_storage(storage) for storage in STORAGE_TYPES}
    for storage, row in results.items():
        assert row is not None
        assert (row.storage, row.element, row.bits) == (storage, storage, 8 * storage_dtype(storage).itemsize)
        assert table.plain_name(storage) == row.name
    assert table.of_storage("U4") is None
    with pytest.raises(UnsupportedError, match="U4"):
        table.plain_name("U4")


@pytest.mark.parametrize("row", ELEMENTS, ids=lambda row: row.name)
def test_an_element_type_holds_every_value_of_its_number_type(row: DType) -> None:
    assert table.of_element(row.element) is row
    assert row.numpy.itemsize == max(1, row.bits // 8)
    if row.bits <= 8 and row.kind != "bool":
        values = row.values()
        np.testing.assert_array_equal(values.astype(row.numpy).astype(np.float32), values)


def test_the_types_of_onnx_are_those_that_onnx_names() -> None:
    types = dict(onnx.TensorProto.DataType.items())
    assert {row.name: row.onnx for row in table.onnx_rows()} == {name: types[t] for name, t in ONNX_NAMES.items()}
    for row in table.onnx_rows():
        assert table.of_onnx(row.onnx) is row
        assert row.numpy == onnx.helper.tensor_dtype_to_np_dtype(row.onnx)
    assert table.of_onnx(types["STRING"]) is None
    assert table.of_onnx(0) is None


def test_dequantizelinear_takes_what_its_schema_says() -> None:
    constraints = onnx.defs.get_schema("DequantizeLinear", onnx.defs.onnx_opset_version(), "").type_constraints
    (allowed,) = [set(c.allowed_type_strs) for c in constraints if c.type_param_str == "T1"]
    spelled_in_schema = {"F8_E4M3": "float8e4m3fn", "F8_E5M2": "float8e5m2", "F4_E2M1": "float4e2m1"}
    spelled_in_schema |= {"F8_E4M3FNUZ": "float8e4m3fnuz", "F8_E5M2FNUZ": "float8e5m2fnuz"}
    for row in table.onnx_rows():
        name = spelled_in_schema.get(row.element, row.name)
        if row.dequantized:
            assert f"tensor({name})" in allowed, row.name


def test_number_formats_of_model_files_are_rows() -> None:
    native = {row.native: row for row in table.rows() if row.native}
    assert set(native) == {int(kind) for kind in NumberKind} - {NumberKind.NO}
    for kind, content in DTYPES.items():
        assert content == native[kind].numpy
        assert kind.name.lower() in (native[kind].name, native[kind].storage.lower())


def test_no_two_rows_share_a_name() -> None:
    for field in ("name", "element", "onnx", "native"):
        taken = [getattr(row, field) for row in table.rows() if getattr(row, field)]
        assert len(taken) == len(set(taken)), field


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="int9"):
        dtype("int9")
    assert not table.is_known("int9")
    assert table.is_known("int8")


# Types that are added.


@pytest.fixture
def e3m4() -> Iterator[DType]:
    row = DType("e3m4", 8, "float", "U8", "F8_E3M4", "float8_e3m4")
    table.register(row)
    yield row
    table.unregister("e3m4")


def test_an_added_type_is_found_under_all_its_names(e3m4: DType) -> None:
    assert dtype("e3m4") is e3m4
    assert table.of_element("F8_E3M4") is e3m4
    want = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e3m4).astype(np.float32)
    np.testing.assert_array_equal(e3m4.values(), want)


def test_a_type_that_was_taken_back_is_gone(e3m4: DType) -> None:
    table.unregister("e3m4")
    assert not table.is_known("e3m4")
    assert table.of_element("F8_E3M4") is None
    table.register(e3m4)


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        (DType("uint4", 4, "unsigned", "U8"), "name"),
        (DType("mine", 4, "unsigned", "U8", "U4"), "element"),
        (DType("mine", 8, "float", "U8", "MINE", "float8_e3m4", onnx=17), "onnx"),
    ],
)
def test_a_clash_is_refused_and_nothing_is_added(row: DType, taken: str) -> None:
    before = list(table.rows())
    with pytest.raises(BadArgumentError, match=taken):
        table.register(row)
    assert list(table.rows()) == before


@pytest.mark.parametrize(
    "row",
    [
        DType("", 4, "unsigned", "U8"),
        DType("wide", 65, "unsigned", "U64"),
        DType("wide", 12, "unsigned", "U16"),
        DType("wide", 16, "unsigned", "U8"),
        DType("few", 2, "levels", "U8", levels=(1, 2, 3)),
        DType("none", 2, "levels", "U8"),
        DType("nothing", 8, "float", "U8"),
        DType("decimal", 8, "decimal", "U8"),  # type: ignore[arg-type]
        DType("levelled", 2, "unsigned", "U8", levels=(1, 2, 3, 5)),
        DType("spelled", 1, "levels", "U8", levels=("1", "2")),  # type: ignore[arg-type]
        DType("unknown", 8, "float", "U8", ml_dtypes="float8_e9m9"),
        DType("longer", 8, "float", "U8", ml_dtypes="bfloat16"),
        DType("narrower", 8, "float", "U8", ml_dtypes="float4_e2m1fn"),
        DType("other", 4, "unsigned", "U8", ml_dtypes="float4_e2m1fn"),
        DType("half", 4.5, "unsigned", "U8"),  # type: ignore[arg-type]
    ],
    ids=lambda row: row.name or "unnamed",
)
def test_a_row_that_contradicts_itself_is_refused(row: DType) -> None:
    with pytest.raises(BadArgumentError, match="contradicts"):
        table.register(row)


@pytest.mark.parametrize("number", [5, 9])
def test_a_type_that_is_added_has_no_number_of_the_runtime(number: int) -> None:
    """Its formats are compiled: a number of another type would give its codes another meaning."""
    with pytest.raises(BadArgumentError, match="the runtime's formats of numbers"):
        table.register(DType("mine", 8, "levels", "U8", native=number, levels=tuple(range(256))))


def test_built_in_types_cannot_be_taken_back() -> None:
    for name in ("uint4", "int9"):
        with pytest.raises(BadArgumentError, match=name):
            table.unregister(name)
