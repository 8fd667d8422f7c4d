"""Native: one file of fixed little-endian structs that the C++ runtime reads, and of which any prefix runs.

Matrices are sums of terms whose codes are interleaved by 16 rows (interleave.py); integer codes lie in bit planes, the
first planes of all matrices first, so that the bytes that are there decide how exact the network is (layout.py,
order.py). Weights are written by row ranges; what was written is read back and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.backends.native.naming import FILE
from qdeploy.contracts.backends import Backend, Level, MemoryPlan, SingleFile, TextModel
from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.native.options import Options
    from qdeploy.backends.native.outlining import Outline
    from qdeploy.backends.native.reading import ModelFile
    from qdeploy.contracts.results import CheckResult, Lowered, Row
    from qdeploy.ir.model import Model
    from qdeploy.options import TargetOptions


class Native(Backend):
    """The native runtime as a target."""

    name = "native"
    title = "one file for the native runtime (elastic: any prefix of its weights runs)"

    @property
    def options(self) -> type[Options]:
        """See `Options`."""
        from qdeploy.backends.native.options import Options

        return Options

    def lower(self, model: Model, folder: Path, options: TargetOptions, progress: Progress = SILENT) -> Lowered:
        """Writes `model.qd` into an existing, empty folder.

        Raises:
            UnsupportedError: The graph has an op that the runtime does not have, or the source describes no network.
            ProofError: A source tensor did not come back from its codes while it was read.
            OutputError: The file cannot be written.
        """
        from qdeploy.backends.native.write import write_model

        return write_model(model, folder, self.options.of(options), progress)

    def check(self, model: Model, folder: Path, lowered: Lowered, level: Level = "auto") -> list[CheckResult]:
        """Reads the file back with numpy: all checksums, and row blocks of every matrix against its source's decode.

        Args:
            model: What was lowered.
            folder: The one that `lower` wrote to.
            lowered: What it returned.
            level: "full": every row block; "auto" and "nodes": the first, the middle and the last; "none": nothing.

        Raises:
            ProofError: A matrix is not what its source means.
        """
        from qdeploy.backends.native import checking
        from qdeploy.passes.experts import with_matrices

        return checking.check(with_matrices(model), folder, lowered, level)

    def ops(self) -> frozenset[str]:
        """The ops that it lowers itself."""
        from qdeploy.backends.native.plan import lowered_ops

        return lowered_ops()

    def compare(self, model: Model, path: str, options: TargetOptions, progress: Progress = SILENT) -> Iterator[Row]:
        """Holds a model file against its source: every row of it, its graph, and its small tensors."""
        from qdeploy.backends.native import verify
        from qdeploy.passes.experts import with_matrices

        return verify.compare(with_matrices(model), path, self.options.of(options), progress)

    @property
    def file(self) -> SingleFile:
        """The model file."""
        return NativeFile()

    @property
    def memory(self) -> MemoryPlan:
        """Budgets follow from the directory of a file."""
        return NativeMemory()

    @property
    def text(self) -> TextModel:
        """The runtime gives logits."""
        return NativeText()


class NativeFile(SingleFile):
    """A model file says itself what it is; each method raises as `opened`."""

    name = FILE

    def recording(self, options: TargetOptions, record: Mapping[str, object]) -> TargetOptions:
        """The options, with what else stands in the metadata of the file."""
        return replace(BACKEND.options.of(options), conversion=record)

    def conversion(self, path: str) -> Mapping[str, object]:
        """The options of the conversion that wrote a model file."""
        from qdeploy.backends.native import describing

        return describing.document(opened(path), "conversion")

    def describe(self, path: str) -> dict[str, Any]:
        """What a model file is and holds, without its weights."""
        from qdeploy.backends.native import describing

        return describing.describe(opened(path))

    def damaged_pages(self, path: str) -> tuple[int, list[int]]:
        """How many pages have a checksum, and which of them are not what was written."""
        from qdeploy.backends.native.layout import SectionId

        file = opened(path)
        return len(file.section(SectionId.PAGES)), file.damaged_pages()


class NativeMemory(MemoryPlan):
    """The directory of a model file says what a budget gives."""

    def sketch(self, model: Model, folder: Path, options: TargetOptions) -> Path:
        """Writes the model file without its weights into an existing folder; raises as `Native.lower`."""
        from qdeploy.backends.native.write import write_head

        return write_head(model, folder, BACKEND.options.of(options))

    def outline(self, path: str) -> Outline:
        """The stack of a model file as pieces, from its directory; raises as `opened`."""
        from qdeploy.backends.native import outlining

        return outlining.outline(opened(path))

    def session_bytes(self, path: str, context: int, kv: str) -> int:
        """What a session of a decoder holds (see outlining.py); raises as `opened`."""
        from qdeploy.backends.native import outlining

        return outlining.session_bytes(opened(path), context, kv)


class NativeText(TextModel):
    """Logits by the native runtime."""

    def logits(self, path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The logits of a model file for ids [1, tokens]: [tokens, vocabulary]."""
        from qdeploy.backends.native import verify

        return verify.logits(path, ids)

    def limit(self, options: TargetOptions) -> float:
        """The relative L2 distance that float32 activations and a float16 cache may leave."""
        return 0.005


def opened(path: str) -> ModelFile:
    """A model file, of which the front has been read and checked.

    Raises:
        BadFileError: The file is not a model file, or its front is damaged.
        UnsupportedError: It is of another version.
    """
    from qdeploy.backends.native.reading import ModelFile

    return ModelFile(Path(path))


BACKEND = Native()
