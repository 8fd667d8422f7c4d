"""Second moments of the inputs of layers: how errors of single weights add up in the output of a layer.

The moment is the mean of x^T x over the rows x of its input; for a convolution they are windows of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.calibrate.calibrate import fitted
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Node
from qdeploy.ir.model import Model
from qdeploy.ir.ops.conv import borders, windows
from qdeploy.ir.run import batches, run
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import fold
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.allocate import LAYERS

ROWS = 4096
"""Rows of a batch that are used, evenly spread."""
WIDEST = 8192
"""Of a moment; wider layers get none."""


def input_moments(
    model: Model, data: Mapping[str, Array], *, batch: int = 32, progress: Progress = SILENT
) -> dict[str, npt.NDArray[np.float64]]:
    """Runs data through a network.

    Args:
        model: A float network.
        data: As for `calibrate`.
        batch: Entries that are run at a time, where the graph leaves that open.
        progress: Is told of the entries that are done.

    Returns:
        float64 [groups, K, K] for each layer, by the name of its weight [N, K] in the folded graph.
    """
    graph = fold(model.graph, model.tensors)
    feeds, count = fitted(graph, data)
    tensors = {**{name: model.tensors[name] for name in graph.weights() if name in model.tensors}, **graph.constants}
    weights = {name: as_value(tensor) for name, tensor in tensors.items()}
    layers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in LAYERS and not node.attrs.get("transA", 0) and node.inputs[1] in weights:
            layers.setdefault(node.inputs[0], []).append(node)
    sums: dict[str, Any] = {}
    totals: dict[str, int] = {}

    def watch(name: str, x: Array) -> None:
        for node in layers.get(name, ()):
            rows = _rows(node, x, weights[node.inputs[1]].shape)  # [groups, rows, K]
            if rows.shape[2] <= WIDEST:
                key = node.inputs[1]
                sums[key] = sums.get(key, 0.0) + (rows.swapaxes(1, 2) @ rows).astype(np.float64)
                totals[key] = totals.get(key, 0) + rows.shape[1]

    progress.start("input moments", count, "samples")
    for part in batches(graph, feeds, batch):
        run(graph, part, {}, weights, watch)
        progress.advance(len(next(iter(part.values()))))
    return {name: total / totals[name] for name, total in sums.items()}


def _rows(node: Node, x: Array, shape: tuple[int, ...]) -> Array:
    """What the weights of a layer are multiplied with: float32 [groups, rows, K]."""
    if node.op != "Conv":
        rows = x.reshape(1, -1, x.shape[-1])
        return np.asarray(rows[:, :: -(-rows.shape[1] // ROWS)], np.float32)
    rank, attrs = x.ndim - 2, node.attrs
    ones: Any = [1] * rank
    strides: Any = attrs.get("strides") or ones
    dilations: Any = attrs.get("dilations") or ones
    group: Any = attrs.get("group", 1)
    border = borders(
        x.shape[2:],
        shape[2:],
        strides,
        dilations,
        str(attrs.get("auto_pad", "NOTSET")),
        attrs.get("pads"),  # type: ignore[arg-type]
    )
    patches = windows(np.pad(x, [(0, 0), (0, 0), *border]), shape[2:], strides, dilations)
    n, places = len(patches), patches.shape[2 : 2 + rank]
    picked = np.arange(0, n * int(np.prod(places)), -(-n * int(np.prod(places)) // ROWS))
    image, *at = np.unravel_index(picked, (n, *places))
    chosen: Any = (image, slice(None), *at)
    rows = patches[chosen]  # [rows, C, *kernel]
    return np.asarray(rows.reshape(len(picked), group, -1).swapaxes(0, 1), np.float32)
