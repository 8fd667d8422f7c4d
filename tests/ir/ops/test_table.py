"""The table of ops: primitives against ONNX Runtime, composites against their expansion, attention against loops."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir.attention import attention, rotate
from qdeploy.ir.expand import activation
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.ops.conv import CONV_ROWS
from qdeploy.ir.ops.elementwise import ELEMENTWISE_ROWS
from qdeploy.ir.ops.image import IMAGE_ROWS
from qdeploy.ir.ops.quantized import QUANTIZED_ROWS
from qdeploy.ir.ops.selection import SELECTION_ROWS
from qdeploy.ir.ops.shape import SHAPE_ROWS
from qdeploy.ir.ops.table import OPS, op
from qdeploy.ir.run import run
from qdeploy.passes.expand import expand_graph

RNG = np.random.default_rng(7)
X = (RNG.standard_normal((2, 3, 8)) * 3).astype(np.float32)
Y = RNG.standard_normal((3, 1)).astype(np.float32) + np.float32(4)
W = RNG.standard_normal(8).astype(np.float32)
IDS = np.array([[0, 2, 1], [1, -1, 0]], np.int64)
AS_INPUTS = {
    "Reshape": ("shape",),
    "Unsqueeze": ("axes",),
    "Squeeze": ("axes",),
    "ReduceSum": ("axes",),
    "ReduceMean": ("axes",),
    "Slice": ("starts", "ends", "axes"),
    "Clip": ("min", "max"),
}
"""What is an attribute in our table and an input in ONNX."""
CASES: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("Constant", [], {"value_int": 3}),
    ("Constant", [], {"value_float": 0.1}),
    ("Identity", [X], {}),
    ("Gather", [X, IDS], {"axis": 1}),
    ("Gather", [W.reshape(4, 2), IDS], {"axis": 0}),
    ("Add", [X, Y], {}),
    ("Sub", [X, Y], {}),
    ("Mul", [X, Y], {}),
    ("Div", [X, Y], {}),
    ("MatMul", [X, X[0].T.copy()], {}),
    ("Softmax", [X * 40], {"axis": -1}),
    ("Softmax", [X], {"axis": 1}),
    ("Sigmoid", [X * 40], {}),
    ("Tanh", [X], {}),
    ("Relu", [X], {}),
    ("Erf", [X], {}),
    ("Sqrt", [np.abs(X)], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("RMSNormalization", [X, W], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, W, W[::-1].copy()], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, W], {}),
    ("LpNormalization", [X], {"p": 2, "axis": -1}),
    ("Reshape", [X], {"shape": [0, -1, 2]}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Unsqueeze", [X], {"axes": [1, -1]}),
    ("Squeeze", [Y], {"axes": [1]}),
    ("Concat", [X, X[:, :1].copy()], {"axis": 1}),
    ("Shape", [X], {"start": 1, "end": 3}),
    ("Shape", [X], {}),
    ("Slice", [X], {"starts": [1, -3], "ends": [2, 99], "axes": [1, 2]}),
    ("Cast", [X], {"to": "I64"}),
    ("Cast", [X], {"to": "F16"}),
    ("Cast", [IDS], {"to": "F32"}),
    ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    ("ReduceSum", [X], {"axes": [1], "keepdims": 0}),
    ("ReduceMean", [X], {"axes": [0, 2], "keepdims": 1}),
    ("Clip", [X], {"min": -1.0, "max": 0.5}),
    ("Clip", [X], {"min": 0.25}),
]


def onnx_says(name: str, inputs: list[np.ndarray], attrs: dict[str, Any]) -> np.ndarray:
    """What ONNX Runtime computes for one node."""
    attrs, arrays = dict(attrs), {f"x{i}": a for i, a in enumerate(inputs)}
    if name == "Cast":
        attrs["to"] = {"I64": onnx.TensorProto.INT64, "F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}[
            attrs["to"]
        ]
    names = list(arrays)
    for key in AS_INPUTS.get(name, ()):
        if key in attrs:
            arrays[key] = np.array(attrs.pop(key), np.float32 if name == "Clip" else np.int64)
            names.append(key)
    node = onnx.helper.make_node(name, names, ["y"], **attrs)
    kinds = {n: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in arrays.items()],
        [onnx.ValueInfoProto(name="y")],
    )
    opset = 23 if name == "RMSNormalization" else 21
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, arrays)[0]


@pytest.mark.parametrize(("name", "inputs", "attrs"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_a_primitive_means_what_onnx_says(name: str, inputs: list[np.ndarray], attrs: dict[str, Any]) -> None:
    result, expected = op(name).numpy(*inputs, **attrs), onnx_says(name, inputs, attrs)
    assert result.dtype == expected.dtype and result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


def test_every_primitive_is_compared() -> None:
    exported = (*ELEMENTWISE_ROWS, *SHAPE_ROWS, *CONV_ROWS, *QUANTIZED_ROWS, *IMAGE_ROWS, *SELECTION_ROWS)
    elsewhere = {row.name for row in exported}  # test_network.py
    assert {c[0] for c in CASES} == {name for name, row in OPS.items() if row.source.startswith("ONNX")} - elsewhere


def test_every_row_says_what_it_does() -> None:
    for name, row in OPS.items():
        assert row.name == name and row.semantics and row.arity[0] <= row.arity[1]
        kinds = {p.kind for p in inspect.signature(row.numpy).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds  # the signature is the list of attributes
    assert OPS["Attention"].attributes["heads"] and not OPS["Attention"].attributes["rope"]
    assert "past" not in OPS["Attention"].attributes
    assert OPS["Linear"].arity == (2, 3) and OPS["SkipNorm"].arity == (3, 4)


def test_an_unknown_op_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="Conv3D"):
        op("Conv3D")


def test_an_id_outside_of_the_vocabulary_is_an_error() -> None:
    for wrong in (3, -4):
        with pytest.raises(BadArgumentError, match=str(wrong)):
            op("Gather").numpy(X[0], np.array([0, wrong]))


def test_padding_alone_stays_finite() -> None:
    q = RNG.standard_normal((1, 2, 8)).astype(np.float32)
    out, _ = attention(q, q, q, np.zeros((1, 2), np.int64), heads=2, kv_heads=2, scale=1.0)
    np.testing.assert_allclose(out[0], np.broadcast_to(q[0].mean(axis=0), (2, 8)), atol=1e-6)


def composite(node: Node, arrays: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray], set[str]]:
    """The outputs of a node, those of its expansion, and the ops of the expansion."""
    inputs = tuple(Value(n, "I64" if a.dtype.kind == "i" else "F32", a.shape) for n, a in arrays.items())
    outputs = tuple(Value(name, "F32", ()) for name in node.outputs if name)
    graph = Graph(inputs, outputs, (node,))
    expanded = expand_graph(graph)
    output = [list(run(g, arrays)[0].values()) for g in (graph, expanded)]
    return output[0], output[1], {n.op for n in expanded.nodes}


KINDS = st.sampled_from(
    ["Linear", "Linear+bias", "rms", "layer", "rms-one", "silu", "gelu", "gelu_tanh", "pool", "ids"]
)


@given(KINDS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=120)
def test_a_composite_is_its_expansion(kind: str, batch: int, length: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x = {"x": some(batch, length, width)}
    if kind.startswith("Linear"):
        arrays = {**x, "w": some(4, width), **({"b": some(4)} if "bias" in kind else {})}
        node = Node("Linear", tuple(arrays), ("y",))
    elif kind.startswith(("rms", "layer")):
        arrays = {**x, "s": some(batch, length, width), "w": some(width)} | (
            {"b": some(width)} if kind == "layer" else {}
        )
        outputs = ("y",) if kind == "rms-one" else ("y", "sum")
        node = Node("SkipNorm", tuple(arrays), outputs, {"kind": kind.split("-")[0], "epsilon": 1e-5})
    elif kind == "pool":
        arrays = {**x, "m": rng.integers(0, 2, (batch, length))}
        node = Node("MeanPool", ("x", "m"), ("y",))
    elif kind == "ids":
        arrays = {"i": np.zeros((batch, length), np.int64)}
        node = Node("Positions", ("i",), ("y",))
    else:
        arrays = {**x, "g": some(4, width), "u": some(4, width), "d": some(width, 4)}
        node = Node("GatedMlp", tuple(arrays), ("y",), {"activation": kind})
    whole, parts, ops = composite(node, arrays)
    for one, other in zip(whole, parts, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert all(OPS[name].source.startswith("ONNX") for name in ops)


@pytest.mark.parametrize(("size", "width"), [(1, 3), (2, 6), (16, 48), (64, 64)])
def test_a_hadamard_transform_is_a_product_with_the_matrix_and_takes_itself_back(size: int, width: int) -> None:
    x = np.random.default_rng(size).standard_normal((2, 3, width)).astype(np.float32)
    node = Node("Hadamard", ("x",), ("y",), {"size": size})
    whole, parts, ops = composite(node, {"x": x})
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5, atol=1e-6)
    signs = np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)])
    wanted = x.reshape(2, 3, -1, size).astype(np.float64) @ signs / math.sqrt(size)
    np.testing.assert_allclose(whole[0], wanted.reshape(x.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(op("Hadamard").numpy(whole[0], size=size), x, rtol=1e-5, atol=1e-6)
    assert all(OPS[name].source.startswith("ONNX") for name in ops)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_blocks_that_have_no_hadamard_transform_are_refused(size: int) -> None:
    with pytest.raises(BadFileError, match="Hadamard"):
        op("Hadamard").numpy(X[..., :4], size=size)


def test_expansion_stops_where_the_caller_wants() -> None:
    node = Node("GatedMlp", ("x", "g", "u", "d"), ("y",), {"activation": "silu"}, "mlp")
    graph = expand_graph(Graph((), (), (node, Node("Linear", ("y", "w"), ("z",)))), keep={"Linear"})
    assert [n.op for n in graph.nodes] == ["Linear", "Sigmoid", "Mul", "Linear", "Mul", "Linear", "Linear"]
    names = [name for n in graph.nodes for name in n.outputs]
    assert len(set(names)) == len(names) and all(n.name for n in graph.nodes[:-1])
    with pytest.raises(UnsupportedError):
        activation("mish", "x", "y", str)


def by_loops(
    q: Any, k: Any, v: Any, heads: int, kv_heads: int, causal: bool, window: int, mask: Any, start: int
) -> Any:
    """Attention of one sequence from its definition, in float64: q [T, heads, D], k and v [S, kv_heads, D]."""
    out = np.zeros(q.shape)
    for t in range(q.shape[0]):
        for h in range(heads):
            keys = [
                s
                for s in range(k.shape[0])
                if mask[s] and (not causal or s <= start + t) and (not window or s > start + t - window)
            ]
            group = h // (heads // kv_heads)
            scores = [math.exp(float(q[t, h].astype(np.float64) @ k[s, group]) * 0.3) for s in keys]
            out[t, h] = sum(e * v[s, group].astype(np.float64) for e, s in zip(scores, keys, strict=True)) / sum(scores)
    return out.reshape(q.shape[0], -1)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_attention_is_its_definition(
    groups: int, repeats: int, new: int, past: int, window: int, causal: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    heads, size, total = groups * repeats, 4, past + new
    window = window if causal else 0
    q = rng.standard_normal((2, new, heads * size)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, total, groups, size)).astype(np.float32)
    mask = rng.integers(0, 2, (2, total)) if not causal else np.ones((2, total), np.int64)
    mask[:, 0] = 1
    cache = (k[:, :past].swapaxes(1, 2), v[:, :past].swapaxes(1, 2))
    flat = (a[:, past:].reshape(2, new, groups * size) for a in (k, v))
    out, (keys, values) = attention(
        q,
        *flat,
        None if causal else mask,
        heads=heads,
        kv_heads=groups,
        scale=0.3,
        causal=causal,
        window=window,
        past=cache,
    )
    assert out.dtype == np.float32
    for b in range(2):
        expected = by_loops(q[b].reshape(new, heads, size), k[b], v[b], heads, groups, causal, window, mask[b], past)
        np.testing.assert_allclose(out[b], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(keys, k.swapaxes(1, 2))
    np.testing.assert_array_equal(values, v.swapaxes(1, 2))


@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 400), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_rope_turns_pairs_as_complex_numbers(half: int, rest: int, start: int, interleaved: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 2, 3, 2 * half + rest)).astype(np.float32)
    inv_freq = rng.uniform(1e-3, 1, half).astype(np.float32)
    result = rotate(x, start, inv_freq, rotary_dim=2 * half, interleaved=interleaved, factor=1.25)
    first, second = (
        (np.arange(half) * 2, np.arange(half) * 2 + 1) if interleaved else (np.arange(half), np.arange(half) + half)
    )
    turned = (
        (x[..., first] + 1j * x[..., second])
        * np.exp(1j * np.arange(start, start + 3)[:, None] * inv_freq.astype(np.float64))
        * 1.25
    )
    np.testing.assert_allclose(result[..., first], turned.real, atol=3e-4)
    np.testing.assert_allclose(result[..., second], turned.imag, atol=3e-4)
    np.testing.assert_array_equal(result[..., 2 * half :], x[..., 2 * half :])
    assert result.dtype == np.float32


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 200), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_rope_makes_scores_depend_on_distance_alone(i: int, j: int, shift: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
    inv_freq = (10000.0 ** (-np.arange(8) / 8)).astype(np.float32)

    def score(a: int, b: int) -> float:
        turn = {"inv_freq": inv_freq, "rotary_dim": 16}
        return float((rotate(q, a, **turn) * rotate(k, b, **turn)).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=2e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.uint8, np.int64, np.bool_])
def test_the_extremes_of_nothing_change_nothing(kind: type):
    empty = np.ones((2, 0, 3), kind)
    for name, extreme in (("ReduceMax", max), ("ReduceMin", min)):
        result = OPS[name].numpy(empty, axes=(1,))
        assert result.shape == (2, 1, 3) and result.dtype == kind
        for value in (kind(0), kind(1), kind(100)):
            assert extreme(result[0, 0, 0], value) == value
