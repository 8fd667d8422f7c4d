"""Native: one file of fixed little-endian structs that the C++ runtime reads, and of which any prefix runs.

Matrices are sums of terms whose codes are interleaved by 16 rows (interleave.py); integer codes lie in bit planes, the
first planes of all matrices first, so that the bytes that are there decide how exact the network is (layout.py,
order.py). Weights are written by row ranges; what was written is read back and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.native.options import Lowered, Options
    from qdeploy.backends.native.outlining import Outline
    from qdeploy.backends.native.reading import ModelFile
    from qdeploy.backends.results import CheckResult, Choice, Row
    from qdeploy.ir.model import Model

NAME = "native"
TITLE = "one file for the native runtime (elastic: any prefix of its weights runs)"
FILE = "model.qd"
"""The one file that `lower` writes; it becomes the output itself."""
MAGIC = b"qdeploy\n"
"""What it begins with, by which it is known."""

__all__ = [
    "FILE",
    "MAGIC",
    "NAME",
    "TITLE",
    "CheckResult",
    "Choice",
    "Lowered",
    "Options",
    "check",
    "compare",
    "conversion",
    "damaged_pages",
    "describe",
    "logits",
    "logits_limit",
    "lower",
    "opened",
    "outline",
    "session_bytes",
    "sketch",
]


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
    """Holds a model file against its source: every row of it, its graph, and its small tensors."""
    from qdeploy.backends.native import verify

    return verify.compare(model, path, options, progress)


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of a model file for ids [1, tokens]: [tokens, vocabulary]."""
    from qdeploy.backends.native import verify

    return verify.logits(path, ids)


def logits_limit(options: Options) -> float:
    """The relative L2 distance from the numpy reference that float32 activations and a float16 cache may leave."""
    return 0.005


def opened(path: str) -> ModelFile:
    """A model file, of which the front has been read and checked.

    Raises:
        BadFileError: It is none, or its front is damaged.
        UnsupportedError: It is of another version.
    """
    from qdeploy.backends.native.reading import ModelFile

    return ModelFile(Path(path))


def conversion(path: str) -> dict[str, Any]:
    """What the conversion that wrote a model file was asked for; raises as `opened`."""
    from qdeploy.backends.native import describing

    return describing.document(opened(path), "conversion")


def describe(path: str) -> dict[str, Any]:
    """What a model file is and holds, without its weights; raises as `opened`."""
    from qdeploy.backends.native import describing

    return describing.describe(opened(path))


def damaged_pages(path: str) -> tuple[int, list[int]]:
    """How many pages have a checksum, and which of them are not what was written; raises as `opened`."""
    from qdeploy.backends.native.layout import SectionId

    file = opened(path)
    return len(file.section(SectionId.PAGES)), file.damaged_pages()


def outline(path: str) -> Outline:
    """The stack of a model file as pieces, from its directory; raises as `opened`."""
    from qdeploy.backends.native import outlining

    return outlining.outline(opened(path))


def session_bytes(path: str, context: int, threads: int, kv: str) -> int:
    """What a session of a decoder holds (see outlining.py); raises as `opened`."""
    from qdeploy.backends.native import outlining

    return outlining.session_bytes(opened(path), context, threads, kv)


def sketch(model: Model, target: Path, options: Options) -> Path:
    """Writes the model file without its weights into an existing folder, for its directory; raises as `lower`."""
    from qdeploy.backends.native.write import write_head

    return write_head(model, target, options)


def __getattr__(name: str) -> object:
    if name in ("Options", "Lowered"):
        from qdeploy.backends.native import options

        return getattr(options, name)
    if name in ("CheckResult", "Choice"):
        from qdeploy.backends import results

        return getattr(results, name)
    raise AttributeError(name)
