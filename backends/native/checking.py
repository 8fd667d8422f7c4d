"""The proof by reading back: checksums, sampled row blocks of every matrix, and for "full" a run of the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qdeploy.backends.native.naming import FILE
from qdeploy.backends.native.parts import Array
from qdeploy.backends.native.reading import ModelFile
from qdeploy.contracts.results import CheckResult, Lowered
from qdeploy.errors import ProofError, UnsupportedError
from qdeploy.ir.model import Model

ROUNDED = 2.0**-21
"""Allowed difference relative to the greatest number of a row: a few roundings, where a step is reassociated."""

_TOKENS = 9  # of the sequence that a whole model runs on
EXACT = 1e-4
"""Allowed relative L2 distance of the outputs of a whole model in exact arithmetic."""


def check(model: Model, target: Path, lowered: Lowered, level: str) -> list[CheckResult]:
    """See `qdeploy.backends.native.check`."""
    if level == "none":
        return []
    file = ModelFile(target / FILE)
    damaged = file.damaged_pages()
    if damaged:
        raise ProofError("pages of the model file are not what was written", found=damaged[:8])
    results: dict[str, CheckResult] = {}
    for matrix, choice in enumerate(lowered.choices):
        worst = max(differences(file, model, choice.tensor, matrix, level == "full"))
        result = CheckResult(choice.tensor, choice.form, worst, ROUNDED)
        if not worst <= ROUNDED:
            raise ProofError(
                "a matrix does not read back as its source",
                where=choice.tensor,
                found=worst,
                allowed=f"at most {ROUNDED:.1e}",
            )
        if choice.form not in results or results[choice.form].error < worst:
            results[choice.form] = result
    return [*results.values(), *([_whole(model, target / FILE)] if level == "full" else [])]


def _whole(model: Model, path: Path) -> CheckResult:
    """The model in the runtime, in exact arithmetic with a cache in float32, against the interpreter's outputs."""
    from qdeploy.ir.run import Weights, run
    from qdeploy.native import Runtime
    from qdeploy.native.library import library

    graph = model.graph
    if "vocab" not in graph.meta:
        return CheckResult("model", "model", 0.0, EXACT, unrun="the graph takes no tokens")
    vocab, context = int(graph.meta["vocab"]), int(graph.meta["context"])  # type: ignore[arg-type]
    ids = (7 * np.arange(min(_TOKENS, context)) + 1) % vocab
    try:
        library()
    except UnsupportedError as unbuilt:
        return CheckResult("model", "model", 0.0, EXACT, unrun=unbuilt.what)
    with Runtime(path, activations="exact", kv="f32", context=len(ids)) as runtime:
        outputs = runtime.run(ids) if runtime.encoder else {"logits": runtime.logits(ids)}
    inputs = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    inputs["token_type_ids"] = np.zeros((1, len(ids)), np.int64)
    names = {value.name for value in graph.inputs}
    expected, _ = run(graph, {name: array for name, array in inputs.items() if name in names}, None, Weights(model))
    error = max(_distance(outputs[name], expected[name]) for name in outputs)
    if not error <= EXACT:
        raise ProofError(
            "the runtime does not compute what the source does",
            where="model",
            found=f"{error:.1e}",
            allowed=f"at most {EXACT:.0e}",
            todo="This is a defect of the conversion; please report it with the checkpoint.",
        )
    return CheckResult("model", "model", error, EXACT)


def _distance(actual: Array, expected: Array) -> float:
    """The relative L2 distance of one output."""
    want = expected.astype(np.float64).reshape(actual.shape)
    return float(np.linalg.norm(actual - want) / max(float(np.linalg.norm(want)), np.finfo(np.float64).tiny))


def differences(file: ModelFile, model: Model, name: str, matrix: int, every: bool = False) -> Iterator[float]:
    """The relative difference of row blocks of a matrix from what its tensor decodes to."""
    tensor = model.tensors[name]
    blocks = -(-tensor.shape[0] // 16)
    chosen = range(blocks) if every else sorted({0, blocks // 2, blocks - 1})
    for block in chosen:
        rows = file.rows(matrix, block, block + 1)
        yield relative(rows, tensor.decode(slice(block * 16, min(block * 16 + 16, tensor.shape[0]))))


def relative(actual: Array, want: Array) -> float:
    """Greatest difference over the greatest number of the row; 0 for equal numbers, NaN and infinities included."""
    if np.array_equal(actual, want, equal_nan=True):
        return 0.0
    with np.errstate(all="ignore"):
        scale = np.abs(want).max(axis=1, keepdims=True)
        error = np.abs(actual - want) / np.where(scale > 0, scale, 1)
    return float(np.where(actual == want, 0, error).max())
