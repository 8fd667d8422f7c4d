"""A conversation as the text that a model was trained on: its chat template, rendered in a sandbox.

Templates are Jinja programs that come with a checkpoint (`tokenizer_config.json`, `chat_template.jinja`). They run in
jinja2's immutable sandbox, which lets them read what they are given and nothing else; what they raise is an error here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from qdeploy.arch.generation import chat_templates
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.extras import require
from qdeploy.store.folder import parse_json

Messages = Sequence[Mapping[str, Any]]
FILES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
_LIMIT = 1 << 20


def rendered(metadata: Callable[[str], bytes | None], messages: Messages, where: str, prompt: str = "") -> str:
    """As `render`, with the files that a model carries; BadArgumentError where there is a prompt as well."""
    if prompt:
        raise BadArgumentError("a prompt or messages, not both", found=prompt)
    return render({name: data for name in FILES if (data := metadata(name)) is not None}, messages, where)


def render(files: Mapping[str, bytes], messages: Messages, where: str, **more: Any) -> str:
    """The text of a conversation, up to where the model is to speak.

    Args:
        files: Contents of FILES, as far as the model has them.
        messages: {"role": "user", "content": "..."} and so on.
        where: The model, for errors.
        more: Further variables of the template (tools, enable_thinking, ...).

    Raises:
        UnsupportedError: There is no template, or jinja2 is not installed.
        BadFileError: The template is damaged, or fails on these messages.
        BadArgumentError: Messages are no list of objects with a role.
    """
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise BadArgumentError(
            "messages are a list of objects", found=messages, allowed='{"role": ..., "content": ...}'
        )
    templates = chat_templates(files)
    template = templates.get("default") or next(iter(templates.values()), "")
    if not template:
        raise UnsupportedError("the model has no chat template", where=where, todo="Give the prompt as text.")
    if len(template) > _LIMIT:
        raise BadFileError("a chat template is too large", where=where, found=len(template), allowed=str(_LIMIT))
    require("jinja2", purpose="a chat template")
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
    values = {**_special(files), "add_generation_prompt": True, **more, "messages": [dict(m) for m in messages]}
    try:
        return environment.from_string(template).render(**values)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise BadFileError("the chat template does not take these messages", where=where, found=error) from error


def _refuse(text: object) -> None:
    raise BadArgumentError("the chat template refuses these messages", found=text)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter as transformers has it: without the escapes of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _special(files: Mapping[str, bytes]) -> dict[str, str]:
    """bos_token, eos_token and so on, as tokenizer_config.json has them."""
    name = "tokenizer_config.json"
    loaded = parse_json(files[name], name, strict=False) if name in files else {}
    tokens = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens
