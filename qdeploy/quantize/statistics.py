"""Statistics of the inputs of layers as a folder, which calibration writes and quantizers read.

    statistics.json   {"format": 1, "model": what was calibrated, "samples": on what, "tokens": n,
                       "inputs": [{"name": value, "weights": [names], "columns": K, "file": "0.npz"}]}
    0.npz ...         for each distinct input: moments float32 [K, K], means float64 [K], norms float32 [K],
                      least and greatest float32 [K], percentiles float32 of |x| at PERCENTILES

An input's file is written whole before it is listed, so that calibration can be continued.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array, Float32
from qdeploy.quantize.contract import Statistics
from qdeploy.store.archives import read_arrays

FORMAT, FILE = 1, "statistics.json"
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


@dataclass(frozen=True)
class InputFile:
    """The statistics of one input, read when they are asked for."""

    path: Path

    def read(self) -> Statistics:
        """The statistics.

        Raises:
            BadFileError: The file cannot be read, or holds something else.
        """
        arrays = read_arrays(str(self.path))
        missing = [name for name in ("moments", "means", "norms") if name not in arrays]
        if missing:
            raise BadFileError("statistics are missing", where=str(self.path), found=", ".join(missing))
        moments = np.asarray(arrays["moments"], np.float64)
        means, norms = np.asarray(arrays["means"], np.float64), np.asarray(arrays["norms"], np.float32)
        if moments.shape != (len(means), len(means)) or not np.isfinite(moments).all():
            raise BadFileError("statistics that contradict themselves", where=str(self.path), found=moments.shape)
        return Statistics(norms, moments, means)


class StatisticsFolder:
    """A folder of statistics.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def is_one(path: str) -> bool:
        """Whether statistics stand under a path."""
        return os.path.isfile(os.path.join(path, FILE))

    @cached_property
    def described(self) -> dict[str, Any]:
        """statistics.json; BadFileError where it cannot be read."""
        try:
            described = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadFileError(f"statistics cannot be read: {error}", where=str(self.path / FILE)) from error
        if not isinstance(described, dict) or described.get("format") != FORMAT or "inputs" not in described:
            raise BadFileError("not statistics that this version knows", where=str(self.path / FILE))
        return described

    def inputs(self) -> dict[str, InputFile]:
        """By the name of a weight, the statistics of its inputs."""
        rows = self.described["inputs"]
        try:
            return {str(weight): InputFile(self.path / _own(row["file"])) for row in rows for weight in row["weights"]}
        except (TypeError, KeyError, ValueError) as error:
            raise BadFileError("inputs that are not described", where=str(self.path / FILE), found=error) from error


def fingerprint(model: Model) -> str:
    """What tells one model from another: its configuration, names, shapes and the first rows of its matrices."""
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode())
    for name, tensor in model.tensors.items():
        digest.update(f"{name} {tensor.shape}".encode())
        if len(tensor.shape) == 2:
            digest.update(tensor.decode(slice(0, 1)).tobytes())
    return digest.hexdigest()


def _own(name: object) -> str:
    """The name of a file in the folder itself."""
    if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".npz"):
        raise ValueError(f"no file of this folder: {name!r:.80}")
    return name


class Gathered:
    """Sums over the rows of an input."""

    def __init__(self) -> None:
        self._count, self._sequences = 0, 0
        self._moments: Any = 0.0
        self._sums: Any = 0.0
        self._norms: Any = 0.0
        self._least: Any = np.inf
        self._greatest: Any = -np.inf
        self._sample: list[Array] = []

    def add(self, moments: npt.NDArray[np.float32], rows: Float32, parts: int) -> None:
        """Takes rows [tokens, K] of a batch of so many sequences, and their x^T x."""
        self._count, self._sequences = self._count + len(rows), self._sequences + parts
        self._moments = self._moments + moments.astype(np.float64)
        self._sums = self._sums + rows.sum(axis=0, dtype=np.float64)
        self._norms = self._norms + np.sqrt(np.diag(moments).astype(np.float64))
        self._least = np.minimum(self._least, rows.min(axis=0))
        self._greatest = np.maximum(self._greatest, rows.max(axis=0))
        self._sample.append(np.abs(rows.reshape(-1)[:: max(1, rows.size // 65536)]))

    def arrays(self) -> dict[str, Array]:
        """What an input's file holds."""
        norms = self._norms + 1e-3
        spread = np.percentile(np.concatenate(self._sample), PERCENTILES)
        spread[-1] = max(float(np.abs(self._least).max()), float(np.abs(self._greatest).max()))
        return {
            "moments": (self._moments / self._count).astype(np.float32),
            "means": self._sums / self._count,
            "norms": (norms / np.exp(np.log(norms).mean())).astype(np.float32),
            "least": np.asarray(self._least, np.float32),
            "greatest": np.asarray(self._greatest, np.float32),
            "percentiles": spread.astype(np.float32),
        }


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes an .npz that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)
