"""Networks whose activations have learned clips and levels become integers without calibration data."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.networks.apot_levels import cell_levels, denominator, fractions, table_tensor
from qdeploy.integer.integerize import integerize
from qdeploy.integer.intervals import Intervals, check_ranges
from qdeploy.integer.weights import Coded, stored_codes
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Table, Term
from qdeploy.ir.views.multiples import as_integers, multiples
from qdeploy.ir.views.scaled import scaled
from qdeploy.passes.fold import fold, plain_tensor

F = np.float32


def codebook(weight: np.ndarray, levels: list[float], scale: float) -> QTensor:
    """A weight on the levels with signs, by its nearest."""
    table = np.unique(np.concatenate([-np.array(levels), levels])).astype(F)
    indices = np.abs(weight[..., None] / scale - table).argmin(axis=-1)
    return table_tensor(indices, table, F(scale))


def block(
    bits: int = 3,
    additive: bool = True,
    channels: int = 8,
    gamma: np.ndarray | None = None,
    weights: QTensor | None = None,
    seed: int = 3,
) -> Model:
    """image -> conv, norm, ReLU -> {on its levels -> conv, norm} + itself -> ReLU, mean -> a float layer."""
    random, levels = np.random.default_rng(seed), fractions(bits, additive)
    d, alpha = denominator(levels), 1.7
    gamma = random.uniform(0.5, 1.5, channels) * random.choice([1, -1], channels) if gamma is None else gamma
    constants = {
        "stem": plain_tensor(random.standard_normal((channels, 3, 3, 3)).astype(F) * F(0.3)),
        "inner": weights
        or codebook(random.standard_normal((channels, channels, 3, 3)) * 0.2, [float(n) for n in levels], 0.5),
        "last": plain_tensor(random.standard_normal((5, channels)).astype(F)),
        "zero": plain_tensor(np.array(0, np.uint8)),
        "levels": plain_tensor(cell_levels(levels)),
    }
    steps = {"step": alpha / d, "cell": alpha / (2 * d), "half": alpha / (4 * d)}
    constants |= {name: plain_tensor(np.array(n, F)) for name, n in steps.items()}
    for norm in ("n1", "n2"):
        moved = random.uniform(-0.3, 0.3, (2, channels))
        params = {"scale": gamma, "bias": moved[0], "mean": moved[1], "var": random.uniform(0.5, 1.5, channels)}
        constants |= {f"{norm}.{key}": plain_tensor(n.astype(F)) for key, n in params.items()}
    kernel = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    snapped = [
        Node("Sub", ("clipped", "half"), ("lowered",)),
        Node("QuantizeLinear", ("lowered", "cell", "zero"), ("c",)),
        Node("Lookup", ("c", "levels"), ("q",)),
    ]
    plain = [Node("QuantizeLinear", ("clipped", "step", "zero"), ("q",))]
    nodes = [
        Node("Conv", ("x", "stem"), ("a",), kernel),
        _norm("a", "n1", "b"),
        Node("Relu", ("b",), ("y",)),
        Node("Clip", ("y",), ("clipped",), {"min": 0.0, "max": alpha}),
        *(snapped if additive else plain),
        Node("DequantizeLinear", ("q", "step", "zero"), ("r",)),
        Node("Conv", ("r", "inner"), ("e",), kernel),
        _norm("e", "n2", "f"),
        Node("Add", ("f", "y"), ("g",)),
        Node("Relu", ("g",), ("h",)),
        Node("GlobalAveragePool", ("h",), ("i",)),
        Node("Flatten", ("i",), ("j",)),
        Node("Gemm", ("j", "last"), ("logits",), {"transB": 1}),
    ]
    meta = {"kind": "network", "ranges": {"x": [-2.0, 2.0]}}
    graph = Graph(
        (Value("x", "F32", ("batch", 3, 10, 10)),),
        (Value("logits", "F32", ("batch", 5)),),
        tuple(nodes),
        (),
        constants,
        meta,
    )
    return Model("apot", "net", {}, build_graph=lambda _: graph)


def _norm(x: str, name: str, output: str) -> Node:
    return Node("BatchNormalization", (x, *(f"{name}.{key}" for key in ("scale", "bias", "mean", "var"))), (output,))


def both(model: Model, count: int = 6) -> tuple[np.ndarray, np.ndarray, Model]:
    """Outputs of a network, and of its integers, as real numbers."""
    x = np.random.default_rng(3).uniform(-2, 2, (count, 3, 10, 10)).astype(F)
    exact = run(model.graph, {"x": x}, None, Weights(model))[0]["logits"]
    output = integerize(model)
    message = output.graph.meta["quantization"]
    codes = np.clip(np.rint(x / message["x"]["scale"]) + message["x"]["zero"], 0, 255)
    result = run(output.graph, {"x": codes}, None, Weights(output))[0]["logits"]
    return (result - message["logits"]["zero"]) * message["logits"]["scale"], exact, output


@pytest.mark.parametrize(
    ("bits", "additive"),
    [
        (2, True),
        (3, True),
        (4, True),
        (5, True),
        (2, False),
        (4, False),
        (8, False),
    ],
)
def test_integers_compute_what_the_levels_mean(bits: int, additive: bool):
    result, exact, output = both(block(bits, additive))
    assert np.abs(result - exact).max() < 0.03 * np.abs(exact).max()
    assert check_ranges(output.graph, output.tensors).values
    assert sum(node.op == "Lookup" for node in output.graph.nodes) == additive


@pytest.mark.parametrize(("bits", "table"), [(2, "int4"), (3, "int8"), (4, "int8")])
def test_levels_become_the_smallest_integers_that_they_are(bits: int, table: str):
    output = integerize(block(bits))
    assert output.tensors["inner.folded/codes"].terms[0].values.table == table
    assert int(np.abs(multiples(block(bits).graph.constants["inner"])[0]).max()) == denominator(fractions(bits, True))


def test_half_a_cell_goes_into_the_bias_where_nothing_else_takes_the_sums():
    model = block(3)
    nodes = [Node("Add", ("f", "r"), n.outputs) if n.op == "Add" else n for n in model.graph.nodes]
    graph = Graph(model.graph.inputs, model.graph.outputs, tuple(nodes), (), model.graph.constants, model.graph.meta)
    alone = Model("apot", "net", {}, build_graph=lambda _: graph)
    result, exact, output = both(alone)
    assert np.abs(result - exact).max() < 0.03 * np.abs(exact).max()
    shared = integerize(model)
    count = [sum(node.op == "IntegerAdd" for node in m.graph.nodes) for m in (output, shared)]
    assert count == [1, 2]  # the sum of the branches; and an addition per channel where the sums are needed unmoved


def test_an_output_that_its_norm_takes_out_loses_its_codes():
    gamma = np.array([1.0, 0.0, 1e-20, -1e-12, 0.7, -0.9, 1.2, 0.8])
    result, exact, output = both(block(3, gamma=gamma))
    assert np.abs(result - exact).max() < 0.03 * np.abs(exact).max()
    codes = output.tensors["inner.folded/codes"].decode()
    assert not codes[1:4].any() and codes[4:].any(axis=(1, 2, 3)).all()


def test_codes_beyond_8_bits_are_a_sum_of_two_products():
    random = np.random.default_rng(0)
    table = (np.arange(-250, 128) / 127).astype(F)
    wide = table_tensor(random.integers(0, len(table), (8, 8, 3, 3)), table, F(0.3))
    result, exact, output = both(block(4, False, weights=wide))
    assert np.abs(result - exact).max() < 0.03 * np.abs(exact).max()
    assert sum(node.op == "IntegerConv" for node in output.graph.nodes) == 3
    assert {t.terms[0].values.table for t in output.tensors.values()} <= {"int8", "int4"}


def test_a_network_whose_input_has_no_range_still_needs_data():
    model = block(3)
    arguments = model.graph
    bare = Graph(arguments.inputs, arguments.outputs, arguments.nodes, (), arguments.constants, {"kind": "network"})
    with pytest.raises(UnsupportedError, match="no activation scale"):
        integerize(Model("apot", "net", {}, build_graph=lambda _: bare))


@pytest.mark.parametrize(
    "ranges",
    [
        3,
        [1, 2],
        {"x": 3},
        {"x": [1]},
        {"x": ["a", "b"]},
        {"x": [2.0, 1.0]},
        {"x": [0, float("inf")]},
        {"x": [0, 10**400]},
    ],
)
def test_declared_ranges_that_are_none_are_refused(ranges: object):
    arguments = block(3).graph
    graph = Graph(
        arguments.inputs,
        arguments.outputs,
        arguments.nodes,
        (),
        arguments.constants,
        {"kind": "network", "ranges": ranges},
    )
    with pytest.raises(BadFileError, match="range"):
        integerize(Model("apot", "net", {}, build_graph=lambda _: graph))


# ---- parts


def test_a_norm_behind_codes_goes_into_their_scales():
    model = block(3)
    folded = fold(model.graph, {})
    content, before = folded.constants["inner.folded"], model.graph.constants["inner"]
    assert not any(node.op == "BatchNormalization" for node in folded.nodes)
    assert content.terms[0].values.data == before.terms[0].values.data
    x = np.random.default_rng(5).uniform(-2, 2, (2, 3, 10, 10)).astype(F)
    wanted, result = (run(g, {"x": x})[0]["logits"] for g in (model.graph, folded))
    np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("bits", "additive"), [(3, True), (4, False)])
def test_no_value_leaves_its_bounds(bits: int, additive: bool):
    model = block(bits, additive)
    folded = fold(model.graph, {})
    reach = Intervals(folded, {}, {"x": (-2.0, 2.0)})
    seen: dict[str, np.ndarray] = {}
    x = np.random.default_rng(5).choice([-2.0, 2.0], (8, 3, 10, 10)).astype(F)
    run(folded, {"x": x}, None, {}, seen.__setitem__)
    for name, value in seen.items():
        low, high = reach.get(name)
        assert low - 1e-4 <= value.min() and value.max() <= high + 1e-4, name
    assert reach.get("nothing") is None and Intervals(folded, {}, {}).get("f")[1] < np.inf
    assert Intervals(folded, {}, {}).get("y") is None  # what an input of unknown range reaches is not known


def test_scaling_leaves_alone_what_has_scales_of_another_kind():
    weight = codebook(np.random.default_rng(0).standard_normal((4, 6)), [0, 0.5, 1], 1.0)
    codes = weight.terms[0].values
    blocks = Param(Codes((4, 2), (Buffer.of("scale", np.ones((4, 2), F), "F32"),), PLAIN, "f32"), (1, 3))
    content = Codes(codes.shape, codes.data, codes.layout, codes.table, scale=blocks)
    assert scaled(QTensor((4, 6), "F32", (Term(content),)), np.ones(4)) is None
    assert scaled(weight, np.ones(3)) is None
    wanted = weight.decode() * np.arange(4, dtype=F)[:, None]
    np.testing.assert_allclose(scaled(weight, np.arange(4.0)).decode(), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_multiples_are_exact_to_the_last_bits(bits: int):
    levels = [float(n) for n in fractions(bits, True)]
    weight = codebook(np.random.default_rng(bits).standard_normal((6, 5)), levels, 1.37)
    integers, step = multiples(weight)
    np.testing.assert_allclose(integers * step * 1.37, weight.decode(), rtol=3e-7)
    np.testing.assert_allclose(as_integers(weight).decode(), weight.decode(), rtol=3e-7)
    coded = stored_codes(weight, "w")
    np.testing.assert_allclose(coded.values(), weight.decode(), rtol=3e-7)


def test_levels_that_are_no_multiples_are_refused_as_integers():
    table = np.array([[-1, -0.6961928, -0.5250731, 0, 0.0795803, 1]], F)
    codes = Codes(
        (2, 4), (Buffer.of("codes", np.zeros((2, 4), np.uint8), "U8"),), PLAIN, Table(Buffer.of("table", table, "F32"))
    )
    assert multiples(QTensor((2, 4), "F32", (Term(codes),))) is None
    with pytest.raises(UnsupportedError, match="codebook"):
        stored_codes(QTensor((2, 4), "F32", (Term(codes),)), "w")
    two = Table(Buffer.of("table", np.zeros((2, 4), F), "F32"))
    wide = Codes((2, 4), (Buffer.of("codes", np.zeros((2, 1), np.uint8), "U8"),), Layout("bits", 2), two)
    assert multiples(QTensor((2, 4), "F32", (Term(wide),))) is None


def test_scales_of_any_sign_become_positive_ones():
    codes = np.arange(-8, 8).reshape(4, 4)
    arguments = Coded(codes, np.array([0.5, -0.25, 0.0, 1e-30]), 0, 4)
    output = arguments.settled()
    assert (output.scale > 0).all()
    np.testing.assert_allclose(output.values(), arguments.values(), atol=1e-20)
    alone = Coded(codes, np.array([-0.5])).settled()
    np.testing.assert_array_equal(alone.values(), codes * -0.5)


def test_cells_cover_the_whole_of_a_byte():
    assert cell_levels(fractions(5, True))[-1] == denominator(fractions(5, True)) == 100
    assert fractions(3, True)[-1] == Fraction(1)


# ---- networks of the repository

RIGHT = {
    "mnist_resnet10_3bit_apot": (500, 495, 3),
    "mnist_resnet10_4bit_uniform": (500, 496, 3),
    "cifar_res20_4bit_apot": (40, 32, 1),
}
"""Images, how many are right with floats on the levels, and how far integers may be from that (of all images: 9881 and
9871, 9873 and 9875 of 10,000; 226 and 226 of 249)."""


@pytest.mark.parametrize("name", RIGHT)
def test_integers_are_as_good_as_the_networks_they_are_made_of(testdata: Path, name: str):
    count, right, off = RIGHT[name]
    if name.startswith("mnist"):
        content, shift, spread = np.load(testdata / "vision/mnist/test_10000.npz"), 0.131, 0.308
        x = content["x"][:count, None] / 255
    else:
        content = np.load(testdata / "vision/cifar10/test_249_lossless.npz")
        x = content["x"][:count].transpose(0, 3, 1, 2) / 255
        shift, spread = (np.array(n).reshape(1, 3, 1, 1) for n in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    output = integerize(qdeploy.load(testdata / f"vision/apot/{name}.safetensors"))
    message = output.graph.meta["quantization"]["input"]
    codes = np.clip(np.rint((x - shift) / spread / message["scale"]) + message["zero"], 0, 255)
    logits = run(output.graph, {"input": codes}, None, Weights(output))[0]["logits"]
    assert abs(int((logits.argmax(axis=1) == content["y"][:count]).sum()) - right) <= off
