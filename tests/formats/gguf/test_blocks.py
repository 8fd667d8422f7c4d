"""Every block type against the dequantizer of the gguf package, and back to its bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.formats.gguf.blocks import BLOCKS, Block
from qdeploy.ir import rules
from qdeploy.ir.tensor import ArrayRows, Codes, QTensor, Term, buffers

TYPES = sorted(BLOCKS)
PERMUTED = [name for name in TYPES if isinstance(BLOCKS[name], Block)]
WITHOUT_MINUS_ZERO = ("MXFP4", "NVFP4")  # ggml holds their codes as integers


def random_blocks(name: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks, BLOCKS[name].size), dtype=np.uint8)
    if name == "MXFP4":
        raw[..., 0] %= 255  # 255 is not a number
    return raw.reshape(rows, -1)


def described(name: str, raw: np.ndarray) -> QTensor:
    block = BLOCKS[name]
    shape = (len(raw), raw.shape[1] // block.size * block.elements)
    output = dict(zip(block.keys, map(ArrayRows, block.unpack(raw)), strict=True))
    return QTensor(shape, "F32", (Term(block.codes(shape, output)),))


def dequantized(name: str, raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", TYPES)
def test_numbers_and_sizes_are_those_of_the_format(name):
    kind, block = gguf.GGMLQuantizationType[name], BLOCKS[name]
    assert block.number == kind
    assert (block.elements, block.size) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("name", PERMUTED)
def test_every_bit_of_a_block_belongs_to_exactly_one_field(name):
    block = BLOCKS[name]
    places = np.concatenate([part.bits.reshape(-1) for part in block.parts.values()])
    assert np.array_equal(np.sort(places), np.arange(block.size * 8))


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 7), blocks=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), cut=st.data())
def test_any_bytes_decode_as_ggml_decodes_them(name, rows, blocks, seed, cut):
    raw = random_blocks(name, rows, blocks, seed)
    tensor, want = described(name, raw), dequantized(name, raw)
    rules.check(tensor, name)
    result = tensor.decode()
    assert np.array_equal(result, want, equal_nan=True)
    numbers = ~np.isnan(want)
    if name not in WITHOUT_MINUS_ZERO:
        assert np.array_equal(np.signbit(result[numbers]), np.signbit(want[numbers]))
    start = cut.draw(st.integers(0, rows - 1))
    stop = cut.draw(st.integers(start, rows))
    assert np.array_equal(tensor.decode(slice(start, stop)), want[start:stop], equal_nan=True)


@pytest.mark.parametrize("name", PERMUTED)
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 7), blocks=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_come_back_and_take_no_more_room(name, rows, blocks, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks * BLOCKS[name].size), dtype=np.uint8)
    fields = BLOCKS[name].unpack(raw)
    assert np.array_equal(BLOCKS[name].pack(*fields), raw)
    assert sum(field.nbytes for field in fields) == raw.nbytes


@pytest.mark.parametrize("name", TYPES)
def test_buffers_have_the_shapes_that_they_are_described_with(name):
    raw = random_blocks(name, 3, 4, 1)
    fields = dict(zip(BLOCKS[name].keys, BLOCKS[name].unpack(raw), strict=True))
    for buffer in buffers(described(name, raw)):
        if buffer.key in fields:
            assert (buffer.shape, buffer.read(1, 3).shape[0]) == (fields[buffer.key].shape, 2)
            assert BLOCKS[name].field(raw, buffer.key).tobytes() == fields[buffer.key].tobytes()


def test_pieces_larger_than_the_cache_are_the_same():
    raw = random_blocks("Q3_K", 3, 3000, 5)  # several pieces, the last one not full
    whole = BLOCKS["Q3_K"].unpack(raw)
    parts = [BLOCKS["Q3_K"].unpack(raw[i : i + 1]) for i in range(3)]
    for i, field in enumerate(whole):
        assert np.array_equal(field.view(np.uint8), np.concatenate([part[i] for part in parts]).view(np.uint8))
    assert np.array_equal(BLOCKS["Q3_K"].pack(*whole), raw)


def test_ternary_bytes_come_back_where_an_encoder_makes_them():
    codes = np.random.default_rng(2).integers(-1, 2, (6, 1024)).astype(np.float32)
    raw = gguf.quants.quantize(codes, gguf.GGMLQuantizationType.TQ1_0)
    block = BLOCKS["TQ1_0"]
    assert np.array_equal(block.pack(*block.unpack(raw)), raw)
    every = np.arange(256, dtype=np.uint8).repeat(54).reshape(256, 54)
    back = block.pack(*block.unpack(every))
    assert int((back[:, 0] != every[:, 0]).sum()) == 13  # 243 of 256 bytes are a number's
    assert np.array_equal(block.field(back, "codes"), block.field(every, "codes"))


def test_the_scale_that_ocp_reserves_is_not_a_number():
    raw = random_blocks("MXFP4", 1, 2, 3)
    raw[0, 0] = 255
    result = described("MXFP4", raw).decode()
    assert np.isnan(result[0, :32]).all()
    assert not np.isnan(result[0, 32:]).any()


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q2_K"])
def test_stored_scales_and_minima_are_kept_as_they_are(name):
    raw = random_blocks(name, 2, 2, 4)
    values = described(name, raw).terms[0].values
    at = {"Q2_K": 80}.get(name, 0)
    stored = raw.reshape(2, 2, -1)[..., at : at + 4].copy().view("<f2")  # d and dmin
    assert isinstance(values, Codes)
    for i, param in enumerate((values.scale, values.offset)):
        assert param.values.scale.values.data[0].read().tobytes() == stored[..., i].tobytes()
