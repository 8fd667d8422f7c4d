"""Sentence models: how sentence-transformers makes one vector of the tokens' vectors.

    modules.json            [{"idx", "name", "path", "type"}]: Transformer, then Pooling, then perhaps Normalize
    <path>/config.json      of Pooling: "pooling_mode_<kind>": true (older files) or "pooling_mode": "<kind>"

Mean and first-token pooling are supported; other kinds and other modules (Dense, ...) are refused by name.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import Builder
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.store.folder import JSON_LIMIT, parse_json

_POOLS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}


def add_sentence_embedding(add: Builder, hidden: int) -> bool:
    """Adds the output `sentence_embedding` [B, hidden] after `last_hidden_state`, if the model is a sentence model."""
    modules = _json(add.model, "modules.json")
    if modules is None:
        return False
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise BadFileError("modules.json is not a list of modules", where="modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedError(
            "unsupported modules of a sentence model",
            where="modules.json",
            found=", ".join(kinds),
            allowed="Transformer, Pooling, Normalize",
        )
    if len(kinds) == 1:
        return False
    pool = _pooling(add.model, str(modules[1].get("path", "")), hidden)
    last = "sentence_embedding" if len(kinds) == 2 else "pooled"
    if pool == "mean":
        add.node("MeanPool", "last_hidden_state", "attention_mask", name=last)
    else:
        first = add.node("Slice", "last_hidden_state", name="first_token", starts=[0], ends=[1], axes=[1])
        add.node("Squeeze", first, name=last, axes=[1])
    if len(kinds) == 3:
        add.node("LpNormalization", last, name="sentence_embedding", p=2, axis=-1)
    return True


def _pooling(model: Model, path: str, hidden: int) -> str:
    name = f"{path}/config.json"
    config = _json(model, name)
    if not isinstance(config, dict):
        raise BadFileError("the configuration of the pooling is missing", where=name)
    chosen = [
        k.removeprefix("pooling_mode_") for k, on in config.items() if k.startswith("pooling_mode_") and on is True
    ]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in _POOLS:
        raise UnsupportedError(
            "an unsupported kind of pooling",
            where=f"{name}: pooling_mode",
            found=", ".join(chosen) or "none",
            allowed="mean_tokens, cls_token",
        )
    size = config.get("word_embedding_dimension", hidden)
    if size != hidden:
        raise BadFileError(
            "the pooling contradicts config.json",
            where=f"{name}: word_embedding_dimension",
            found=size,
            allowed=f"{hidden} (hidden_size)",
        )
    return _POOLS[chosen[0]]


def _json(model: Model, path: str) -> Any:
    for file in model.files:
        if file.path == path and file.role in ("side", "derived"):
            if file.data.nbytes > JSON_LIMIT:
                raise BadFileError("a JSON file is too large", where=path, found=file.data.nbytes)
            return parse_json(file.data.read().tobytes(), path)
    return None
