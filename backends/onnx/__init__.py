"""ONNX: one model.onnx and one external data file that ONNX Runtime and onnxruntime-genai load as they are.

Weights stay packed: each takes the form that the rule table (`rules.py`) finds for its encoding, and is written by row
ranges, so that neither the tensors nor the protobuf are ever in memory as a whole. The folder that `lower` writes to is
the caller's; what it holds is complete only when `lower` returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.onnx.checking import Level
    from qdeploy.backends.onnx.options import Lowered, Options
    from qdeploy.backends.results import CheckResult, Choice, Row
    from qdeploy.ir.model import Model

NAME = "onnx"
TITLE = "ONNX for ONNX Runtime and onnxruntime-genai (opset 21, weights packed, external data)"

__all__ = [
    "NAME",
    "TITLE",
    "CheckResult",
    "Choice",
    "Lowered",
    "Options",
    "check",
    "compare",
    "integer_only",
    "logits",
    "logits_limit",
    "lower",
]


def lower(model: Model, target: Path, options: Options, progress: Progress = SILENT) -> Lowered:
    """Writes a model as ONNX.

    Args:
        model: What to write; it must have a graph.
        target: An existing, empty folder.
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

    return assemble(model, target, options, progress)


def check(model: Model, target: Path, lowered: Lowered, level: Level = "auto") -> list[CheckResult]:
    """Runs what was written in ONNX Runtime, in a child process, against the numpy meaning of the source.

    Args:
        model: What was lowered.
        target: The folder that `lower` wrote.
        lowered: What it returned.
        level: "nodes": one node per distinct form, on some rows; "full": the whole model as well; "auto": full where
            the data file is below 256 MB; "none": nothing.

    Raises:
        ProofError: A result is further off than allowed, or ONNX Runtime does not run what was written.
        UnsupportedError: onnxruntime is not installed.
    """
    from qdeploy.backends.onnx import checking

    return checking.check(model, target, lowered, level)


def compare(model: Model, path: str, options: Options, progress: Progress = SILENT) -> Iterator[Row]:
    """Holds an output against its source: every byte is derived again and compared (see verify.py)."""
    from qdeploy.backends.onnx import verify

    return verify.compare(model, path, options, progress)


def integer_only(path: str | Path) -> dict[str, Any]:
    """What types the values of an output have (see proof.py): integer_only, nodes, values, floats, externs."""
    from qdeploy.backends.onnx.integer import proof as integer_proof

    return integer_proof.integer_only(path)


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of an output for ids [1, tokens], by ONNX Runtime: [tokens, vocabulary]."""
    from qdeploy.backends.onnx import verify

    return verify.logits(path, ids)


def logits_limit(options: Options) -> float:
    """The relative L2 distance from the numpy reference that the activations' rounding may leave."""
    from qdeploy.backends.onnx import checking

    return checking.INT8_FULL if options.activations == "int8" else checking.EXACT_FULL


def __getattr__(name: str) -> object:
    if name in ("Options", "Lowered"):
        from qdeploy.backends.onnx import options

        return getattr(options, name)
    if name in ("CheckResult", "Choice"):
        from qdeploy.backends import results

        return getattr(results, name)
    raise AttributeError(name)
