"""Holding an output against its source: the model is lowered again, and every byte of the output compared with that.

Lowering is a pure function of the source and the options that the report names, so nothing has to be inverted: equal
bytes mean equal codes, scales and graph, and a difference is shown under the tensor that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.backends.onnx.assemble import lowered_graph
from qdeploy.backends.onnx.external import SLAB, Placed
from qdeploy.backends.onnx.options import Options
from qdeploy.backends.onnx.proto import DATA_FILE, MODEL_FILE
from qdeploy.contracts.results import Row
from qdeploy.ir.model import Model
from qdeploy.progress import Progress
from qdeploy.store.folder import File, Folder


def compare(model: Model, path: str, options: Options, progress: Progress) -> Iterator[Row]:
    """Compares an output with what its source lowers to.

    Args:
        model: The source.
        path: The output folder.
        options: Those of the conversion.
        progress: Told of every range.

    Yields:
        (name, equal, 0.0, None, note) per weight, and one row for the graph.
    """
    lowering = lowered_graph(model, options)
    folder = Folder(path)
    builder = lowering.builder
    progress.start("comparing weights", sum(p.blob.nbytes for p in builder.data.placed))
    wrong: dict[str, str] = {}
    data = folder.open(DATA_FILE)
    try:
        for placed in builder.data.placed:
            if not _same(data, placed, progress):
                wrong[placed.blob.name] = "the stored bytes differ"
    finally:
        data.close()
    blobs = {p.blob.name for p in builder.data.placed}
    for tensor in lowering.rulings:
        notes = [f"{blob}: {note}" for blob, note in wrong.items() if blob == tensor or blob.startswith(f"{tensor}.")]
        yield tensor, not notes, 0.0 if not notes else float("nan"), None, "; ".join(notes)
    owned = {b for b in blobs if any(b == t or b.startswith(f"{t}.") for t in lowering.rulings)}
    for blob in sorted(set(wrong) - owned):
        yield blob, False, float("nan"), None, wrong[blob]
    same = _bytes(folder, MODEL_FILE) == builder.model().SerializeToString(deterministic=True)
    yield "(graph)", same, 0.0, None, "" if same else "model.onnx is not what the source lowers to"


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The output's logits (an encoder's last hidden state) for ids [1, tokens], by ONNX Runtime: [tokens, width]."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(Path(path) / MODEL_FILE), providers=["CPUExecutionProvider"])
    feeds = {value.name: _feed(value, ids) for value in session.get_inputs()}
    output: npt.NDArray[np.float32] = session.run([session.get_outputs()[0].name], feeds)[0][0]
    return output


def _feed(value: Any, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    if value.name.startswith("past_state"):
        return np.zeros((1, *value.shape[1:]), np.float32)
    if value.name.startswith("past_key_values"):
        _, heads, _, width = value.shape
        return np.zeros((1, heads, 0, width), np.float32)
    feeds = {"input_ids": ids, "position_ids": np.arange(ids.shape[1])[None], "token_type_ids": np.zeros_like(ids)}
    return feeds.get(value.name, np.ones_like(ids))


def _same(data: File, placed: Placed, progress: Progress) -> bool:
    blob, same = placed.blob, True
    if placed.offset + blob.nbytes > data.size:
        return False
    step = max(1, SLAB // max(1, blob.row_bytes * blob.weight))
    for start in range(0, blob.shape[0], step):
        rows = np.ascontiguousarray(blob.rows(start, min(start + step, blob.shape[0]))).reshape(-1).view(np.uint8)
        stored = np.frombuffer(data.read(placed.offset + start * blob.row_bytes, rows.size), np.uint8)
        same = same and np.array_equal(rows, stored)
        progress.advance(rows.size, blob.name)
    return same


def _bytes(folder: Folder, name: str) -> bytes:
    file = folder.open(name)
    try:
        return file.read(0, file.size)
    finally:
        file.close()
