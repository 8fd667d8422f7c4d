"""The proof by reading back: checksums, and sampled row blocks of every matrix against the meaning of its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qdeploy.backends.native.naming import FILE
from qdeploy.backends.native.parts import Array
from qdeploy.backends.native.reading import ModelFile
from qdeploy.contracts.results import CheckResult, Lowered
from qdeploy.errors import ProofError
from qdeploy.ir.model import Model

ROUNDED = 2.0**-21
"""Allowed difference relative to the greatest number of a row: a few roundings, where a step is reassociated."""


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
    return list(results.values())


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
