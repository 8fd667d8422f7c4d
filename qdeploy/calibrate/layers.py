"""Calibration of a decoder or an encoder on tokens: the statistics of every distinct input of its layers.

The graph runs once, node by node over all samples, so that memory stays near one layer's. What is known of an input is
written as soon as the run has come there; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.samples import TOKENS, Samples, read_samples
from qdeploy.quantize.statistics import FILE, FORMAT, Gathered, StatisticsFolder, fingerprint, save_arrays
from qdeploy.quantize.walk import Walk, on_all_cores
from qdeploy.store.archives import read_arrays

_CHECKPOINT, _EVERY = "checkpoint.npz", 60.0
"""Where a run goes on, and seconds between two of them."""


def calibrate_layers(
    model: Model,
    path: str,
    folder: str | os.PathLike[str],
    *,
    tokens: int = TOKENS,
    length: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Runs samples through a model, and writes statistics of the inputs of its layers into a folder.

    Args:
        model: A decoder or an encoder.
        path: A text, .npz or .npy (`qdeploy.quantize.samples`).
        folder: Of statistics; made where there is none. Those of the same model and samples are continued.
        tokens: How many are used at most.
        length: Of a sequence at most; 0: the model's context, at most 512.
        force: Replace statistics of other models or samples.
        progress: Told of every input.

    Returns:
        What statistics.json says.

    Raises:
        BadArgumentError: The samples cannot be read, or the folder holds statistics of something else.
    """
    samples, target = read_samples(model, path, tokens=tokens, length=length), Path(folder)
    run = _Run(model, samples, target, _started(model, samples, target, force))
    return run.finish(progress)


def _started(model: Model, samples: Samples, target: Path, force: bool) -> dict[str, Any]:
    """The description so far; a new one where there is none."""
    described = {
        "format": FORMAT,
        "model": fingerprint(model),
        "samples": hashlib.sha256(samples.ids.tobytes() + samples.lengths.tobytes()).hexdigest(),
        "tokens": samples.tokens,
        "inputs": [],
    }
    if not StatisticsFolder.is_one(str(target)):
        target.mkdir(parents=True, exist_ok=True)
        return described
    known = StatisticsFolder(target).described
    if all(known.get(name) == described[name] for name in ("model", "samples")):
        return dict(known)
    if not force:
        raise BadArgumentError(
            "the folder holds statistics of another model or other samples",
            where=str(target),
            todo="Name another folder, or pass --force.",
        )
    for file in (*target.glob("*.npz"), target / FILE):
        file.unlink()
    return described


class _Run:
    """A run through the graph."""

    def __init__(self, model: Model, samples: Samples, target: Path, described: dict[str, Any]) -> None:
        self._walk, self._target, self._described = Walk(model, samples), target, described
        self._samples, self._saved = samples, time.monotonic()

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Measures every input that is not known yet."""
        walk, waiting = self._walk, self._walk.layers
        known = {row["name"] for row in self._described["inputs"]}
        progress.start("statistics of the inputs of layers", len(waiting), "inputs")
        progress.advance(len(known))
        if not set(waiting) <= known:
            self._restore()
        while set(waiting) - known:
            node = walk.next_layer
            if node is not None and node.inputs[0] not in known:
                self._measure(node.inputs[0], waiting[node.inputs[0]])
                known.add(node.inputs[0])
                progress.advance(1, waiting[node.inputs[0]][0])
                self._checkpoint()
            walk.step()
        (self._target / _CHECKPOINT).unlink(missing_ok=True)
        self._write()
        return self._described

    def _measure(self, name: str, weights: Sequence[str]) -> None:
        gathered, batches = Gathered(), self._walk.rows(name)
        for rows, product, mask in zip(batches, on_all_cores(_products, batches), self._walk.masks, strict=True):
            gathered.add(product, rows, len(mask))
        inputs = self._described["inputs"]
        file = f"{len(inputs)}.npz"
        save_arrays(self._target / file, gathered.arrays())
        columns = batches[0].shape[1]
        self._described["inputs"] = [
            *inputs,
            {"name": name, "weights": list(weights), "columns": columns, "file": file},
        ]
        self._write()

    def _write(self) -> None:
        partial = self._target / f"{FILE}.partial"
        partial.write_text(json.dumps(self._described, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._target / FILE)

    def _checkpoint(self) -> None:
        """Keeps all values that are needed behind this node, once a minute."""
        if time.monotonic() - self._saved < _EVERY:
            return
        parts = {f"{i}:{name}": x for i, values in enumerate(self._walk.values) for name, x in values.items()}
        identity = np.frombuffer(self._described["samples"].encode(), np.uint8)
        save_arrays(self._target / _CHECKPOINT, {**parts, "place": np.array(self._walk.place), "samples": identity})
        self._saved = time.monotonic()

    def _restore(self) -> None:
        """Goes on from the checkpoint, where there is one of these samples."""
        try:
            arrays = read_arrays(str(self._target / _CHECKPOINT))
            if bytes(arrays["samples"]).decode() != self._described["samples"]:
                return
            values: list[dict[str, Array]] = [{} for _ in self._walk.values]
            for key, array in arrays.items():
                number, sign, name = key.partition(":")
                if sign:
                    values[int(number)][name] = array
            self._walk.place, self._walk.values = int(arrays["place"]), values
        except (BadFileError, ValueError, KeyError, IndexError):
            return


def _products(rows: Array) -> Array:
    product: Array = rows.T @ rows
    return product
