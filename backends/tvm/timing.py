"""Times of single layers on this machine: each compiled alone, codes in and codes out, as a network of them would be.

A layer is a convolution or a matrix product of unsigned codes with weights of some bits, with its bias and its
rescaling to codes. Where values lie in the network with their channels last, they do so here: moving an image there and
back is no part of a layer. Weights are those of a layer of the network, since what a kernel may do depends on how large
they are; codes, biases and factors, on which no time depends, are random.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qdeploy.backends.tvm import process
from qdeploy.backends.tvm.plan import plan
from qdeploy.backends.tvm.program import Program
from qdeploy.backends.tvm.targets import Target, require, target
from qdeploy.integer.layer_shapes import LayerShape
from qdeploy.integer.quantized_value import Float64
from qdeploy.integer.weights import codes_tensor, quantized
from qdeploy.ir.dyadic import dyadics
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.passes.fold import plain_tensor
from qdeploy.progress import SILENT, Progress

ROUNDS = 3
"""Processes that time everything, one after the other."""
TURNS = 30
"""How often each kernel is timed by each of them."""
_MOVES = ("to_last", "to_plain")


def layer_times(
    layers: Sequence[tuple[LayerShape, Array]],
    options: Sequence[tuple[int, int]],
    *,
    name: str = "host",
    threads: int = 0,
    rounds: int = ROUNDS,
    progress: Progress = SILENT,
) -> list[dict[tuple[int, int], float]]:
    """Compiles every layer at every choice of bits and times them all in turns.

    Args:
        layers: Which, with their weights, float32 of `LayerShape.weight`.
        options: Bits of weights and activations.
        name: Of a target that this machine runs.
        threads: Of TVM's pool; 0: as many as it likes.
        rounds: Processes that time; the least of all times counts.
        progress: Told of layers compiled and of rounds.

    Returns:
        Seconds by bits, for each layer.

    Raises:
        UnsupportedError: TVM is absent, the target is not of this machine, or a layer has no kernel.
    """
    chosen = target(name)
    require(chosen)
    with tempfile.TemporaryDirectory(prefix="qdeploy-layers-") as temporary:
        folder = Path(temporary)
        parts = [[f"{i}-{w}x{a}" for w, a in options] for i in range(len(layers))]
        progress.start("compiling layers", len(layers), "layers")
        for (layer, weight), names in zip(layers, parts, strict=True):
            _compile(folder, layer, weight, dict(zip(names, options, strict=True)), chosen)
            progress.advance(1, layer.key)
        every = [part for names in parts for part in names]
        least = dict.fromkeys(every, float("inf"))
        progress.start("timing layers", rounds, "rounds")
        for number in range(rounds):
            process.run(folder, {"action": "time_parts", "parts": every, "turns": TURNS}, threads)
            seconds = json.loads((folder / "times.json").read_text())
            least = {part: min(least[part], seconds[part]) for part in every}
            progress.advance(1, f"round {number + 1}")
    return [{bits: least[part] for part, bits in zip(names, options, strict=True)} for names in parts]


def _compile(
    folder: Path, layer: LayerShape, weight: Array, parts: Mapping[str, tuple[int, int]], chosen: Target
) -> None:
    for part, bits in parts.items():
        graph, weights = layer_graph(layer, weight, *bits)
        program = without_moves(plan(graph, {n: as_value(t) for n, t in weights.items()}, chosen.kernel, {}))
        (folder / part).mkdir()
        program.save(folder / part)
    process.run(folder, {"action": "compile_parts", "parts": list(parts), "target": chosen.name, "forms": ["library"]})


def layer_graph(
    layer: LayerShape, weight: Array, weight_bits: int, activation_bits: int
) -> tuple[Graph, dict[str, QTensor]]:
    """A layer alone in integers: unsigned codes in and out."""
    rng, high = np.random.default_rng(0), (1 << activation_bits) - 1
    outputs = layer.weight[0]
    factors: Float64 = 2.0**-8 / (1 + rng.random(outputs))
    constants: dict[str, Array] = {"bias": rng.integers(-999, 999, outputs).astype(np.int32)}
    constants["m"], constants["e"] = dyadics(factors)
    attrs = {"axis": 1 if layer.op == "Conv" else -1}
    nodes = (
        Node(f"Integer{layer.op}", ("x", "weight", "bias"), ("sum",), dict(layer.attrs), "layer"),
        Node("Requantize", ("sum", "m", "e"), ("y",), {"lo": 0, "hi": high, "dtype": "U8", **attrs}, "codes"),
    )
    graph = Graph(
        (Value("x", "U8", layer.input),),
        (Value("y", "U8", ()),),
        nodes,
        constants={name: plain_tensor(array) for name, array in constants.items()},
    )
    return graph, {"weight": codes_tensor(quantized(weight, weight_bits), weight_bits)}


def without_moves(program: Program) -> Program:
    """The program of a chain without the moves of an image at its two ends."""
    steps, inputs, outputs = list(program.steps), list(program.inputs), list(program.outputs)
    while len(steps) > 1 and steps[0].kind in _MOVES:
        inputs = [steps.pop(0).output]
    while len(steps) > 1 and steps[-1].kind in _MOVES:
        outputs = [steps.pop().inputs[0]]
    used = {name for step in steps for name in (*step.inputs, step.output)}
    return replace(
        program,
        inputs=inputs,
        outputs=outputs,
        steps=steps,
        buffers={name: b for name, b in program.buffers.items() if name in used},
        constants={name: a for name, a in program.constants.items() if name in used},
        names={},
    )
