"""Layers with a state of fixed size: what they compute, and that a sequence in parts is the sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadArgumentError
from qdeploy.ir.recurrent import causal_conv, gated_delta, selective_scan

RANDOM = np.random.default_rng(5)
T, HEADS = 7, 4


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


TOKENS: dict[str, tuple[Callable[..., Any], list[np.ndarray], list[np.ndarray], dict[str, Any]]] = {
    "conv": (causal_conv, [floats(2, T, 3)], [floats(3, 1, 4), floats(3)], {"activation": np.tanh}),
    "delta": (
        gated_delta,
        [floats(2, T, 2 * 5), floats(2, T, 2 * 5), floats(2, T, HEADS * 3), floats(2, T, HEADS), floats(2, T, HEADS)],
        [floats(HEADS), floats(HEADS)],
        {"heads": HEADS, "key_heads": 2},
    ),
    "delta by channel": (
        gated_delta,
        [floats(2, T, HEADS * 5) for _ in range(2)]
        + [floats(2, T, HEADS * 3), floats(2, T, HEADS * 5), floats(2, T, HEADS)],
        [floats(1, 1, HEADS, 1), floats(HEADS * 5)],
        {"heads": HEADS, "key_heads": HEADS},
    ),
    "scan": (
        selective_scan,
        [floats(2, T, HEADS * 3), floats(2, T, HEADS), floats(2, T, 2 * 5), floats(2, T, 2 * 5)],
        [floats(HEADS), floats(HEADS), floats(HEADS)],
        {"heads": HEADS, "groups": 2, "least": 0.1, "most": 1.5},
    ),
}


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_sequence_in_parts_gives_the_numbers_of_the_sequence(case: str, cut: int):
    function, tokens, stored, attrs = TOKENS[case]
    whole, state = function(*tokens, *stored, **attrs)
    first, past = function(*(x[:, :cut] for x in tokens), *stored, **attrs)
    second, after = function(*(x[:, cut:] for x in tokens), *stored, **attrs, past=past)
    np.testing.assert_array_equal(np.concatenate((first, second), axis=1), whole)
    np.testing.assert_array_equal(after[0], state[0])


def test_a_convolution_meets_the_token_with_its_last_weight():
    x = np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1)
    out, state = causal_conv(x, np.array([[[100, 10, 1]]], np.float32))
    assert out[0, :, 0].tolist() == [1, 12, 123, 234]
    assert state[0].tolist() == [[[3, 4]]]


def test_a_delta_rule_that_writes_in_full_gives_back_what_was_written():
    key, value = np.zeros((1, 2, 2), np.float32), np.array([[[3, 4], [5, 6]]], np.float32)
    key[0, 0, 0] = key[0, 1, 0] = 2  # the same key twice: the second value takes the place of the first
    always, never = np.full((1, 2, 1), 50, np.float32), np.full((1, 2, 1), -50, np.float32)
    out, state = gated_delta(
        key, key, value, never, always, np.zeros(1, np.float32), np.zeros(1, np.float32), heads=1, key_heads=1
    )
    np.testing.assert_allclose(out[0] * np.sqrt(2), value[0], rtol=1e-5)
    np.testing.assert_allclose(state[0][0, 0], [[5, 6], [0, 0]], atol=1e-5)


def test_a_state_space_without_memory_is_a_product():
    x, dt, b, c = floats(1, T, 2), np.full((1, T, 1), 60, np.float32), floats(1, T, 3), floats(1, T, 3)
    fast = np.full(1, 5, np.float32)  # exp(-exp(5) * 60) is 0
    out, _ = selective_scan(x, dt, b, c, fast, np.zeros(1, np.float32), np.zeros(1, np.float32), heads=1, groups=1)
    np.testing.assert_allclose(out, 60 * x * (b * c).sum(axis=-1, keepdims=True), rtol=1e-4)


def test_heads_that_no_groups_divide_are_refused():
    _, tokens, stored, attrs = TOKENS["scan"]
    with pytest.raises(BadArgumentError):
        selective_scan(*tokens, *stored, **(attrs | {"groups": 3}))
