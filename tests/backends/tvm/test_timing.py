"""Layers compiled alone: what is timed is the layer, with the codes that a network has there."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.backends.tvm import BACKEND
from qdeploy.backends.tvm.plan import plan
from qdeploy.backends.tvm.targets import target
from qdeploy.backends.tvm.timing import layer_graph, without_moves
from qdeploy.errors import UnsupportedError
from qdeploy.integer.layer_shapes import LayerShape
from qdeploy.ir.element import as_value
from qdeploy.ir.run import run

RNG = np.random.default_rng(6)
PADS = {"pads": [1, 1, 1, 1]}
LAYERS = [
    LayerShape("Conv", (1, 8, 9, 9), (16, 8, 3, 3), PADS),
    LayerShape("Conv", (1, 32, 8, 8), (32, 1, 3, 3), {**PADS, "group": 32, "strides": [2, 2]}),
    LayerShape("Linear", (1, 7, 24), (10, 24), {}),
]


def weight(layer: LayerShape) -> np.ndarray:
    return RNG.standard_normal(layer.weight).astype(np.float32)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 8)])
def test_a_layer_alone_takes_and_gives_codes(layer: LayerShape, bits: tuple[int, int]):
    graph, content = layer_graph(layer, weight(layer), *bits)
    weights = {name: as_value(tensor) for name, tensor in content.items()}
    x = RNG.integers(0, 1 << bits[1], layer.input).astype(np.uint8)
    result = run(graph, {"x": x}, {}, weights)[0]["y"]
    assert result.dtype == np.uint8 and result.max() < 1 << bits[1]
    program = plan(graph, weights, target("x86-64-v3").kernel, {})
    kept = without_moves(program)
    assert not {"to_last", "to_plain"} & {step.kind for step in kept.steps if layer.op == "Conv"}
    assert kept.outputs == [kept.steps[-1].output]
    assert {step.kind for step in kept.steps} <= {step.kind for step in program.steps}


def test_every_layer_has_a_time_at_every_choice(tvm: None):
    result = BACKEND.layers.layer_times([(layer, weight(layer)) for layer in LAYERS], [(8, 8), (4, 8)], threads=1)
    assert result.target != "host"
    assert [set(row) for row in result.seconds] == [{(8, 8), (4, 8)}] * len(LAYERS)
    assert all(0 < seconds < 0.1 for row in result.seconds for seconds in row.values())


def test_a_layer_without_a_kernel_is_refused():
    layer = LayerShape("Conv", (1, 8, 4, 4, 4), (8, 8, 3, 3, 3), {"pads": [1] * 6})
    with pytest.raises(UnsupportedError, match="takes convolutions over"):
        BACKEND.layers.layer_times([(layer, weight(layer))], [(8, 8)])


def test_layers_are_known_by_their_shapes():
    plain = LayerShape("Conv", (1, 8, 9, 9), (16, 8, 3, 3), PADS)
    assert plain.key == "Conv 1x8x9x9 by 16x8x3x3, pads 1 1 1 1"
    assert LAYERS[1].key == "Conv 1x32x8x8 by 32x1x3x3, group 32, pads 1 1 1 1, strides 2 2"
    assert LAYERS[2].key == "Linear 1x7x24 by 10x24"
