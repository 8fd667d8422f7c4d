"""GGUF metadata in the spelling of Hugging Face's config.json (ggml/docs/gguf.md; llama.cpp's `llama-arch.cpp`).

    general.architecture                     "llama", "qwen2", ...; it is the prefix of all that follows
    <arch>.embedding_length                  and so on: `_FIELDS`
    <arch>.attention.key_length              extent of a head, where it is not embedding_length / head_count
    <arch>.rope.dimension_count              how much of a head is rotated
    <arch>.rope.scaling.type                 none, linear, yarn
    tokenizer.ggml.*_token_id                ids that the model needs

A family says the rest in its row (`qdeploy/arch/family.py`). Llama 3's frequency scaling is no metadata but the tensor
`rope_freqs.weight`, which the graph reads. A number that was stored as float32 is given as the shortest decimal that is
the same float32 (1e-05, not 9.999999747378752e-06).

A field of the architecture that is set and not understood would change what the network computes: the tensors can be
read all the same, but the graph is refused, by the name of the field. So is a tensor that no node uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qdeploy.arch.family import Family, Gguf, Metadata, Shapes, family_of, gguf_architectures
from qdeploy.arch.gguf import whole
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_NEEDED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_UNDERSTOOD = {
    "vocab_size",
    "tensor_data_layout",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scale_linear",
    "attention.causal",
    "pooling_type",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_TODO = "Convert its tensors with --to ir."


def describe(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], Callable[[Model], Graph]]:
    """Returns the configuration, and what builds the graph from it.

    Args:
        metadata: Of the first file.
        shapes: Of every tensor.

    Returns:
        The fields of config.json, none of them for an architecture that is not known; and a function that builds the
        graph, or raises UnsupportedError with the name of what stands in its way.
    """
    name = str(metadata.get("general.architecture", ""))
    family = family_of(name)
    row = family.gguf.get(name) if family is not None else None
    if family is None or row is None:
        known = ", ".join(gguf_architectures())
        return {}, _refused("unknown architecture", "general.architecture", name or "nothing", known)
    own = {key.removeprefix(f"{name}."): _number(v) for key, v in metadata.items() if key.startswith(f"{name}.")}
    config = _config(metadata, own, shapes, family, row)
    for key, value in own.items():
        known_field = key in _FIELDS or key in row.fields or key in _UNDERSTOOD or key in row.understood
        if isinstance(value, list) or (not known_field and value not in (0, "", "none")):
            return config, _refused("an unsupported field of the architecture", f"{name}.{key}", value, "absent")
    missing = [f"{name}.{key}" for key in _NEEDED if key not in own]
    if missing:
        return config, _refused("a field of the architecture is missing", "metadata", missing[0], "a number")
    if own.get("attention.value_length") not in (None, config.get("head_dim")):
        return config, _refused(
            "values of another extent than keys",
            f"{name}.attention.value_length",
            own["attention.value_length"],
            str(config.get("head_dim")),
        )
    return config, _build


def _config(metadata: Metadata, own: Metadata, shapes: Shapes, family: Family, row: Gguf) -> dict[str, Any]:
    """The fields of config.json: those of all architectures, and those of the family.

    Args:
        metadata: All of it.
        own: Of the architecture, without its prefix.
        shapes: Of every tensor.
        family: Whose model it is.
        row: How such files describe the family.
    """
    kind = row.model_type(own) if row.model_type else next(iter(family.heads))
    if metadata["general.architecture"] in family.heads and not row.model_type:
        kind = metadata["general.architecture"]
    config: dict[str, Any] = {"model_type": kind, "architectures": [family.heads[kind][0]]}
    config |= {field: own[key] for key, field in (_FIELDS | dict(row.fields)).items() if key in own}
    config |= _extents(own, shapes) | _tokens(metadata)
    return config | row.config(own, shapes, kind)


def _build(model: Model) -> Graph:
    from qdeploy.arch import build_graph

    return build_graph(model)


def _refused(what: str, where: str, found: object, allowed: str) -> Callable[[Model], Graph]:
    def build(model: Model) -> Graph:
        raise UnsupportedError(what, where=f"{model.path}: {where}", found=found, allowed=allowed, todo=_TODO)

    return build


def _number(value: Any) -> Any:
    """A value as JSON has it: one number for an array of equal ones, the shortest decimal for a float32."""
    if isinstance(value, np.ndarray):
        items = value.tolist()
        return items[0] if items and items.count(items[0]) == len(items) else items
    return float(str(np.float32(value))) if isinstance(value, float) and math.isfinite(value) else value


def _extents(own: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    heads = whole(own.get("attention.head_count"))
    fields: dict[str, Any] = {}
    if heads:
        fields["num_key_value_heads"] = own.get("attention.head_count_kv", heads)
        fields["head_dim"] = own.get("attention.key_length", whole(own.get("embedding_length")) // heads)
    if "token_embd.weight" in shapes:
        fields["vocab_size"] = shapes["token_embd.weight"][0]
    return fields


def _tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in (*_TOKENS, "eot")}
    fields: dict[str, Any] = {field: ids[name] for name, field in _TOKENS.items() if isinstance(ids[name], int)}
    turn = ids["eot"]  # the end of a turn ends a generation, too
    if isinstance(turn, int) and turn != fields.get("eos_token_id", turn):
        fields["eos_token_id"] = [fields["eos_token_id"], turn]
    return fields


def sentence_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """How tokens become one vector, in the files of sentence-transformers: path -> JSON; empty for other models."""
    pooling = {1: "mean", 2: "cls"}.get(metadata.get("bert.pooling_type", 0)) if _is_encoder(metadata) else None
    if pooling is None:
        return {}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    settings = {"word_embedding_dimension": metadata.get("bert.embedding_length"), "pooling_mode": pooling}
    return {"modules.json": json.dumps(modules).encode(), "1_Pooling/config.json": json.dumps(settings).encode()}


def _is_encoder(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("general.architecture") == "bert" and isinstance(metadata.get("bert.pooling_type"), int)
