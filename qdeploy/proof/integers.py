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
        UnsupportedError: The path is not an output, or its backend has no such proof.
    """
    backend = registry.artifact_backend(path)
    proof = backend.integers if backend is not None else None
    if proof is None:
        raise UnsupportedError(
            "no output that can be shown to compute with integers alone",
            where=str(path),
            found=backend.name if backend is not None else "no output",
            allowed=f"outputs of {_proving()}",
            todo="Convert with --to tvm, or with --to onnx --integer strict.",
        )
    return dict(proof.integer_only(os.fspath(path)))


def _proving() -> str:
    """The names of the targets whose outputs can be shown to hold integers alone."""
    names = []
    for name, row in registry.BACKENDS.rows().items():
        try:
            names += [name] if row.load().integers is not None else []
        except UnsupportedError:
            continue
    return " and ".join(names)
