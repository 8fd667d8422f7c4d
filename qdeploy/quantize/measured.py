"""What each rung of a tensor costs the whole network: measured, one tensor at a time, all others being floats.

The cost is the divergence of the predictions, KL(softmax(y) || softmax(y at the rung)) per token. What lies in front of
a layer runs once, what lies behind it for every rung.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qdeploy.ir.decode import decode_codes, decode_tensor
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Array, Buffer, QTensor, plain
from qdeploy.passes.expand import expand_graph
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.activations import KEPT
from qdeploy.quantize.blas import single_threaded
from qdeploy.quantize.hessian import divergence
from qdeploy.quantize.perturbed import Replaced, suffixes
from qdeploy.quantize.samples import Samples
from qdeploy.quantize.shifts import shifted

MOST_WORK = 4e11
"""Multiplications that are worth it; networks that need more keep the errors of their outputs layer by layer."""
TOKENS = 2048


def measured_rungs(
    source: Model, quantized: Model, samples: Samples, progress: Progress = SILENT
) -> dict[str, tuple[float, ...]]:
    """The cost of every rung of the tensors that have rungs with terms of their own.

    Args:
        source: The model of floats, a decoder.
        quantized: The same with such tensors, whose layers may add NAME/bias to their outputs.
        samples: What both run on; at most 2048 tokens are used.
        progress: Told of tensors.

    Returns:
        By name, a cost per rung that never rises; nothing where the work would be too much.
    """
    quantized = _with_biases(quantized)
    graph = expand_graph(quantized.graph, KEPT)
    layers = _first_users(graph, quantized)
    few = next(iter(samples.batches(TOKENS)))
    work = sum(float(np.prod(source.tensors[name].shape)) for name in layers) * few.tokens
    rungs = sum(len(quantized.tensors[name].rungs) for name in layers)
    if not layers or work * rungs / 2 > MOST_WORK or "logits" not in {value.name for value in graph.outputs}:
        return {}
    base, shifted = _base(source, graph, layers)
    graph = replace(graph, constants={n: t for n, t in graph.constants.items() if n not in shifted})
    mask, inputs = few.mask, few.inputs(source)
    costs: dict[str, tuple[float, ...]] = {}
    progress.start("losses of rungs", len(layers), "tensors")
    with single_threaded():
        wanted = run(graph, inputs, None, base)[0]["logits"][mask]
        for behind in suffixes(graph, base, inputs, layers):
            own = quantized.tensors[behind.layer]
            row = []
            for rung in range(len(own.rungs)):
                changed = {
                    behind.layer: decode_tensor(own, rung=rung),
                    **_bias(behind.layer, own, rung, quantized.graph),
                }
                logits = behind.outputs(Replaced(base, changed))["logits"][mask]
                row.append(divergence(wanted, logits))
            costs[behind.layer] = tuple(np.minimum.accumulate(row).tolist())
            progress.advance(1, behind.layer)
    return costs


def with_errors(tensor: QTensor, errors: tuple[float, ...]) -> QTensor:
    """The tensor with these errors of its rungs."""
    rungs = tuple(replace(rung, error=error) for rung, error in zip(tensor.rungs, errors, strict=True))
    return replace(tensor, rungs=rungs)


def _first_users(graph: Graph, quantized: Model) -> dict[str, Node]:
    """For every tensor with such rungs, the first node that takes it, in the order of the graph."""
    users: dict[str, Node] = {}
    for node in graph.nodes:
        for name in node.inputs if node.op in ("Linear", "Gather") else ():
            own = quantized.tensors.get(name)
            if own is not None and own.rungs and all(rung.terms is not None for rung in own.rungs):
                users.setdefault(name, node)
    return users


def _with_biases(quantized: Model) -> Model:
    """The model, in which every layer whose rungs have biases has a constant NAME/bias that can take them."""
    known = {_weight_of(name) for name in quantized.graph.constants}
    rungs = {name: t.rungs for name, t in quantized.tensors.items() if name not in known and t.rungs}
    bare = [name for name, own in rungs.items() if any(rung.bias is not None for rung in own)]
    zeros = {name: np.zeros(quantized.tensors[name].shape[0], np.float32) for name in bare}
    return shifted(quantized, {name: plain(Buffer.of("bias", zero, "F32"), "f32") for name, zero in zeros.items()})


def _base(source: Model, graph: Graph, layers: Mapping[str, Node]) -> tuple[Replaced, set[str]]:
    """The float weights, with biases as they were before layers were shifted; and the names of those biases."""
    weights, names = Weights(source), [name for name in graph.constants if _weight_of(name) in layers]
    before: dict[str, Array] = {}
    for name in names:
        own = name.partition("/bias+")[2]
        known = source.graph.constants
        value = known[own].decode() if own in known else weights[own] if own else None
        before[name] = np.zeros(graph.constants[name].shape, np.float32) if value is None else value
    return Replaced(weights, before), set(names)


def _bias(weight: str, tensor: QTensor, rung: int, graph: Graph) -> dict[str, Array]:
    """What the layers of a weight add at a rung."""
    relative = tensor.rungs[rung].bias
    names = [name for name in graph.constants if _weight_of(name) == weight]
    added = 0.0 if relative is None else decode_codes(relative)
    return {name: graph.constants[name].decode() + added for name in names}


def _weight_of(constant: str) -> str:
    return constant.partition("/bias")[0] if "/bias" in constant else ""
