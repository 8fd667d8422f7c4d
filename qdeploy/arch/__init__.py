"""config.json -> graph: one file per model family, listed here by `model_type`."""

from __future__ import annotations

from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build_graph(model: Model) -> Graph:
    """Builds the graph of a model from its configuration and its tensors."""
    raise NotImplementedError
