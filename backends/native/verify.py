"""Holding a model file against its source: every row block of every matrix is read back and compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native import FILE
from qdeploy.backends.native.checking import ROUNDED, differences
from qdeploy.backends.native.reading import ModelFile
from qdeploy.ir.model import Model
from qdeploy.progress import Progress

Row = tuple[str, bool, float, float | None, str]


def compare(model: Model, path: str, progress: Progress) -> Iterator[Row]:
    """Yields (name, equal, greatest relative error, None, note) per matrix, and a row for the checksums."""
    file = ModelFile(located(path))
    matrices = file.matrices()
    progress.start("comparing weights", sum(model.tensors[name].nbytes for name in matrices if name in model.tensors))
    for name, index in matrices.items():
        if name not in model.tensors:
            yield name, False, float("nan"), None, "the source has no such tensor"
            continue
        worst = max(differences(file, model, name, index, every=True))
        progress.advance(model.tensors[name].nbytes, name)
        yield name, worst <= ROUNDED, worst, None, "" if worst <= ROUNDED else "the stored numbers differ"
    damaged = file.damaged_pages()
    yield "(pages)", not damaged, 0.0, None, f"damaged pages: {damaged[:8]}" if damaged else ""


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of a model file for ids [1, tokens], by the native runtime: [tokens, vocabulary]."""
    from qdeploy.native import Runtime

    with Runtime(str(located(path)), activations="exact") as runtime:
        return np.stack([runtime.decode([int(token)]) for token in ids[0]])  # a step gives the last token's


def located(path: str) -> Path:
    """The model file: the path itself, or the one in the folder."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)
