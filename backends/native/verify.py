"""Holding a model file against its source: every row block of every matrix is read back and compared.

The rest is derived again: the graph's records, the metadata and the small tensors must be the same bytes. The order of
the stack is not compared; it rests on sums of floats, and any order is a right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native.checking import ROUNDED, relative
from qdeploy.backends.native.describing import document
from qdeploy.backends.native.layout import SectionId
from qdeploy.backends.native.naming import FILE
from qdeploy.backends.native.options import Options
from qdeploy.backends.native.parts import row_range, row_slabs
from qdeploy.backends.native.reading import ModelFile
from qdeploy.backends.native.write import File, plan_file
from qdeploy.contracts.results import Row
from qdeploy.errors import BadFileError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.measure import decibels, energy
from qdeploy.progress import Progress

_DERIVED = (
    SectionId.MATRICES,
    SectionId.TERMS,
    SectionId.TENSORS,
    SectionId.VALUES,
    SectionId.NODES,
    SectionId.STATES,
    SectionId.ATTRIBUTES,
    SectionId.METADATA,
)


def compare(model: Model, path: str, options: Options, progress: Progress) -> Iterator[Row]:
    """Yields (name, equal, greatest relative error, None, note) per matrix, and rows for what is not a matrix."""
    file = ModelFile(located(path))
    matrices = file.matrices()
    progress.start("comparing weights", sum(model.tensors[name].nbytes for name in matrices if name in model.tensors))
    for name, index in matrices.items():
        record = file.section(SectionId.MATRICES)[index]
        shape = (int(record["rows"]), int(record["columns"]))
        if name not in model.tensors or model.tensors[name].shape != shape:
            yield name, False, float("nan"), None, f"the source has no such tensor of shape {shape}"
            continue
        yield (name, *_difference(file, model.tensors[name], index))
        progress.advance(model.tensors[name].nbytes, name)
    yield from _rest(file, plan_file(model, _recorded_options(file, options)))
    damaged = file.damaged_pages()
    yield "(pages)", not damaged, 0.0, None, f"damaged pages: {damaged[:8]}" if damaged else ""


def _recorded_options(file: ModelFile, options: Options) -> Options:
    """The options that the file was written with, from its own metadata."""
    conversion = document(file, "conversion")
    own = {name: conversion.pop(name) for name in ("layout", "order", "sensitivities", "measure") if name in conversion}
    weights = own.get("sensitivities", {})
    numbers = isinstance(weights, dict) and all(isinstance(w, (int, float)) for w in weights.values())
    if not numbers or not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise BadFileError(
            "the file's sensitivities are not numbers", where=str(file.path), found=type(weights).__name__
        )
    entry = file.metadata.get("losses", b"")
    return replace(options, **own, conversion=conversion, losses=entry)


def _difference(file: ModelFile, tensor: QTensor, matrix: int) -> tuple[bool, float, float | None, str]:
    """Equal, greatest absolute error, signal-to-noise ratio in dB where they differ, a note."""
    relative_error = worst = signal = noise = 0.0
    for first, last in row_slabs(tensor.shape[0], tensor.shape[1]):
        want = tensor.decode(slice(*row_range(first, last, tensor.shape[0])))
        actual = file.rows(matrix, first, last)
        relative_error = max(relative_error, relative(actual, want))
        if relative_error > ROUNDED:
            with np.errstate(all="ignore"):
                error = want - actual
            worst, noise = max(worst, float(np.abs(error).max())), noise + energy(error)
        signal += energy(want)
    if relative_error <= ROUNDED:
        return True, 0.0, None, ""
    return False, worst, decibels(signal, noise), "the stored numbers differ"


def _rest(file: ModelFile, planned: File) -> Iterator[Row]:
    wrong = [s.name.lower() for s in _DERIVED if file.section(s).tobytes() != planned.records[s].tobytes()]
    yield "(graph)", not wrong, 0.0, None, f"not what the source gives: {', '.join(wrong)}" if wrong else ""
    small = len(file.section(SectionId.TENSORS)) == len(planned.plan.tensors) and all(
        file.tensor(i).tobytes() == tensor.tobytes() for i, tensor in enumerate(planned.plan.tensors)
    )
    yield "(small tensors)", small, 0.0, None, "" if small else "norms, biases, tables or column maps differ"


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of a model file for ids [1, tokens], by the native runtime: [tokens, vocabulary].

    Of an encoder its first output, the vectors of the tokens.
    """
    from qdeploy.native import Runtime

    with Runtime(str(located(path)), activations="exact") as runtime:
        if runtime.encoder:
            return runtime.run(ids[0])[runtime.outputs[0]]
        return np.stack([runtime.decode([int(token)]) for token in ids[0]])  # a step gives the last token's


def located(path: str) -> Path:
    """The model file: the path itself, or the one in the folder."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)
