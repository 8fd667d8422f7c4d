"""An encoder in integers: close to the float one, whatever is masked."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.calibrate.calibrate import calibrate
from qdeploy.errors import UnsupportedError
from qdeploy.integer.integerize import integerize
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import plain_tensor

RNG = np.random.default_rng(31)
WIDTH, HEADS, INNER, WORDS, PLACES = 32, 4, 64, 50, 24
SHAPES = {
    "words": (WORDS, WIDTH),
    "places": (PLACES, WIDTH),
    "up": (INNER, WIDTH),
    "up.b": (INNER,),
    "down": (WIDTH, INNER),
    "down.b": (WIDTH,),
    **dict.fromkeys("qkvo", (WIDTH, WIDTH)),
    **{f"{n}.b": (WIDTH,) for n in "qkvo"},
    **{f"n{i}.{p}": (WIDTH,) for i in "123" for p in "wb"},
}
WEIGHTS = {
    name: (RNG.standard_normal(s) / np.sqrt(s[-1] if len(s) > 1 and s[0] != WORDS else 4)).astype(np.float32)
    for name, s in SHAPES.items()
}


def linear(x: str, name: str, output: str) -> Node:
    return Node("Linear", (x, name, f"{name}.b"), (output,))


NODES = [
    Node("Gather", ("words", "ids"), ("e1",)),
    Node("Positions", ("ids",), ("at",)),
    Node("Gather", ("places", "at"), ("e2",)),
    Node("Add", ("e1", "e2"), ("e3",)),
    Node("LayerNormalization", ("e3", "n1.w", "n1.b"), ("x",), {"epsilon": 1e-12}),
    linear("x", "q", "query"),
    linear("x", "k", "key"),
    linear("x", "v", "value"),
    Node(
        "Attention",
        ("query", "key", "value", "mask"),
        ("mixed",),
        {"heads": HEADS, "kv_heads": HEADS, "scale": (WIDTH // HEADS) ** -0.5, "causal": False, "window": 0},
    ),
    linear("mixed", "o", "out"),
    Node("SkipNorm", ("out", "x", "n2.w", "n2.b"), ("y",), {"kind": "layer", "epsilon": 1e-12}),
    linear("y", "up", "raised"),
    Node("Gelu", ("raised",), ("active",)),
    linear("active", "down", "lowered"),
    Node("SkipNorm", ("lowered", "y", "n3.w", "n3.b"), ("hidden",), {"kind": "layer", "epsilon": 1e-12}),
    Node("MeanPool", ("hidden", "mask"), ("pooled",)),
    Node("LpNormalization", ("pooled",), ("embedding",), {"p": 2, "axis": -1}),
]


def encoder(*outputs: str) -> Model:
    inputs = tuple(Value(name, "I64", ("batch", "tokens")) for name in ("ids", "mask"))
    graph = Graph(inputs, tuple(Value(n, "F32", ()) for n in outputs), tuple(NODES), meta={"context": PLACES})
    output = {name: plain_tensor(array) for name, array in WEIGHTS.items()}
    return Model("test", "memory", output, build_graph=lambda _: graph)


def sentences(count: int) -> dict[str, np.ndarray]:
    mask = (np.arange(PLACES)[None] < RNG.integers(4, PLACES + 1, (count, 1))).astype(np.int64)
    return {"ids": RNG.integers(0, WORDS, (count, PLACES)), "mask": mask}


def test_embeddings_and_hidden_states_are_close():
    model = encoder("hidden", "embedding")
    output = integerize(model, calibrate(model, sentences(32)).values)
    data = sentences(20)
    wanted = run(model.graph, data, {}, Weights(model))[0]
    result = run(output.graph, data, {}, Weights(output))[0]
    assert {v.name: v.dtype for v in output.graph.outputs} == {"hidden": "I32", "embedding": "I32"}
    how = output.graph.meta["quantization"]
    for name in wanted:
        a, b = wanted[name], result[name] * how[name]["scale"]  # type: ignore
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert cosine.min() > 0.99, name
    assert np.abs(np.linalg.norm(result["embedding"] * 2.0**-30, axis=1) - 1).max() < 1e-3


def test_what_is_masked_has_no_part():
    model = encoder("embedding")
    output = integerize(model, calibrate(model, sentences(16)).values)
    data = sentences(4)
    other = {**data, "ids": np.where(data["mask"] == 1, data["ids"], 7)}
    first, second = (run(output.graph, d, {}, Weights(output))[0]["embedding"] for d in (data, other))
    assert (first == second).all()


def test_sums_over_tokens_are_bounded_by_the_context():
    model = encoder("embedding")
    output = integerize(model, calibrate(model, sentences(16)).values)
    assert output.graph.meta["limits"] == {"tokens": PLACES}
    assert check_ranges(output.graph, output.tensors).limits == {}


def test_a_mean_that_is_not_normalised_is_refused():
    model = encoder("pooled")
    with pytest.raises(UnsupportedError, match="not normalised"):
        integerize(model, calibrate(model, sentences(8)).values)
