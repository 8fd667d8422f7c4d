"""genai_config.json, which stands beside a decoder that onnxruntime-genai runs: what the graph itself does not say.

model.context_length, model.vocab_size, model.type
model.bos_token_id, eos_token_id (an id or a list), pad_token_id
model.decoder.filename, head_size, inputs.{input_ids, past_key_names, past_value_names}, outputs.{logits, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeploy.arch.family import family_of
from qdeploy.errors import BadFileError
from qdeploy.ir.graph import Attr
from qdeploy.store.folder import Folder, parse_json

CONFIG = "genai_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def genai_config(folder: Folder) -> Mapping[str, Any]:
    """Its part "model"; empty where there is none.

    Raises:
        BadFileError: It is no JSON object of objects.
    """
    if folder.only or CONFIG not in folder.names():
        return {}
    loaded = parse_json(folder.rows(CONFIG).read(0, folder.size(CONFIG)).tobytes(), CONFIG, strict=False)
    model = loaded.get("model", {}) if isinstance(loaded, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("decoder", {}), dict):
        raise BadFileError("the configuration of the generator is no object", where=CONFIG, found=repr(loaded)[:100])
    return model


def decoder_meta(config: Mapping[str, Any], vocab: int, context: int) -> dict[str, Attr]:
    """What backends need to know of a decoder.

    Args:
        config: As `genai_config` gives it.
        vocab: Extent of the logits.
        context: The most positions that the graph can hold; 0 where it sets no limit.

    Raises:
        BadFileError: A field is of another type, or no context is known.
    """
    stated = _whole(config, "context_length")
    contexts = [n for n in (stated, context) if n]
    if not contexts:
        raise BadFileError("neither the graph nor its configuration says how many positions there are", where=CONFIG)
    meta: dict[str, Attr] = {
        "kind": "decoder",
        "model_type": _model_type(config),
        "context": min(contexts),
        "vocab": vocab,
    }
    for name in _TOKENS:
        ids = config.get(name)
        listed = ids if isinstance(ids, list) else [ids]
        if ids is not None and all(_is_id(i, vocab) for i in listed):
            meta[name] = ids
    return meta


def _model_type(config: Mapping[str, Any]) -> str:
    """The family's type; "decoder", which every one of them can run as, for types that are none of ours."""
    stated = str(config.get("type", "decoder"))
    return stated if family_of(stated) is not None else "decoder"


def _is_id(value: Any, vocab: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadFileError(
            "a field of the configuration is no number", where=f"{CONFIG}: {name}", found=repr(value)[:60]
        )
    return value
