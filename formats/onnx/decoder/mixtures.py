"""QMoE (com.microsoft) as a choice of experts."""

from __future__ import annotations

from qdeploy.formats.onnx.decoder.reading import ObstacleError, Reading
from qdeploy.ir.graph import Node


def mixture(reading: Reading, node: Node) -> None:
    """Adds Route and Experts."""
    raise ObstacleError(node, "experts are not read yet")
