"""How good a model is: perplexity on a text, and how near its predictions are to another's, at one budget or several.

    perplexity   exp of the mean loss of each token after the first of its sequence
    divergence   mean KL(softmax(other) || softmax(this)) over the same places, in nats
    top1         share of places at which both find the same token most likely
    cosine       of encoders: mean cosine of their sentence vectors (or first outputs) to the other's

Native files are run by the runtime, token by token, at each rung that is asked for; anything else by the interpreter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from qdeploy import registry
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.samples import Samples, read_samples

TOKENS = 16384
"""That are read of a text, unless told otherwise."""
Report = dict[str, Any]
Activations = Literal["int8", "exact"]


class Predictor(Protocol):
    """What gives scores for every token of a sequence."""

    @property
    def points(self) -> Sequence[Report]:
        """What it is measured at: {"rung", "bytes", "stored"} of a file with budgets, one that is empty otherwise."""
        ...

    def scores(self, ids: Array, point: int) -> Array:
        """Scores float [tokens, vocabulary] (of encoders a vector [1, width]) of ids int64 [tokens] at a point."""
        ...


def evaluate(
    path: str | os.PathLike[str],
    text: str,
    *,
    against: str = "",
    budgets: int = 1,
    tokens: int = TOKENS,
    length: int = 0,
    activations: Activations = "int8",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Report:
    """Evaluates a decoder or an encoder.

    Args:
        path: Any readable model, or a native file.
        text: A text, .npz or .npy (`qdeploy.quantize.samples`).
        against: Another model with the same tokens; empty: perplexity alone.
        budgets: For native files: how many rungs, evenly by bytes, the floor and everything among them; 1: everything.
        tokens: Of the text at most.
        length: Of a sequence at most; 0: the context, at most 512.
        activations: Of the runtime: "int8" or "exact".
        threads: Of the runtime; 0: one per core.
        progress: Told of sequences.

    Returns:
        {"path", "against", "tokens", "points"}; of each point what applies of "rung", "bytes", "stored", "loss",
        "perplexity", "divergence", "top1" and "cosine".

    Raises:
        QdeployError: A model or the text cannot be read, or the models do not fit each other.
    """
    with ExitStack() as stack:
        own, samples = _opened(path, text, budgets, tokens, length, activations, threads, stack)
        other, _ = _opened(against, text, 1, tokens, length, activations, threads, stack) if against else (None, None)
        tallies = [_Tally() for _ in own.points]
        progress.start("evaluating", len(samples.ids), "sequences")
        for ids, count in zip(samples.ids, samples.lengths, strict=True):
            wanted = other.scores(ids[:count], 0) if other is not None else None
            for place, tally in enumerate(tallies):
                tally.add(ids[:count], own.scores(ids[:count], place), wanted)
            progress.advance(1)
        points = [{**point, **tally.report()} for point, tally in zip(own.points, tallies, strict=True)]
    return {"path": str(path), "against": str(against), "tokens": samples.tokens, "points": points}


def _opened(
    path: str | os.PathLike[str],
    text: str,
    budgets: int,
    tokens: int,
    length: int,
    activations: Activations,
    threads: int,
    stack: ExitStack,
) -> tuple[Predictor, Samples]:
    backend = registry.artifact_backend(path)
    if backend is not None and backend.memory is not None:
        outline = backend.memory.outline(str(path))
        runtime = _Runtime(path, activations, threads, stack)
        runtime.points = _points(runtime.rungs, outline.rung(len(outline.weights)), budgets, outline.losses)
        return runtime, read_samples(runtime.model, text, tokens=tokens, length=length)
    if backend is not None:
        raise UnsupportedError("outputs of this target are not evaluated", where=str(path), found=backend.name)
    model = registry.open_model(path)
    return _Interpreter(model), read_samples(model, text, tokens=tokens, length=length)


class _Interpreter:
    """Any readable model, by the interpreter."""

    def __init__(self, model: Model) -> None:
        self._model, self._weights = model, Weights(model)
        self.points: list[Report] = [{}]

    def scores(self, ids: Array, point: int) -> Array:
        inputs = Samples(ids[None], np.array([len(ids)])).inputs(self._model)
        outputs, _ = run(self._model.graph, inputs, None, self._weights)
        if "logits" in outputs:
            logits: Array = outputs["logits"][0]
            return logits
        name = "sentence_embedding" if "sentence_embedding" in outputs else next(iter(outputs))
        return np.asarray(outputs[name][0]).reshape(-1, outputs[name].shape[-1])[:1]


class _Runtime:
    """A native file at some of its rungs."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        activations: Activations,
        threads: int,
        stack: ExitStack,
    ) -> None:
        from qdeploy.native import Runtime

        self._runtime = stack.enter_context(Runtime(path, threads=threads, activations=activations))
        self.rungs = [size for size, _ in self._runtime.rungs()]
        self.points: list[Report] = []
        meta = self._runtime.meta
        files = [_carried(name, data) for name in _TOKENIZERS if (data := self._runtime.metadata(name)) is not None]
        self.model = Model("native", str(path), {}, {}, "hf", tuple(files), build_graph=lambda _: _graph_of(meta))

    def scores(self, ids: Array, point: int) -> Array:
        self._runtime.set_rung(int(self.points[point]["rung"]))
        if self._runtime.encoder:
            outputs = self._runtime.run(ids)
            name = "sentence_embedding" if "sentence_embedding" in outputs else next(iter(outputs))
            return np.asarray(outputs[name]).reshape(-1, outputs[name].shape[-1])[:1]
        return np.asarray(self._runtime.logits(ids))


