"""config.json -> graph: one file per model family, listed here by `model_type`.

A family is a module with `build(model) -> Graph`. The definitions are those of Hugging Face's transformers; a field
that changes the arithmetic and is not understood is refused by its name, and a configuration that contradicts the
tensors is an error that names both.
"""

from __future__ import annotations

import importlib

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model

FAMILIES = {
    "llama": "qdeploy.arch.llama",
    "mistral": "qdeploy.arch.llama",
    "qwen2": "qdeploy.arch.qwen",
    "qwen3": "qdeploy.arch.qwen",
    "bert": "qdeploy.arch.bert",
}
"""model_type -> module."""


def build_graph(model: Model) -> Graph:
    """Builds the graph of a model from its configuration and its tensors.

    Raises:
        UnsupportedError: The architecture, or a field of its configuration, is not supported; named.
        BadFileError: The configuration contradicts itself or the tensors; the field and the tensor are named.
    """
    kind = model.config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedError(
            "unknown architecture",
            where="config.json: model_type",
            found=kind,
            allowed=", ".join(FAMILIES),
            todo="Convert its tensors with --to ir.",
        )
    graph: Graph = importlib.import_module(FAMILIES[kind]).build(model)
    check_graph(graph, model.tensors.keys())
    return graph
