"""The proof that an output computes with integers alone, by the backend that wrote it."""

from __future__ import annotations

import os
from typing import Any

from qdeploy import registry
from qdeploy.errors import UnsupportedError


def integer_only(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Looks for floating point numbers in an output.

    Args:
        path: An output of a backend that has such a proof (tvm, onnx).

    Returns:
        "integer_only": whether nothing but integers was found. What else there is depends on the backend: how much was
        looked at, and lists of what was found ("floats", "externs", "divisions").

    Raises:
        UnsupportedError: The path is no output, or its backend has no such proof.
    """
    backend = registry.artifact_backend(path)
    if not hasattr(backend, "integer_only"):
        raise UnsupportedError(
            "no output that can be shown to compute with integers alone",
            where=str(path),
            found=backend.NAME if backend else "no output",
            allowed="outputs of tvm and onnx",
            todo="Convert with --to tvm, or with --to onnx --integer strict.",
        )
    return dict(backend.integer_only(path))
