"""Native: one file of fixed little-endian structs that the C++ runtime reads, and of which any prefix runs.

Matrices are sums of terms whose codes are interleaved by 16 rows (interleave.py); integer codes lie in bit planes, the
first planes of all matrices first, so that the bytes that are there decide how exact the network is (layout.py,
order.py). Weights are written by row ranges; what was written is read back and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.native.options import CheckResult, Choice, Lowered, Options
    from qdeploy.backends.native.verify import Row
    from qdeploy.ir.model import Model

NAME = "native"
TITLE = "one file for the native runtime (elastic: any prefix of its weights runs)"
FILE = "model.qd"
"""The one file that `lower` writes; it becomes the output itself."""

__all__ = ["FILE", "NAME", "TITLE", "CheckResult", "Choice", "Lowered", "Options", "check", "compare", "logits",
           "logits_limit", "lower"]  # fmt: skip


def lower(model: Model, target: Path, options: Options, progress: Progress = SILENT) -> Lowered:
    """Writes `model.qd` into an existing, empty folder.

    Raises:
        UnsupportedError: The graph has an op that the runtime does not have, or the source describes no network.
        ProofError: A source tensor did not come back from its codes while it was read.
        OutputError: The file cannot be written.
    """
    from qdeploy.backends.native.write import write_model

    return write_model(model, target, options, progress)


def check(model: Model, target: Path, lowered: Lowered, level: str = "auto") -> list[CheckResult]:
    """Reads the file back with numpy: all checksums, and row blocks of every matrix against its source's decode.

    Args:
        model: What was lowered.
        target: The folder that `lower` wrote to.
        lowered: What it returned.
        level: "full": every row block; "auto" and "nodes": the first, the middle and the last; "none": nothing.

    Raises:
        ProofError: A matrix is not what its source means.
    """
    from qdeploy.backends.native import checking

    return checking.check(model, target, lowered, level)


def compare(model: Model, path: str, options: Options, progress: Progress = SILENT) -> Iterator[Row]:
    """Holds a model file against its source, every row of it."""
    from qdeploy.backends.native import verify

    return verify.compare(model, path, progress)


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of a model file for ids [1, tokens]: [tokens, vocabulary]."""
    from qdeploy.backends.native import verify

    return verify.logits(path, ids)


def logits_limit(options: Options) -> float:
    """The relative L2 distance from the numpy reference that activations in 8 bits may leave."""
    return 0.15


def __getattr__(name: str) -> object:
    if name in ("Options", "Choice", "Lowered", "CheckResult"):
        from qdeploy.backends.native import options

        return getattr(options, name)
    raise AttributeError(name)
