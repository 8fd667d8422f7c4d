"""The proof that nothing overflows: sound for what it accepts, and exact at the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import UnsupportedError
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.run import run
from qdeploy.passes.fold import plain_tensor

RNG = np.random.default_rng(6)


def graph(nodes: list[Node], constants: dict[str, np.ndarray], value: Value, *outputs: str) -> Graph:
    output = {name: plain_tensor(array) for name, array in constants.items()}
    return Graph((value,), tuple(Value(n, "I32", ()) for n in outputs), tuple(nodes), (), output)


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def dyadic(m: int = 1 << 30, e: int = 31) -> dict[str, np.ndarray]:
    return {"m": i32(m), "e": i32(e)}


RESCALE: dict[str, Any] = {"lo": -128, "hi": 127, "dtype": "I8"}
NETWORK = [
    Node("IntegerConv", ("x", "w", "b"), ("c",), {"pads": [1, 1, 1, 1], "x_zero": 3}),
    Node("Requantize", ("c", "m", "e"), ("q",), {"lo": -100, "hi": 90, "zero": 5, "dtype": "I8"}),
    Node("MaxPool", ("q",), ("p",), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Node("IntegerSum", ("p",), ("s",), {"axes": [2, 3], "keepdims": 1}),
    Node("IntegerAdd", ("s", "p"), ("a",)),
    Node("IntegerMul", ("a", "p"), ("n",), {"a_zero": -7}),
    Node("Clip", ("n",), ("l",), {"min": -1000, "max": 5000}),
    Node("Reshape", ("l",), ("f",), {"shape": [0, -1]}),
    Node("IntegerLinear", ("f", "v"), ("y",)),
    Node("Relu", ("y",), ("r",)),
    Node("IntegerSqrt", ("r",), ("z",)),
]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(28, 44), st.integers(0, 2**32 - 1))
def test_no_value_leaves_its_interval(m: int, e: int, seed: int):
    rng = np.random.default_rng(seed)
    constants = {
        "w": rng.integers(-128, 128, (4, 2, 3, 3)).astype(np.int8),
        "b": i32(-900, 0, 7, 12345),
        "m": i32(*(1 << 30) + rng.integers(0, m + 1, 4)),
        "e": i32(e, e, e + 1, e + 2),
        "v": rng.integers(-8, 8, (3, 36)).astype(np.int8),
    }
    output = graph(NETWORK, constants, Value("x", "U8", ("batch", 2, 6, 6)), "z")
    bounds = check_ranges(output, {}).values
    extremes = np.where(rng.integers(0, 2, (3, 2, 6, 6)), 255, 0)

    def inside(name: str, x: np.ndarray) -> None:
        low, high = bounds[name]
        assert low <= x.min() and x.max() <= high, name

    run(output, {"x": extremes}, {}, {}, inside)


@pytest.mark.parametrize("bias, fits", [(0, True), (127, True), (128, False)])
def test_an_accumulator_fits_exactly_up_to_int32(bias: int, fits: bool):
    weight = np.full((1, 66052), 127, np.int8)  # 127 * 255 * 66052 + bias reaches 2^31 at a bias of ...
    room = (1 << 31) - 1 - int(np.abs(weight.astype(np.int64)).sum()) * 255
    output = graph(
        [Node("IntegerLinear", ("x", "w", "b"), ("y",), name="fc")],
        {"w": weight, "b": i32(room - 127 + bias)},
        Value("x", "U8", ("batch", 66052)),
        "y",
    )
    if fits:
        assert check_ranges(output, {}).values["y"][1] <= (1 << 31) - 1
        return
    with pytest.raises(UnsupportedError, match="accumulator could overflow") as error:
        check_ranges(output, {})
    assert "fc" in error.value.where and error.value.found == str(1 << 31)


@pytest.mark.parametrize(
    "node, constants, what",
    [
        (Node("Requantize", ("x", "m", "e"), ("y",), RESCALE | {"left_shift": 20}), dyadic(), "product"),
        (
            Node("Requantize", ("x", "m", "e"), ("y",), RESCALE | {"rounding": "tflite_double"}),
            dyadic(e=1),
            "left shift",
        ),
        (Node("IntegerAdd", ("x", "b"), ("y",)), {"b": i32(1)}, "sum"),
        (Node("IntegerMul", ("x", "b"), ("y",)), {"b": i32(2)}, "product"),
        (Node("IntegerSum", ("x",), ("y",), {"axes": [1]}), {}, "sum"),
        (Node("IntegerMatMul", ("x", "b"), ("y",)), {"b": i32(1, 1)[:, None]}, "accumulator"),
        (Node("IntegerLayerNorm", ("x",), ("y",)), {}, "squares"),
        (Node("IntegerGelu", ("x",), ("y",), {"b": 1, "c": 4}), {}, "GELU"),
    ],
)
def test_everything_that_could_overflow_is_an_error(node: Node, constants: dict[str, np.ndarray], what: str):
    with pytest.raises(UnsupportedError, match=what):
        check_ranges(graph([node], constants, Value("x", "I32", ("batch", 2)), "y"), {})


def test_a_sum_over_a_free_axis_reports_how_far_it_reaches():
    nodes = [Node("IntegerMatMul", ("x", "x"), ("y",), {"transpose_b": 0})]
    output = graph(nodes, {}, Value("x", "U8", ("batch", "tokens", "tokens")), "y")
    assert check_ranges(output, {}).limits == {"tokens": ((1 << 31) - 1) // (255 * 255)}


def test_a_float_row_has_no_place():
    with pytest.raises(UnsupportedError, match="does not know"):
        check_ranges(graph([Node("Exp", ("x",), ("y",))], {}, Value("x", "U8", ("batch",)), "y"), {})
