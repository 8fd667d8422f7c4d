"""ONNX: one model.onnx and one external data file that ONNX Runtime and onnxruntime-genai load as they are.

Weights stay packed: each takes the form that the rule table (`rules.py`) finds for its encoding, and is written by row
ranges, so that neither the tensors nor the protobuf are ever in memory as a whole. The folder that `lower` writes to is
the caller's; what it holds is complete only when `lower` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.contracts.backends import Backend, IntegerProof, Level, SpeedTimer, TextModel
from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.onnx.options import Lowered, Options
    from qdeploy.contracts import results
    from qdeploy.ir.model import Model
    from qdeploy.options import TargetOptions


class Onnx(Backend):
    """ONNX Runtime as a target."""

    name = "onnx"
    title = "ONNX for ONNX Runtime and onnxruntime-genai (opset 21, weights packed, external data)"

    @property
    def options(self) -> type[Options]:
        """See `Options`."""
        from qdeploy.backends.onnx.options import Options

        return Options

    def lower(self, model: Model, folder: Path, options: TargetOptions, progress: Progress = SILENT) -> Lowered:
        """Writes a model as ONNX.

        Args:
            model: What to write; it must have a graph.
            folder: An existing, empty folder.
            options: See `Options`.
            progress: Told of every slab that is written.

        Returns:
            The files, the choice per weight with its reason, and what `check` needs.

        Raises:
            UnsupportedError: A weight has no lossless form, an op has none, or the source describes no network.
            ProofError: A source tensor did not come back from its codes while it was read.
            OutputError: The folder cannot be written.
        """
        from qdeploy.backends.onnx.assemble import assemble

        return assemble(model, folder, self.options.of(options), progress)

    def check(
        self, model: Model, folder: Path, lowered: results.Lowered, level: Level = "auto"
    ) -> list[results.CheckResult]:
        """Runs what was written in ONNX Runtime, in a child process, against the numpy meaning of the source.

        Args:
            model: What was lowered.
            folder: The one that `lower` wrote to.
            lowered: What it returned.
            level: "nodes": one node per distinct form, on some rows; "full": the whole model as well; "auto": full
                where the data file is below 256 MB; "none": nothing.

        Raises:
            ProofError: A result is further off than allowed, or ONNX Runtime does not run what was written.
            UnsupportedError: onnxruntime is not installed.
        """
        from qdeploy.backends.onnx import checking
        from qdeploy.backends.onnx.options import Lowered

        return checking.check(model, folder, Lowered.of(lowered), level)

    def ops(self) -> frozenset[str]:
        """The ops that it lowers itself."""
        from qdeploy.backends.onnx.integer.nodes import ROWS
        from qdeploy.backends.onnx.nodes import lowered_ops

        return lowered_ops() | frozenset(ROWS)

    def compare(
        self, model: Model, path: str, options: TargetOptions, progress: Progress = SILENT
    ) -> Iterator[results.Row]:
        """Holds an output against its source: every byte is derived again and compared (see verify.py)."""
        from qdeploy.backends.onnx import verify

        return verify.compare(model, path, self.options.of(options), progress)

    @property
    def integers(self) -> IntegerProof:
        """The types of all values are those of integers (see integer/proof.py)."""
        return OnnxProof()

    @property
    def speed(self) -> SpeedTimer:
        """Outputs run next to floats (see timing.py)."""
        return OnnxSpeed()

    @property
    def text(self) -> TextModel:
        """ONNX Runtime gives logits."""
        return OnnxText()


class OnnxProof(IntegerProof):
    """The types of an output's values."""

    def integer_only(self, path: str | Path) -> Mapping[str, Any]:
        """What types the values of an output have: integer_only, nodes, values, floats, externs."""
        from qdeploy.backends.onnx.integer import proof

        return proof.integer_only(path)


class OnnxSpeed(SpeedTimer):
    """Times in ONNX Runtime."""

    def against_floats(self, floats: Model, model: Model, folder: Path) -> results.Timing | str:
        """The times of an output and of the same network in floats, or why there are none."""
        from qdeploy.backends.onnx import timing

        return timing.against_floats(floats, model, folder)


class OnnxText(TextModel):
    """Logits by ONNX Runtime."""

    def logits(self, path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The logits of an output for ids [1, tokens]: [tokens, vocabulary]."""
        from qdeploy.backends.onnx import verify

        return verify.logits(path, ids)

    def limit(self, options: TargetOptions) -> float:
        """The relative L2 distance from the numpy reference that the activations' rounding may leave."""
        from qdeploy.backends.onnx import checking

        rounded = BACKEND.options.of(options).activations == "int8"
        return checking.INT8_FULL if rounded else checking.EXACT_FULL


BACKEND = Onnx()
