"""Fake-quantized floats become the codes that they were made from, or stay floats: every float is held against them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer, QTensor, plain
from qdeploy.recover import detected, parse, recover_model

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
STORED = {BF16: ("BF16", "bf16"), F16: ("F16", "f16"), F32: ("F32", "f32")}
ROWS, COLUMNS = 48, 256
Array = npt.NDArray[Any]

NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334)
NF4 += (-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
NF4 += (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6)
BITMOD3 = [(0, 1, 2, 4, -1, -2, -4, special) for special in (3, -3, 6, -6)]


def weights(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)) * 0.02


def on_levels(tables: list[Any], group: int, dtype: np.dtype[Any], scale: Any = None) -> Array:
    """Weights rounded to levels, each group with one of the tables, as published code of fake quantization does it."""
    x = weights().reshape(-1, group)
    choice = np.random.default_rng(1).integers(0, len(tables), len(x))
    out = np.zeros(x.shape, np.float32)
    for row, which in enumerate(choice):
        levels = np.unique(np.array(tables[which], np.float32))
        step = np.float32(np.abs(x[row]).max() / np.abs(levels).max())
        step = np.float32(np.float16(step)) if scale is None else scale(step)
        out[row] = levels[np.abs(x[row][:, None] / step - levels).argmin(1)] * step
    return out.astype(dtype).reshape(ROWS, COLUMNS)


def integers(bits: int, group: int, dtype: np.dtype[Any]) -> Array:
    half = 1 << (bits - 1)
    return on_levels([range(-half, half)], group, dtype)


def model_of(**arrays: Array) -> Model:
    tensors = {name: plain(Buffer.of("data", a, STORED[a.dtype][0]), STORED[a.dtype][1]) for name, a in arrays.items()}
    return Model("safetensors", "small", tensors, {}, "hf", (), build_graph=_no_graph)


def _no_graph(model: Model) -> Any:
    raise UnsupportedError("no graph", found=model.path)


def recovered(array: Array, spec: str = "auto") -> tuple[QTensor, list[str]]:
    model = recover_model(model_of(weight=array), spec)
    tensor = model.tensors["weight"]
    rules.check(tensor, "weight")
    rules.check_values(tensor, "weight")
    return tensor, model.notes


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(
    ("tables", "group", "says"),
    [
        ([range(-8, 8)], 32, "int4 in groups of 32"),
        ([range(-8, 8)], COLUMNS, f"int4 in groups of {COLUMNS}"),
        ([range(-7, 8)], ROWS * COLUMNS, "int4 in one group"),
        ([range(-4, 4)], 128, "int3 in groups of 128"),
        ([range(-2, 3)], 64, "abq5 in groups of 64"),
        ([range(-1, 2)], ROWS * COLUMNS, "ternary in one group"),
        ([range(-16, 16)], 64, "int5 in groups of 64"),
        ([range(-32, 32)], 128, "int6 in groups of 128"),
        ([range(-128, 128)], COLUMNS, f"int8 in groups of {COLUMNS}"),
        ([NF4], 64, "nf4 in groups of 64"),
        ([FP4], 64, "e2m1 in groups of 64"),
        (BITMOD3, 128, "bitmod3 in groups of 128"),
    ],
)
def test_levels_of_every_family_come_back(tables: list[Any], group: int, says: str, dtype: np.dtype[Any]) -> None:
    array = on_levels(tables, group, dtype)
    tensor, notes = recovered(array)
    assert any(says in note for note in notes), notes
    assert np.array_equal(tensor.decode().astype(dtype), array)
    assert tensor.source is not None and tensor.source.exact == "recovered"
    assert tensor.nbytes < array.nbytes


@pytest.mark.parametrize("dtype", STORED)
def test_zero_points_come_back_where_a_side_has_more_levels(dtype: np.dtype[Any]) -> None:
    x = weights().reshape(-1, 64) + 0.03
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    step = np.float16((high - low) / 15).astype(np.float32)[:, None]
    zero = np.rint(-low[:, None] / step)
    array = ((np.clip(np.rint(x / step) + zero, 0, 15) - zero).astype(np.float32) * step).astype(dtype)
    tensor, notes = recovered(array.reshape(ROWS, COLUMNS))
    assert any("uint4 in groups of 64" in note for note in notes), notes
    assert np.array_equal(tensor.decode().astype(dtype), array.reshape(ROWS, COLUMNS))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(
    ("bits", "group", "kind"),
    [(2, 32, F16), (3, 64, BF16), (4, 32, F16), (4, COLUMNS, F32), (5, 128, F16), (6, 64, F16)],
)
def test_offsets_that_are_no_multiples_come_back(
    bits: int, group: int, kind: np.dtype[Any], dtype: np.dtype[Any]
) -> None:
    x, most = weights().reshape(-1, group) + 0.003, (1 << bits) - 1
    least = x.min(1, keepdims=True)
    step, offset = (n.astype(kind).astype(np.float32) for n in ((x.max(1, keepdims=True) - least) / most, least))
    codes = np.clip(np.rint((x - offset) / step), 0, most).astype(np.float32)
    array = (codes * step + offset).astype(dtype).reshape(ROWS, COLUMNS)
    if dtype == kind == F32:  # two roundings to the type of the file
        with pytest.raises(UnsupportedError):
            recovered(array, f"affine{bits}")
        return
    tensor, notes = recovered(array)
    message = {F16: "f16", BF16: "f16", F32: "f32"}[kind]
    where = f"groups of {group}"
    assert any(f"affine{bits} in {where}, scales in {message}" in note for note in notes), notes
    assert np.array_equal(tensor.decode().astype(dtype), array)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("group", "kind"), [(64, F16), (128, BF16), (COLUMNS, F16)])
def test_two_planes_with_two_scales_come_back(group: int, kind: np.dtype[Any], dtype: np.dtype[Any]) -> None:
    random = np.random.default_rng(4)
    codes = random.integers(0, 4, (ROWS * COLUMNS // group, group))
    codes[0], codes[1], codes[2] = 0, codes[1] & 1, codes[2] & 2
    codes[3] = np.minimum(codes[3], 2)  # a group that never has both bits
    first, second = ((random.random((len(codes), 1)) / 50 + 0.01).astype(kind).astype(np.float32) for _ in range(2))
    second[::2] *= np.float32(-0.5)
    array = ((codes & 1) * first + (codes >> 1) * second).astype(np.float32).astype(dtype).reshape(ROWS, COLUMNS)
    tensor, notes = recovered(array)
    assert any(f"planes2 in groups of {group}, scales in" in note for note in notes), notes
    assert np.array_equal(tensor.decode().astype(dtype), array)
    assert len(tensor.terms) == 2


def test_a_group_of_one_number_and_one_that_uses_few_codes_lie_on_lines() -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (ROWS, COLUMNS // 32, 32))
    codes[0, 0], codes[1] = 5, random.integers(0, 10, codes[1].shape)
    codes[2:, :, 0], codes[2:, :, 1], codes[1, :, 0], codes[1, :, 1] = 0, 15, 0, 9
    step = np.float16(random.random((ROWS, COLUMNS // 32, 1)) + 0.5).astype(np.float32)
    offset = np.float16(random.standard_normal(step.shape)).astype(np.float32)
    array = (codes * step + offset).astype(F16).reshape(ROWS, COLUMNS)
    tensor, notes = recovered(array, "affine4,group=32")
    assert np.array_equal(tensor.decode().astype(F16), array), notes


@pytest.mark.parametrize("dtype", STORED)
def test_powers_of_two_and_scales_of_scales_come_back(dtype: np.dtype[Any]) -> None:
    powers = on_levels([FP4], 32, dtype, lambda step: np.float32(2.0 ** np.ceil(np.log2(step))))
    assert any("mxfp4 in groups of 32, scales in e8m0" in note for note in recovered(powers, "mxfp4")[1])
    factor = np.float32(0.02 / 448)

    def rounded(step: np.float32) -> np.float32:
        return np.float32(np.float32(step / factor).astype(ml_dtypes.float8_e4m3fn)) * factor

    array = on_levels([FP4], 16, dtype, rounded)
    tensor, notes = recovered(array)
    assert any("nvfp4 in groups of 16, scales in e4m3" in note for note in notes), notes
    assert np.array_equal(tensor.decode().astype(dtype), array)


def test_float32_that_carries_bfloat16_is_a_rounding_of_bfloat16() -> None:
    array = integers(4, 32, BF16)
    tensor, _ = recovered(array.astype(np.float32))
    assert tensor.dtype == "BF16"
    assert np.array_equal(tensor.decode().astype(BF16), array)


def test_scales_are_float16_where_the_stored_floats_allow_it() -> None:
    assert "scale f16" in _encoding(recovered(integers(4, 32, BF16))[0])


def test_negative_zero_is_a_zero_and_a_last_short_group_is_a_group() -> None:
    array = integers(4, 32, BF16)[:, :200].copy()
    array[array == 0] = -0.0
    tensor, notes = recovered(array)
    assert any("int4 in groups of 32" in note for note in notes)
    assert np.array_equal(tensor.decode().astype(BF16), array)


def test_a_matrix_of_which_one_row_is_on_no_grid_stays_floats_and_the_share_is_told() -> None:
    array = integers(4, 32, F32)
    array[7, 3] += np.float32(1e-5)
    good = integers(4, 32, F32)
    model = recover_model(model_of(damaged=array, good=good), "int4,group=32")
    assert model.tensors["damaged"].source is None and model.tensors["good"].source is not None
    assert any("damaged: 97.92% of its rows lie on int4 in groups of 32" in note for note in model.notes), model.notes


@pytest.mark.parametrize("dtype", STORED)
def test_floats_of_no_grid_are_an_error_that_says_so(dtype: np.dtype[Any]) -> None:
    with pytest.raises(UnsupportedError, match="no weights lie on a grid") as caught:
        recover_model(model_of(weight=weights().astype(dtype)), "auto")
    assert "weight: its sampled rows do not lie on a grid that is known" in str(caught.value.found)
    assert detected(model_of(weight=weights().astype(dtype))) == []


def test_names_choose_the_tensors() -> None:
    model = recover_model(model_of(a=integers(4, 32, BF16), b=integers(4, 32, BF16)), "auto,skip=b")
    assert model.tensors["a"].source is not None and model.tensors["b"].source is None


def test_a_minifloat_of_any_width_is_a_family() -> None:
    levels = [(1 + m / 2) * 2.0**e for e in range(-2, 4) for m in range(2)] + [0.0, 0.125]
    array = on_levels([[*levels, *(-level for level in levels)]], 64, F32)
    assert any("e3m1 in groups of 64" in note for note in recovered(array, "e3m1,group=64")[1])


@pytest.mark.parametrize(
    "text", ["int9", "auto,group=0", "auto,group=wide", "auto,blocks=3", "int4,only=(", "e9m9", ""]
)
def test_what_cannot_be_meant_is_an_argument_error(text: str) -> None:
    with pytest.raises(BadArgumentError):
        parse(text)


def test_what_inspect_says() -> None:
    assert detected(model_of(a=integers(4, 32, BF16))) == [
        "float weights lie on a 4-bit grid of groups of 32 (int4): --recover auto"
    ]


def _encoding(tensor: QTensor) -> str:
    from qdeploy.ir.describe import encoding

    return encoding(tensor)
