"""Two networks on one text: how far their logits are apart, and how often they would say the same word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.contracts.backends import Backend
from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.options import TargetOptions
from qdeploy.tokenizing import open_tokenizer

Float32 = npt.NDArray[np.float32]
MAX_TOKENS = 128
"""A proof needs few tokens; the reference is numpy."""


def compare_logits(a: Model, b: Model, text: str) -> dict[str, Any]:
    """Runs both models in the numpy interpreter; returns relative L2 distance and top-1 agreement."""
    ids = tokenize(a, text)
    return distance(reference_logits(a, ids), reference_logits(b, ids), 1e-5)


def artifact_logits(backend: Backend, model: Model, path: str, text: str, options: TargetOptions) -> dict[str, Any]:
    """Runs a backend's output beside the numpy interpreter of its source; UnsupportedError where it takes no text."""
    if backend.text is None:
        raise UnsupportedError("outputs of this target cannot be run on a text", where=path, found=backend.name)
    ids = tokenize(model, text)
    return distance(reference_logits(model, ids), backend.text.logits(path, ids), backend.text.limit(options))


def reference_logits(model: Model, ids: npt.NDArray[np.int64]) -> Float32:
    """The decoder's logits [tokens, vocabulary] (or the encoder's last hidden state) in float32 numpy."""
    from qdeploy.ir.run import Weights, run

    graph = model.graph
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    feeds = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
    outputs, _ = run(graph, {v.name: feeds[v.name] for v in graph.inputs}, {}, Weights(model))
    logits: Float32 = outputs[graph.outputs[0].name][0]
    return logits


def distance(a: Float32, b: Float32, limit: float) -> dict[str, Any]:
    """Relative L2 distance of b from a, and the share of positions whose greatest entry is the same."""
    error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))
    same = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    return {"tokens": int(a.shape[0]), "relative_l2": error, "limit": limit, "same_top1": same}


def tokenize(model: Model, text: str) -> npt.NDArray[np.int64]:
    """The text's token ids [1, tokens], at most 128, by the tokenizer.json that came with the model."""
    carried = {Path(f.path).name: f for f in model.files if f.role in ("side", "derived")}
    if "tokenizer.json" not in carried:
        raise UnsupportedError("the model brings no tokenizer.json, so a text cannot be compared", where=model.path)
    data: bytes = carried["tokenizer.json"].data.read().tobytes()
    ids = open_tokenizer(data, model.path, "comparing on a text").encode(text).ids[:MAX_TOKENS]
    if not ids:
        raise UnsupportedError("the text has no token", found=repr(text))
    return np.array([ids], np.int64)
