"""Round to nearest: exact against its definition, no worse with clip search, the same in any slabs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qdeploy
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir.decode import read_codes
from qdeploy.ir.tensor import Buffer, QTensor, plain
from qdeploy.quantize import parse
from qdeploy.quantize.contract import Grid, Weight
from qdeploy.quantize.nearest import Rtn

DTYPES = {"F32": ("f32", np.float32), "F16": ("f16", np.float16), "BF16": ("bf16", ml_dtypes.bfloat16)}
TINY = Path(__file__).resolve().parents[2] / "examples/models"


def weight(shape: tuple[int, int], dtype: str, seed: int = 0) -> QTensor:
    values = (np.random.default_rng(seed).standard_t(4, shape) * 0.02).astype(DTYPES[dtype][1])
    return plain(Buffer.of("data", values, dtype), DTYPES[dtype][0])


def codes_of(tensor: QTensor) -> np.ndarray:
    return read_codes(tensor.terms[0].values, 0, tensor.shape[0])


def by_definition(x: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and codes, group by group, as the module's first sentences say."""
    codes = np.zeros(x.shape, np.int64)
    scales = np.zeros((x.shape[0], -(-x.shape[1] // group)), np.float16)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], group):
            part = x[row, start : start + group]
            extreme = part.max() if part.max() >= -part.min() else part.min()
            scale = np.float16(extreme * np.float32(-1 / 2 ** (bits - 1)))
            inverse = np.float32(1) / np.float32(scale) if scale else np.float32(0)
            level = np.clip(np.rint(part * inverse), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            codes[row, start : start + group] = level.astype(int) + 2 ** (bits - 1)
            scales[row, start // group] = scale
    return codes, scales


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from([1, 7, 16, 32, 128, 4096]),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 9),
    st.integers(1, 300),
    st.integers(0, 99),
)
def test_codes_and_scales_are_those_of_the_definition(bits, group, dtype, rows, width, seed):
    tensor = weight((rows, width), dtype, seed)
    output = Rtn("none").quantize(Weight("w", tensor), (), Grid(bits, group))
    codes, scales = by_definition(tensor.decode(), bits, min(group, width))
    np.testing.assert_array_equal(codes_of(output), codes)
    np.testing.assert_array_equal(output.terms[0].values.scale.values.data[0].read(), scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_is_at_most_one_step(bits: int):
    tensor = weight((64, 256), "BF16")
    output = Rtn("none").quantize(Weight("w", tensor), (), Grid(bits, 64))
    scale = np.repeat(np.abs(output.terms[0].values.scale.values.data[0].read().astype(np.float32)), 64, 1)
    error = np.abs(output.decode() - tensor.decode())
    assert (error <= scale * 1.01 + 1e-9).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_never_makes_a_group_worse_and_helps_in_sum(bits: int):
    tensor = weight((64, 512), "F32")
    x = tensor.decode()
    error = {}
    for clip in ("none", "search"):
        output = Rtn(clip).quantize(Weight("w", tensor), (), Grid(bits, 128)).decode()
        error[clip] = np.square(output - x).reshape(64, 4, 128).sum(-1)
    assert (error["search"] <= error["none"] * (1 + 1e-3)).all()
    assert error["search"].sum() < 0.97 * error["none"].sum()


@pytest.mark.parametrize("clip", ["none", "search"])
@pytest.mark.parametrize("first", ["codes", "scale"])
def test_slabs_in_any_order_give_the_whole(clip: str, first: str):
    tensor = weight((40, 96), "BF16")
    whole = Rtn(clip).quantize(Weight("w", tensor), (), Grid(4, 32))
    parts = Rtn(clip).quantize(Weight("w", tensor), (), Grid(4, 32))
    buffers = {"codes": lambda t: t.terms[0].values.data[0], "scale": lambda t: t.terms[0].values.scale.values.data[0]}
    for key in sorted(buffers, key=lambda k: k != first):
        pieces = [buffers[key](parts).read(a, min(a + 7, 40)) for a in range(0, 40, 7)]
        np.testing.assert_array_equal(np.concatenate(pieces), buffers[key](whole).read())


def test_zero_groups_and_huge_values_are_kept_in_range():
    values = np.zeros((2, 64), np.float32)
    values[1, 3] = 3e38
    tensor = plain(Buffer.of("data", values, "F32"), "f32")
    output = Rtn("none").quantize(Weight("w", tensor), (), Grid(4, 32)).decode()
    assert np.isfinite(output).all()
    assert (output[0] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_weight_that_is_no_number_is_refused(value: float, dtype: str):
    values = np.ones((2, 64), DTYPES[dtype][1])
    values[1, 5] = value
    tensor = plain(Buffer.of("data", values, dtype), DTYPES[dtype][0])
    with pytest.raises(BadFileError, match="not a number"):
        Rtn("none").quantize(Weight("layer.w", tensor), (), Grid(4, 32)).decode()


@pytest.mark.parametrize(
    "text",
    ["rtm:int4", "rtn:int9", "rtn:int4,group=0", "rtn:int4,clip=maybe", "rtn:int4,skip=(", "rtn:int4,colour=red"],
)
def test_a_spec_that_does_not_parse_says_what_is_allowed(text: str):
    with pytest.raises(BadArgumentError) as caught:
        parse(text)
    assert caught.value.allowed


def test_quantizing_a_quantized_source_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="already"):
        qdeploy.convert(TINY / "tiny-llama-gptq", tmp_path / "out", to="ir", quantize="rtn:int4")


def test_the_float_head_of_a_quantized_model_can_be_quantized(tmp_path: Path):
    source = TINY / "tiny-llama-gptq"
    report = qdeploy.convert(source, tmp_path / "out", to="ir", quantize="rtn:int4,group=32,only=lm_head")
    assert [name for name, row in report["tensors"].items() if "snr_db" in row] == ["lm_head.weight"]


def test_a_float_model_is_quantized_and_its_loss_reported(tmp_path: Path):
    report = qdeploy.convert(TINY / "tiny-llama", tmp_path / "out", to="ir", quantize="rtn:int8,group=32,skip=layers.0")
    losses = {name: row["snr_db"] for name, row in report["tensors"].items() if "snr_db" in row}
    assert losses
    assert all(30 < snr < 60 for snr in losses.values())
    assert not [name for name in losses if "layers.0" in name]
    assert report["tensors"]["lm_head.weight"]["encoding"].startswith("uint8 g32")
