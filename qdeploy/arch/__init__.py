"""config.json -> graph: one file per family of models, in families/.

    family.py          what a family is, and how it is found by `model_type`
    names.py           how parameters are called in each dialect
    config.py          config.json, field by field; rope.py, its rotary frequencies
    stack.py           layers as data: their blocks, norms and residuals; decoder.py, a causal decoder of them
    bidirectional.py   an encoder of such layers; encoder.py, BERT and what was made of it
    self_attention.py  what a layer may mix tokens with; mlp.py, what it may do with each token
    towers.py          the text model of a multimodal one
    builder.py         a graph under construction; sentence.py, sentence embeddings

The definitions are those of Hugging Face's transformers; a field that changes the arithmetic and is not understood is
refused by its name, and a configuration that contradicts the tensors is an error that names both.
"""

from __future__ import annotations

from qdeploy.arch.family import check_head, family_of, model_types
from qdeploy.arch.towers import text_tower
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model


def build_graph(model: Model) -> Graph:
    """Builds the graph of a model from its configuration and its tensors.

    Raises:
        UnsupportedError: The architecture, or a field of its configuration, is not supported; named.
        BadFileError: The configuration contradicts itself or the tensors; the field and the tensor are named.
    """
    model = text_tower(model) or model
    kind = model.config.get("model_type")
    family = family_of(kind) if isinstance(kind, str) else None
    if family is None or not isinstance(kind, str) or kind not in family.heads:
        raise UnsupportedError(
            "unknown architecture",
            where="config.json: model_type",
            found=kind,
            allowed=", ".join(model_types()),
            todo="Convert its tensors with --to ir.",
        )
    check_head(kind, model.config, family)
    graph = family.build(model)
    check_graph(graph, model.tensors.keys())
    return graph
