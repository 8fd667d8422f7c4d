"""Statistics of the inputs of every linear layer over a calibration text: above all how large each column is.

    s_j = mean over sequences of || x[:, j] ||_2 + 1e-3        (BitStack, arXiv 2410.23918, section 3.1)

then divided by their geometric mean, which no decomposition notices. The numpy interpreter runs the graph one node at a
time, so that only values that are still needed are held; composites around linear layers are expanded, since the input
of their inner layers is wanted, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.element import as_value, element_name
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Cache, run
from qdeploy.ir.tensor import Array, Float32, QTensor
from qdeploy.passes.expand import expand_graph
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.contract import Kind, Statistics
from qdeploy.quantize.samples import read_samples, read_text
from qdeploy.tokenizing import open_tokenizer

SEQUENCE, SEQUENCES = 512, 32
"""Tokens per sequence, and how many sequences of a text are used."""
KEPT = ("Linear", "SkipNorm", "MeanPool", "Positions")
"""Composites that run as they are; others are expanded, since the inputs of their inner layers are wanted, too."""

Watch = Callable[[str, Array], None]


class Sums:
    """Gathers statistics of the inputs of one layer, sequence by sequence."""

    def __init__(self, kinds: Collection[Kind]) -> None:
        self._kinds, self._sequences, self._tokens = frozenset(kinds), 0, 0
        self._norms: Any = 0.0
        self._moments: Any = 0.0
        self._sum: Any = 0.0

    def add(self, x: Array) -> None:
        """Takes the inputs of a sequence: [..., K]."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)  # [tokens, K]
        self._sequences, self._tokens = self._sequences + 1, self._tokens + len(rows)
        if "norms" in self._kinds:
            self._norms = self._norms + np.sqrt(np.square(rows).sum(axis=0))
        if "moments" in self._kinds:
            self._moments = self._moments + rows.T @ rows
        if "means" in self._kinds:
            self._sum = self._sum + rows.sum(axis=0)

    def statistics(self) -> Statistics:
        """The statistics of the chosen kinds."""
        norms = _scale(self._norms / self._sequences) if "norms" in self._kinds else None
        moments = self._moments / self._tokens if "moments" in self._kinds else None
        return Statistics(norms, moments, self._sum / self._tokens if "means" in self._kinds else None)


def text_statistics(
    model: Model, path: str, kinds: Collection[Kind], progress: Progress = SILENT
) -> tuple[dict[str, Statistics], int]:
    """Runs a text through a decoder.

    Args:
        model: A decoder with its tokenizer.json.
        path: A text file, UTF-8.
        kinds: What is measured.
        progress: Told of sequences.

    Returns:
        The statistics of the inputs of every linear layer, by the name of its weight; and how many tokens were used.

    Raises:
        UnsupportedError: The model is not a decoder, has no tokenizer, or the `tokenizers` package is missing.
        BadArgumentError: The text cannot be read, or is empty.
    """
    ids, sums = pieces_of(model, path), dict[str, Sums]()
    progress.start("statistics of the inputs of layers", len(ids), "sequences")
    for piece in ids:
        observe(
            model.graph,
            {"input_ids": piece[None]},
            model.tensors,
            lambda weight, x: sums.setdefault(weight, Sums(kinds)).add(x),
        )
        progress.advance(1)
    return {name: accumulated.statistics() for name, accumulated in sums.items()}, ids.size


def pieces_of(model: Model, path: str) -> npt.NDArray[np.int64]:
    """The tokens of a text in sequences of one length: int64 [sequences, tokens]; raises as `text_statistics`."""
    graph = model.graph
    if graph.meta.get("kind") != "decoder":
        raise UnsupportedError("only decoders are calibrated on a text", found=graph.meta.get("kind", "no kind"))
    ids = _token_ids(model, path)
    length = max(2, min(SEQUENCE, int(graph.meta.get("context", 0) or SEQUENCE)))  # type: ignore[arg-type]
    pieces = [ids[i : i + length] for i in range(0, len(ids), length)][:SEQUENCES]
    return np.array([piece for piece in pieces if len(piece) == length] or pieces[:1], np.int64)


def observe(graph: Graph, inputs: Mapping[str, Array], tensors: Mapping[str, QTensor], watch: Watch) -> None:
    """Runs a graph node by node, and shows every linear layer's weight name and input [..., K] to `watch`."""
    nodes = expand_graph(graph, KEPT).nodes
    last = last_uses(nodes)
    values = dict(inputs)
    states: dict[str, Cache] = {}
    for place, node in enumerate(nodes):
        if node.op == "Linear" and node.inputs[1] in tensors:
            watch(node.inputs[1], values[node.inputs[0]])
        weights = {name: as_value(tensors[name]) for name in node.inputs if name in tensors}
        outputs, states = run(alone(node, values, graph), values, states, weights)
        values.update(outputs)
        for name in (*node.inputs, *node.outputs):
            if last.get(name, -1) <= place:
                values.pop(name, None)


def alone(node: Node, values: Mapping[str, Array], graph: Graph) -> Graph:
    """A graph of one node, whose inputs are those values that it takes."""
    taken = dict.fromkeys(name for name in node.inputs if name in values)
    inputs = tuple(Value(n, element_name(values[n].dtype), values[n].shape) for n in taken)
    outputs = tuple(Value(name, "", ()) for name in node.outputs if name)
    return Graph(inputs, outputs, (node,), graph.states, graph.constants)


def last_uses(nodes: Sequence[Node]) -> dict[str, int]:
    """The place of the last node that takes each value."""
    return {name: place for place, node in enumerate(nodes) for name in node.inputs}


def _scale(norms: Any) -> Float32:
    scale = norms + 1e-3
    normalised: Float32 = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return normalised


def _token_ids(model: Model, path: str) -> list[int]:
    """The ids of a text by the model's tokenizer.json, or those that an .npz or .npy file holds."""
    if path.endswith((".npz", ".npy")):
        samples = read_samples(model, path)
        stored_ids: list[int] = samples.ids[samples.mask].tolist()
        return stored_ids
    tokenizer = next((f.data for f in model.files if f.path == "tokenizer.json"), None)
    if tokenizer is None:
        raise UnsupportedError("the model has no tokenizer", where=model.path, allowed="a tokenizer.json beside it")
    encoder = open_tokenizer(bytes(tokenizer.read()), model.path, "calibrating on a text")
    text = read_text(path, "the calibration text")
    ids: list[int] = encoder.encode(text).ids
    if not text.strip() or not ids:
        raise BadArgumentError("the calibration text is empty", where=path)
    return ids
