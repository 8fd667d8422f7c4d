"""Finished tensors of a long run, one file each, so that a run that was stopped goes on where it was.

    NAME.npz    "description": the tensor (qdeploy/ir/encoding.py) and the loss that was reported, as JSON
                "buffer.KEY": the bytes of each of its buffers
                "shift": what its layer adds to its outputs, where there is something

NAME is a digest of the model, the method with its settings, the data, and the tensor's name: what was finished for
anything else is not taken. A file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.encoding import tensor_from_json, tensor_to_json
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array, Buffer, QTensor, buffers, plain
from qdeploy.quantize.contract import Weight
from qdeploy.quantize.specs import Spec
from qdeploy.quantize.statistics import FILE, StatisticsFolder, fingerprint, save_arrays
from qdeploy.store.archives import read_arrays
from qdeploy.store.spill import Spill
from qdeploy.store.storage import storage_dtype


class Finished:
    """Tensors that are done.

    Args:
        folder: Where they are kept; None: nowhere.
        model: What is quantized.
    """

    def __init__(self, folder: Path | None, model: Model) -> None:
        self._folder = folder
        self._model = fingerprint(model) if folder is not None else ""
        self._texts: dict[str, str] = {}
        self._spill = Spill()

    def restored(self, spec: Spec, weight: Weight) -> QTensor | None:
        """The tensor that a run before this one has finished, with its loss and its shift; None: there is none."""
        path = self._path(spec, weight.name)
        if path is None or not path.is_file():
            return None
        try:
            arrays = read_arrays(str(path))
            described = json.loads(bytes(arrays["description"]))
            tensor = tensor_from_json(described["tensor"], partial(self._buffer, arrays), weight.name)
        except (BadFileError, KeyError, ValueError):  # made anew
            return None
        if tensor.shape != weight.tensor.shape:
            return None
        if "loss" in described:
            weight.losses[weight.name] = float(described["loss"])
        if "shift" in arrays:
            weight.shifts[weight.name] = plain(Buffer.of("bias", arrays["shift"], "F32"), "f32")
        return tensor

    def keep(self, spec: Spec, weight: Weight, tensor: QTensor) -> None:
        """Keeps a tensor; all of it is made now."""
        path = self._path(spec, weight.name)
        if path is None:
            return
        parts = {buffer.key: np.frombuffer(buffer.read().tobytes(), np.uint8) for buffer in buffers(tensor)}
        described = {"tensor": tensor_to_json(tensor)}
        if weight.name in weight.losses:
            described["loss"] = weight.losses[weight.name]
        arrays: dict[str, Array] = {f"buffer.{key}": part for key, part in parts.items()}
        if weight.name in weight.shifts:
            arrays["shift"] = weight.shifts[weight.name].decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, {"description": np.frombuffer(json.dumps(described).encode(), np.uint8), **arrays})

    def _buffer(self, arrays: Mapping[str, Array], key: str, dtype: str, shape: tuple[int, ...]) -> Buffer:
        stored = arrays[f"buffer.{key}"].view(storage_dtype(dtype)).reshape(shape)
        return Buffer(key, dtype, shape, self._spill.keep(stored))

    def _path(self, spec: Spec, name: str) -> Path | None:
        if self._folder is None:
            return None
        text = spec.needs.text
        if text not in self._texts:
            self._texts[text] = _digest_of(Path(text)) if text else ""
        parts = (self._model, spec.method, repr(spec.quantizer), repr(spec.grid), self._texts[text], name)
        return self._folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.npz"


def _digest_of(data: Path) -> str:
    """Of a text, or of what a folder of statistics was measured on."""
    file = data / FILE if StatisticsFolder.is_one(str(data)) else data
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BadFileError(f"the data cannot be read: {error.strerror}", where=str(file)) from error
