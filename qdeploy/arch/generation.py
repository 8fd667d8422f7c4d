"""How a model wants its text to be generated: token ids, sampling and chat template, from one place for every target.

    generation_config.json   what transformers' `generate` reads: first, field by field
    config.json              what stands there is the default of older models
    chat_template.jinja      the template of a conversation; else `chat_template` of tokenizer_config.json, or of
                             chat_template.json

An id of -1, or one that the vocabulary does not have, stands for "none" in published checkpoints: it is left out, with
a note. `eos_token_id` may be a list: each of them ends a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdeploy.errors import BadFileError
from qdeploy.ir.model import Model
from qdeploy.store.folder import parse_json

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LIMITS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e6),
}
"""The least and the greatest number that each of them may be."""


@dataclass(frozen=True)
class Generation:
    """What a model says of generating text.

    Attributes:
        tokens: bos_token_id, eos_token_id (an id, or a list of several) and pad_token_id, as far as there are any.
        sampling: do_sample, temperature, top_p, top_k, min_p, repetition_penalty, as far as they are said.
        notes: What was left out, and why.
    """

    tokens: Mapping[str, int | list[int]] = field(default_factory=dict)
    sampling: Mapping[str, float | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def generation_of(model: Model, vocab: int) -> Generation:
    """Reads it.

    Args:
        model: Its configuration and files.
        vocab: The size of the vocabulary; ids are below it.

    Raises:
        BadFileError: generation_config.json is no JSON object.
    """
    file = next((f for f in model.files if f.path == FILE and f.role in ("side", "derived")), None)
    loaded = parse_json(file.data.read().tobytes(), FILE, strict=False) if file is not None else {}
    if not isinstance(loaded, dict):
        raise BadFileError("the settings of generation are no object", where=FILE, found=repr(loaded)[:100])
    own = loaded
    tokens: dict[str, int | list[int]] = {}
    notes: list[str] = []
    for name in TOKENS:
        where, value = (FILE, own[name]) if own.get(name) is not None else ("config.json", model.config.get(name))
        ids = _ids(value, vocab, f"{where}: {name}", notes)
        if ids:
            tokens[name] = ids if isinstance(value, list) else ids[0]
    sampling = _sampling(own, notes)
    return Generation(tokens, sampling, tuple(notes))


def encoder_meta(model: Model, model_type: str, context: int, vocab: int) -> dict[str, Any]:
    """What backends need to know of an encoder of text: kind, type and sizes, and the id of padding if there is one."""
    meta = {"kind": "encoder", "model_type": model_type, "context": context, "vocab": vocab}
    tokens = generation_of(model, vocab).tokens
    return {**meta, "pad_token_id": tokens["pad_token_id"]} if "pad_token_id" in tokens else meta


def chat_templates(files: Mapping[str, bytes]) -> dict[str, str]:
    """The templates of a conversation by name ("default"); empty where there is none.

    Args:
        files: Contents of chat_template.jinja, tokenizer_config.json and chat_template.json, as far as there are any.

    Raises:
        BadFileError: A template is no text.
    """
    if "chat_template.jinja" in files:
        return {"default": _utf8(files["chat_template.jinja"])}
    for name in ("tokenizer_config.json", "chat_template.json"):
        loaded = parse_json(files[name], name, strict=False) if name in files else None
        template = loaded.get("chat_template") if isinstance(loaded, dict) else None
        if isinstance(template, str):
            return {"default": template}
        if isinstance(template, list):
            rows = [(row.get("name", "default"), row.get("template")) for row in template if isinstance(row, dict)]
            if len(rows) < len(template) or not all(isinstance(part, str) for row in rows for part in row):
                raise BadFileError("chat templates are no texts with names", where=name, found=repr(template)[:100])
            return {str(key): str(text) for key, text in rows}
        if template is not None:
            raise BadFileError("a chat template is no text", where=name, found=repr(template)[:100])
    return {}


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError("a chat template is not UTF-8", where="chat_template.jinja", found=error) from error


def _ids(value: Any, vocab: int, where: str, notes: list[str]) -> list[int]:
    """The ids that the vocabulary has; the others are noted."""
    known: list[int] = []
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab:
            known.append(item)
        else:
            notes.append(f"{where}: {item!r:.40} is no token of a vocabulary of {vocab}, and was left out")
    return known


def _sampling(own: Mapping[str, Any], notes: list[str]) -> dict[str, float | bool]:
    """What is said of sampling and can be meant; the rest is noted."""
    sampling: dict[str, float | bool] = {}
    for name in ("do_sample", *_LIMITS):
        value, (least, most) = own.get(name), _LIMITS.get(name, (0, 0))
        number = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if value is not None and (number if name in _LIMITS else isinstance(value, bool)):
            sampling[name] = value
        elif value is not None:
            notes.append(f"{FILE}: {name} {value!r:.40} cannot be meant, and was left out")
    return sampling