_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def _carried(name: str, data: bytes) -> Any:
    from qdeploy.ir.model import SourceFile
    from qdeploy.ir.tensor import Buffer

    return SourceFile(name, Buffer.of(name, np.frombuffer(data, np.uint8), "U8"))


def _graph_of(meta: dict[str, Any]) -> Any:
    """A graph of which only the meta and the names of the inputs are asked."""
    from qdeploy.ir.graph import Graph, Value

    names = ("input_ids",) if meta.get("kind") == "decoder" else ("input_ids", "attention_mask", "token_type_ids")
    return Graph(tuple(Value(name, "I64", ("batch", "sequence")) for name in names), (), (), meta=meta)


def _points(sizes: Sequence[int], floor: int, count: int, stored: Mapping[int, float]) -> list[Report]:
    """Rungs of a file, evenly by the bytes of its stack: {"rung", "bytes", "stored" where it is}."""
    from qdeploy.native.rungs import evenly_apart

    return [
        {"rung": rung, "bytes": sizes[rung - 1], **({"stored": stored[rung]} if rung in stored else {})}
        for rung in evenly_apart(sizes, floor, count)
    ]


@dataclass
class _Tally:
    """Sums over places."""

    loss: float = 0.0
    places: int = 0
    divergence: float = 0.0
    same: int = 0
    compared: int = 0
    cosines: list[float] = field(default_factory=list)

    def add(self, ids: Array, scores: Array, wanted: Array | None) -> None:
        """Takes the scores of a sequence, and those of the other model."""
        if len(scores) != len(ids):  # a vector
            if wanted is None:
                raise BadArgumentError("an encoder is held against another", todo="Pass --against MODEL.")
            self.cosines.append(_cosine(scores[0], wanted[0]))
            return
        log = _log_softmax(scores)
        self.loss -= float(log[np.arange(len(ids) - 1), ids[1:]].sum())
        self.places += len(ids) - 1
        if wanted is None:
            return
        if wanted.shape != scores.shape:
            raise BadArgumentError(
                "models of other vocabularies", found=wanted.shape[-1], allowed=str(scores.shape[-1])
            )
        other = _log_softmax(wanted)
        self.divergence += float((np.exp(other) * (other - log)).sum())
        self.same += int((scores.argmax(axis=1) == wanted.argmax(axis=1)).sum())
        self.compared += len(ids)

    def report(self) -> Report:
        """The means."""
        means: Report = {}
        if self.places:
            means["loss"] = self.loss / self.places
            means["perplexity"] = math.exp(min(means["loss"], 700.0))
        if self.compared:
            means |= {"divergence": self.divergence / self.compared, "top1": self.same / self.compared}
        if self.cosines:
            means["cosine"] = float(np.mean(self.cosines))
        return means


def _log_softmax(scores: Array) -> Array:
    wide = scores.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log: Array = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return log


def _cosine(one: Array, two: Array) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / size if size else 0.0
