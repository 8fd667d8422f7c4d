"""Networks of integers in ONNX: strict is exact on ONNX Runtime and holds no float; fast is one code off at most."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_integers import Net, codes, computed, is_exact, lowered, worst_code

import qdeploy
from qdeploy.backends.onnx import BACKEND
from qdeploy.backends.onnx.integer.proof import prove
from qdeploy.calibrate.network import Integers, integer_network
from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run

ROUNDINGS = ("half_up", "half_even", "half_away", "tflite_double")


def residual(rounding: str = "half_up", dtype: str = "U8", stream: str = "I16") -> Net:
    """A residual block with a classifier: one stream of 16 bits, or sums of 8-bit codes at a common scale."""
    net = Net((dtype, ("batch", 3, 12, 12)))
    how: dict[str, Any] = {"rounding": rounding}
    zero = 9 if dtype == "U8" else -7
    first = net.requantize(net.layer("IntegerConv", "x", 16, 3, 3, 3, pads=[1] * 4, x_zero=zero), 2**-9, 16, **how)
    second = net.layer("IntegerConv", first, 16, 16, 3, 3, pads=[1] * 4)
    if stream == "I16":
        sides = [net.requantize(second, 2**-5, 16, "I16", **how), net.requantize(first, 90.0, dtype="I16", **how)]
    else:
        codes_ = net.requantize(second, 2**-11, 16, "I8", zero=-9, **how)
        sides = [
            net.requantize(codes_, 3000.0, dtype="I32", x_zero=-9, **how),
            net.requantize(first, 2000.0, dtype="I32", **how),
        ]
    total = net.add("IntegerAdd", *sides)
    third = net.requantize(total, 2**-9 if stream == "I16" else 2**-12, lo=3, hi=250, **how)
    pooled = net.add("IntegerSum", third, axes=[2, 3], keepdims=0)
    flat = net.requantize(pooled, 1 / 80, **how)
    net.last = net.layer("IntegerLinear", flat, 10, 16)  # type: ignore[attr-defined]
    return net


@pytest.mark.parametrize("dtype", ["U8", "I8"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_residual_network_is_exact_with_every_rounding(rounding: str, dtype: str):
    net = residual(rounding, dtype)
    proto = is_exact(net.model(net.last, "v1", "v3"))  # type: ignore[attr-defined]
    assert {n.domain for n in proto.graph.node} == {""}


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_convolutions_of_every_kind_are_exact(layout: str, dtype: str):
    first = layout == "NCHW"
    net = Net((dtype, ("batch", 8, 9, 10) if first else ("batch", 9, 10, 8)))
    zero = {"U8": 3, "I8": -128, "I16": 0}[dtype]
    shape = [(6, 8, 3, 3), (8, 1, 3, 3), (8, 4, 1, 3), (4, 8, 3, 3)]
    how: list[dict[str, Any]] = [
        {"pads": [0, 1, 1, 2], "strides": [2, 1]},
        {"group": 8, "pads": [1] * 4},
        {"group": 2, "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ]
    for s, attrs in zip(shape, how, strict=True):
        s = s if first else (s[0], *s[2:], s[1])
        net.layer("IntegerConv", "x", *s, x_zero=zero, layout=layout, **attrs)
    is_exact(net.model(*(n.outputs[0] for n in net.nodes)))


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16", "I32"])
def test_pooling_and_means_are_exact(dtype: str):
    net = Net((dtype, ("batch", 4, 9, 11)))
    for rounding in ("floor", "half_away"):
        net.add("IntegerAveragePool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], rounding=rounding)
        net.add("IntegerAveragePool", "x", kernel_shape=[2, 3], auto_pad="SAME_LOWER", rounding=rounding, lo=0, hi=100)
        net.add("IntegerAveragePool", "x", kernel_shape=[9, 11], layout="NCHW", rounding=rounding)
        net.add("IntegerAveragePool", "x", kernel_shape=[2, 3], layout="NHWC", pads=[1, 1, 0, 0], rounding=rounding)
        net.add("IntegerMean", "x", axes=[2, 3], rounding=rounding)
    net.add("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    net.add("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 1])
    net.add("IntegerSum", "x", axes=[-1], keepdims=0)
    is_exact(net.model(*(n.outputs[0] for n in net.nodes)))


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16", "I32"])
def test_moves_limits_and_sums_are_exact(dtype: str):
    net = Net((dtype, ("batch", 4, 6)), (dtype, ("batch", 4, 6)))
    joined = net.add("Concat", "x", "x1", axis=1)
    padded = net.add(
        "Pad",
        joined,
        net.constant(np.array([0, 1, 2, 0, 0, 1])),
        net.constant(np.array(7, {"U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32}[dtype])),
    )
    net.add("Slice", padded, starts=[1, 5], ends=[9, 0], axes=[1, 2], steps=[2, -2])
    net.add("Reshape", net.add("Transpose", padded, perm=[0, 2, 1]), shape=[0, -1])
    net.add("Clip", net.add("Relu", joined), max=90)
    net.add("Flatten", net.add("Unsqueeze", "x", axes=[1]))
    net.add("IntegerAdd", "x", "x1")
    net.add("IntegerMul", "x", "x1", a_zero=3, b_zero=-2) if dtype != "I32" else None
    is_exact(net.model(*(n.outputs[0] for n in net.nodes)))


@pytest.mark.parametrize("types", [("U8", "I8"), ("I8", "I8"), ("I16", "U8")])
def test_products_of_activations_are_exact(types: tuple[str, str]):
    net = Net((types[0], ("batch", 2, 5, 7)), (types[1], ("batch", 2, 4, 7)))
    net.add("IntegerMatMul", "x", "x1", a_zero=0 if types[0] == "I16" else 5, b_zero=2, transpose_b=1)
    net.add("IntegerMatMul", "x", net.add("Transpose", "x1", perm=[0, 1, 3, 2]))
    is_exact(net.model("v0", "v2"))


def test_functions_are_exact():
    net = Net(("I16", ("batch", 2, 5, 40)), ("I64", ("batch", 40)), ("I8", ("batch", 9)))
    exp: dict[str, Any] = {"ln2": 354, "b": 1386, "c": 731926, "left": 11}
    mask = net.add("Unsqueeze", "x1", axes=[1, 2])
    results = [
        net.add("IntegerSoftmax", "x", mask, bits=8, hi=255, dtype="U8", **exp),
        net.add("IntegerSoftmax", "x", axis=2, bits=15, hi=32767, dtype="I16", **exp),
        net.add("IntegerExp", net.add("Clip", "x", max=0), **exp),
        net.add("IntegerGelu", "x", b=5000, c=55_000_000, shift=12),
        net.add("IntegerSqrt", net.add("Relu", "x")),
    ]
    weight = net.constant(net.rng.integers(-16384, 16384, 40).astype(np.int32))
    bias = net.constant(net.rng.integers(-99999, 99999, 40).astype(np.int32))
    for shift in (0, 3):
        results += [
            net.add("IntegerLayerNorm", "x", weight, bias, x_shift=shift, epsilon=777, shift=17),
            net.add("IntegerRMSNorm", "x", weight, x_shift=shift, shift=17),
            net.add("IntegerRMSNorm", "x", x_shift=shift),
        ]
    table = net.constant(net.rng.integers(0, 256, 256).astype(np.uint8))
    results += [net.add("Lookup", "x2", table), net.add("Positions", "x1")]
    is_exact(net.model(*results))


@pytest.mark.parametrize("scale", [0.01, 0.09, 0.7])
def test_the_softmax_of_tflite_is_exact(scale: float):
    real = scale * 2**26
    left = int(np.ceil(np.log2(real)))
    net = Net(("I8", ("batch", 12)))
    factor = {
        "multiplier": int(real / 2.0**left * 2**31) - 1,
        "left_shift": left,
        "diff_min": -int(31 / scale * 32 / 31),
    }
    inputs = np.random.default_rng(1).integers(-128, 128, (60, 12)).astype(np.int8)
    inputs[0], inputs[1] = 5, [127, *[-128] * 11]
    is_exact(net.model(net.add("TfliteSoftmax", "x", **factor)), {"x": inputs})


def test_the_networks_of_tflite_are_exact(testdata: Path):
    for file in ("pretrainedResnet_quant", "kws_ref_model", "ad01_int8"):
        model = qdeploy.load(testdata / f"mlperf_tiny/{file}.tflite")
        is_exact(model)
        worst, _ = worst_code(model, codes(model))
        assert worst <= 1, file


def test_roots_are_exact_wherever_they_could_be_one_off():
    roots = np.array([0, 1, 2, 3, 46340, 3, 1000, 30000], np.int64)
    near = np.unique(np.clip(np.concatenate([roots**2 + d for d in (-1, 0, 1)]), 0, 2**31 - 1)).astype(np.int32)
    net = Net(("I32", ("batch",)))
    is_exact(net.model(net.add("IntegerSqrt", "x"), types=("I32",)), {"x": near})


# ---- rescaling, against rational numbers


def nearest(x: int, m: int, e: int, rounding: str) -> int:
    value = Fraction(x * m, 2**e)
    floor = value.numerator // value.denominator
    rest = value - floor
    if rest != Fraction(1, 2):
        return floor + (rest > Fraction(1, 2))
    return {"half_up": floor + 1, "half_even": floor + floor % 2, "half_away": floor + (value > 0)}[rounding]


def twice(x: int, m: int, e: int) -> int:
    left, right = max(31 - e, 0), max(e - 31, 0)
    high = nearest(x << left, m, 31, "half_up")
    return nearest(high, 1, right, "half_away") if right else high


FACTOR = st.tuples(st.one_of(st.just(0), st.just(2**30), st.integers(2**30, 2**31 - 1)), st.integers(1, 62))
CASE = st.tuples(st.integers(-(2**31), 2**31 - 1), FACTOR, st.integers(-200, 200))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=15, deadline=None)
@given(cases=st.lists(CASE, min_size=1, max_size=40), zero=st.integers(-100, 100), alone=st.booleans())
def test_rescaling_is_that_of_rational_numbers(rounding: str, cases: list[Any], zero: int, alone: bool):
    """Random numbers, and numbers around ties: x such that x m / 2^e is near a half."""
    xs, ms, es = [], [], []
    for x, (m, e), near in cases:
        least = 0 if rounding != "tflite_double" or e > 31 else 32 - e
        tie = near * 2 ** max(e - 31, 0) if m == 2**30 else x
        xs.append(int(np.clip(tie, -(2**31), 2**31 - 1)) >> least)
        ms.append(m)
        es.append(e)
    if alone:
        ms, es = [ms[0]] * len(ms), [es[0]] * len(es)
        xs = [x >> max(0, 32 - es[0]) if rounding == "tflite_double" else x for x in xs]
    net = Net(("I32", ("batch", len(xs))))
    factors = [net.constant(np.array(part[:1] if alone else part, np.int32)) for part in (ms, es)]
    for dtype, lo, hi in (("I32", -(2**31), 2**31 - 1), ("I8", -128, 127)):
        net.add("Requantize", "x", *factors, rounding=rounding, zero=zero, lo=lo, hi=hi, dtype=dtype, axis=-1)
    model, inputs = net.model("v0", "v1", types=("I32", "I8")), {"x": np.array([xs], np.int32)}
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = computed(lowered(model, "strict", Path(folder)), inputs)
    exact = [
        twice(*case) if rounding == "tflite_double" else nearest(*case, rounding)
        for case in zip(xs, ms, es, strict=True)
    ]
    wanted = [n + zero for n in exact]
    assert result["v0"][0].tolist() == [min(max(n, -(2**31)), 2**31 - 1) for n in wanted]
    assert result["v1"][0].tolist() == [min(max(n, -128), 127) for n in wanted]


# ---- fast


@pytest.mark.parametrize("dtype", ["U8", "I8"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_fast_is_one_code_off_at_most_and_runs_on_8_bit_kernels(rounding: str, dtype: str):
    net = residual(rounding, dtype, stream="I32")
    model = net.model(net.last)  # type: ignore[attr-defined]
    worst, proto = worst_code(model, codes(model, batch=3))
    assert worst <= 1
    kinds = Counter(n.op_type for n in proto.graph.node)
    assert kinds["QLinearConv"] == 2 and kinds["QLinearAdd"] == 1 and not kinds["ConvInteger"]


def test_fast_takes_streams_of_16_bits_pooling_and_other_layouts():
    net = residual()
    worst, _ = worst_code(net.model(net.last), codes(net.model(net.last)))  # type: ignore[attr-defined]
    assert worst <= 1
    net = Net(("I8", ("batch", 10, 9, 8)))
    deep = net.layer("IntegerConv", "x", 8, 3, 3, 1, group=8, layout="NHWC", x_zero=-4, pads=[1] * 4)
    deep = net.requantize(deep, 2**-8, 8, "I8", axis=-1, zero=-128, lo=-128, hi=90, rounding="tflite_double")
    pool = net.add("IntegerAveragePool", deep, kernel_shape=[3, 3], layout="NHWC", rounding="half_away", pads=[1] * 4)
    mean = net.requantize(net.add("IntegerSum", pool, axes=[1, 2], keepdims=0), 1 / 60, dtype="I8", x_zero=-90 * 90)
    both = net.requantize(net.add("IntegerMul", deep, pool, a_zero=-128, b_zero=3), 2**-9, dtype="I8")
    last = net.requantize(net.layer("IntegerLinear", mean, 5, 8), 2**-8, 5, "I8", axis=-1)
    joined = net.add("Concat", deep, pool, axis=-1)
    model = net.model(both, last, joined)
    worst, proto = worst_code(model, codes(model))
    assert worst <= 1
    assert {"QLinearConv", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearMul", "QGemm"} <= {
        n.op_type for n in proto.graph.node
    }


# ---- a real network, the proof and refusals


@pytest.fixture(scope="module")
def resnet(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, str, np.ndarray]:
    def images(name: str, count: int) -> np.ndarray:
        with np.load(testdata / "vision/cifar10" / name) as content:
            x = content["x"][:count].astype(np.float32) / 255
        return np.ascontiguousarray(
            ((x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2), np.float32
        )

    path = str(tmp_path_factory.mktemp("data") / "calibration.npz")
    np.savez(path, x=images("calib_1024_jpeg.npz", 32))
    return qdeploy.load(testdata / "vision/cifar10/resnet20_fp32.onnx"), path, images("test_2000_jpeg.npz", 24)


def given_codes(made: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    how: Any = made.graph.meta["quantization"]
    return {"x": np.clip(np.rint(x / how["x"]["scale"]) + how["x"]["zero"], -128, 127).astype(np.int8)}


@pytest.mark.parametrize("bits", [8, 4])
def test_resnet20_is_exact(resnet: tuple[Model, str, np.ndarray], bits: int):
    model, data, x = resnet
    output = integer_network(model, Integers(data, weight_bits=bits, rounding="half_even"))
    is_exact(output, given_codes(output, x[:4]))


def test_resnet20_on_8_bit_kernels(resnet: tuple[Model, str, np.ndarray]):
    model, data, x = resnet
    output = integer_network(model, Integers(data, narrow_sums=True))
    inputs = given_codes(output, x)
    worst, proto = worst_code(output, inputs)
    assert worst <= 1
    assert Counter(n.op_type for n in proto.graph.node)["QLinearConv"] == 19
    wanted = run(output.graph, inputs, {}, Weights(output))[0]
    result = computed(proto, inputs, precise=True)
    (name,) = wanted
    assert (result[name].argmax(1) == wanted[name].argmax(1)).mean() > 0.9


def test_the_proof_sees_floats_wherever_they_are(tmp_path: Path):
    net = residual()
    fast = lowered(net.model(net.last), "fast", tmp_path)  # type: ignore[attr-defined]
    assert not BACKEND.integers.integer_only(tmp_path)["integer_only"]
    assert prove(fast)["floats"] and not prove(fast)["integer_only"]
    strict = is_exact(net.model(net.last))  # type: ignore[attr-defined]
    hidden = onnx.ModelProto.FromString(strict.SerializeToString())
    hidden.graph.node.add(op_type="Cast", input=[strict.graph.node[0].output[0]], output=["f"], name="n")
    hidden.graph.node[-1].attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
    assert prove(hidden)["floats"] == ["f: float"]
    foreign = onnx.ModelProto.FromString(strict.SerializeToString())
    foreign.graph.node[0].domain = "com.microsoft"
    assert not prove(foreign)["integer_only"]


def test_what_has_no_form_is_refused_by_its_name(tmp_path: Path):
    net = Net(("I16", ("batch", 4)))
    net.add("IntegerLinear", "x", net.constant(np.ones((2, 4), np.int8)), x_zero=1)
    with pytest.raises(UnsupportedError, match="activation of this type"):
        lowered(net.model("v0"), "strict", tmp_path)
