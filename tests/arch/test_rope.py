"""Rotary frequencies: each variant against vectors that transformers 5.23.0 computed, and against its formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.arch.config import Config
from qdeploy.arch.rope import Rope, read_rope
from qdeploy.errors import BadFileError, UnsupportedError

# ROPE_INIT_FUNCTIONS[kind] of transformers 5.23.0 (torch 2.13.0, CPU) on a LlamaConfig with hidden_size 64, 4 heads and
# max_position_embeddings 131072: rope_parameters, inv_freq, attention factor.
REFERENCE: dict[str, tuple[dict[str, Any], list[float], float]] = {
    "default": (
        {},
        [
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.03162277862429619,
            0.009999999776482582,
            0.003162277862429619,
            0.0010000000474974513,
            0.0003162277862429619,
        ],
        1.0,
    ),
    "linear": (
        {"factor": 2.5},
        [
            0.4000000059604645,
            0.12649109959602356,
            0.03999999910593033,
            0.012649111449718475,
            0.003999999724328518,
            0.0012649111449718475,
            0.0004000000189989805,
            0.0001264911115868017,
        ],
        1.0,
    ),
    "dynamic": (
        {"factor": 2.0},
        [
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.03162277862429619,
            0.009999999776482582,
            0.003162277862429619,
            0.0010000000474974513,
            0.0003162277862429619,
        ],
        1.0,
    ),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 8192,
        },
        [
            1.0,
            0.193922758102417,
            0.03760603070259094,
            0.00729266507551074,
            0.0005248460220173001,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06,
        ],
        1.0,
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000.0},
        [
            1.0,
            0.17782793939113617,
            0.03162277862429619,
            0.004217559937387705,
            0.0005000000237487257,
            4.4456985051510856e-05,
            7.905693564680405e-06,
            1.405853367941745e-06,
        ],
        1.138629436111989,
    ),
    "yarn mscale": (
        {
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
        [
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.023914724588394165,
            0.005124999675899744,
            0.0008498621755279601,
            2.499999936844688e-05,
            7.905694474175107e-06,
        ],
        1.0857263992561355,
    ),
    "yarn untruncated": (
        {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False, "rope_theta": 150000.0},
        [
            1.0,
            0.22541800141334534,
            0.05081327259540558,
            0.006794959306716919,
            0.0004564839182421565,
            1.818833698052913e-05,
            4.099978468730114e-06,
            9.242089618055616e-07,
        ],
        1.3465735902799727,
    ),
    "longrope": (
        {
            "short_factor": [1 + 0.1 * i for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
            "original_max_position_embeddings": 4096,
        },
        [
            1.0,
            0.2874797582626343,
            0.0833333358168602,
            0.024325214326381683,
            0.0071428571827709675,
            0.0021081853192299604,
            0.0006249999860301614,
            0.0001860163320088759,
        ],
        1.1902380714238083,
    ),
}
CONTEXT = 131072


def read(fields: dict[str, Any], head_dim: int = 16, context: int = CONTEXT) -> Rope:
    return read_rope(Config(fields), head_dim, context)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_every_variant_gives_the_vector_of_transformers(name: str, spelling: str) -> None:
    fields, expected, factor = REFERENCE[name]
    if spelling == "rope_parameters":  # transformers 5
        rope = read({"rope_parameters": {"rope_theta": 10000.0, "rope_type": name.split()[0], **fields}})
    else:  # transformers 4: theta beside it, and "type" in old files
        scaling = {"type": name.split()[0], **{k: v for k, v in fields.items() if k != "rope_theta"}}
        rope = read({"rope_theta": fields.get("rope_theta", 10000.0), "rope_scaling": scaling})
    np.testing.assert_allclose(rope.inv_freq, np.array(expected, np.float32), rtol=1.2e-7, atol=0)
    assert rope.inv_freq.dtype == np.float32 and rope.rotary_dim == 16
    assert rope.factor == pytest.approx(factor, rel=1e-12)


@given(st.integers(1, 128), st.floats(2.0, 1e7), st.floats(1.0, 64.0))
@settings(deadline=None, max_examples=60)
def test_linear_is_the_formula(half: int, theta: float, factor: float) -> None:
    rope = read({"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}}, head_dim=2 * half)
    exact = [theta ** (-i / half) / factor for i in range(half)]
    np.testing.assert_allclose(rope.inv_freq, exact, rtol=2e-6)


@given(st.sampled_from([64, 96, 128]), st.floats(1e3, 1e6), st.floats(1.5, 32.0))
@settings(deadline=None, max_examples=60)
def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between(dim: int, theta: float, factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = read({"rope_theta": theta, "rope_scaling": scaling}, head_dim=dim)
    for i, result in enumerate(rope.inv_freq.tolist()):
        plain = theta ** (-2 * i / dim)
        turns = 8192 * plain / (2 * math.pi)  # within the original context
        part = min(max((turns - 1) / 3, 0), 1)
        assert result == pytest.approx(plain * (part + (1 - part) / factor), rel=1e-5)


def test_longer_sequences_have_frequencies_of_their_own() -> None:
    fields = REFERENCE["longrope"][0]
    rope = read({"rope_scaling": {"rope_type": "longrope", **fields}})
    assert rope.long is not None and rope.long["beyond"] == 4096
    ratio = rope.inv_freq / rope.long["inv_freq"]
    expected = np.array(fields["long_factor"]) / np.array(fields["short_factor"])
    np.testing.assert_allclose(ratio, expected, rtol=1e-6)
    dynamic = read({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    assert dynamic.long is not None and dynamic.long["factor"] == 2.0
    assert read({}).long is None


def test_a_context_beside_the_dictionary_goes_first() -> None:
    inside = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    outside = read({"rope_scaling": inside, "original_max_position_embeddings": 4096})
    assert (
        outside.inv_freq.tolist()
        == read({"rope_scaling": {**inside, "original_max_position_embeddings": 4096}}).inv_freq.tolist()
    )
    assert outside.inv_freq.tolist() != read({"rope_scaling": inside}).inv_freq.tolist()


def test_part_of_a_head_is_rotated() -> None:
    for fields in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        rope = read(fields)
        assert rope.rotary_dim == 8
        np.testing.assert_allclose(rope.inv_freq, [10000.0 ** (-i / 4) for i in range(4)], rtol=1e-6)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "su"},
        {"type": "mrope", "mrope_section": [2, 2, 4]},
        {"rope_type": "default", "mrope_section": [8]},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": "longrope", "short_mscale": 1.2},
    ],
)
def test_an_unknown_kind_or_field_is_refused_by_its_name(scaling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read({"rope_scaling": scaling})
    assert "rope_scaling" in caught.value.where


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        {"rope_scaling": [1]},
        {"rope_theta": -1},
        {"rope_theta": 1},
        {"partial_rotary_factor": 2.0},
        {"partial_rotary_factor": 0.2},
        {"rope_theta": True},
        {"original_max_position_embeddings": 0},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [0.0] * 8, "long_factor": [1.0] * 8}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
    ],
)
def test_a_wrong_number_is_an_error_that_names_its_field(fields: dict[str, Any]) -> None:
    with pytest.raises(BadFileError) as caught:
        read(fields)
    assert "config.json: " in caught.value.where
