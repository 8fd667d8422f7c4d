"""Messages of a chat as tokens: judged by the API's rules, put into words by the model's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.chat import render
from qdeploy.errors import QdeployError
from qdeploy.serve.fields import valid_text
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service
from qdeploy.serve.tools import Tools

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_MESSAGES = 4096


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as templates take them; Refusal for what they are not."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_MESSAGES:
        raise Refusal(400, f"messages must be a list of 1 to {_MOST_MESSAGES}", param="messages")
    return [_checked(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _checked(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise Refusal(400, f"{where} must have a role: {', '.join(_ROLES)}", param=where)
    allowed = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content"}
    for key in message.keys() - allowed:
        raise Refusal(400, f"{where}.{key[:40]} is not supported", param=where)
    checked = {key: value for key, value in message.items() if value is not None}
    checked["content"] = _text(message.get("content"), f"{where}.content", message["role"])
    for key in ("name", "tool_call_id", "refusal", "reasoning_content"):
        if key in checked:
            valid_text(checked[key], f"{where}.{key}")
    if "tool_calls" in checked:
        checked["tool_calls"] = _calls(checked["tool_calls"], f"{where}.tool_calls")
    return checked


def _text(content: object, where: str, role: str) -> str:
    """A message's text: a string, or parts that are texts."""
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise Refusal(400, f"{where} has a part that is no text", param=where)
            parts.append(valid_text(part.get("text"), where))
        return "".join(parts)
    return valid_text(content, where)


def _calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Earlier calls of the assistant, whose arguments templates take as objects."""
    if not isinstance(calls, list):
        raise Refusal(400, f"{where} must be a list", param=where)
    checked = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refusal(400, f"{where} must hold function calls", param=where)
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            raise Refusal(400, f"{where} has arguments that are not JSON", param=where) from None
        checked.append({**call, "function": {**function, "arguments": arguments}})
    return checked


def conversation_ids(
    service: Service, messages: Sequence[Mapping[str, Any]], tools: Tools, variables: Mapping[str, Any]
) -> list[int]:
    """The tokens of a conversation, up to where the model is to speak."""
    more: dict[str, Any] = {name: value for name, value in variables.items() if name != "messages"}
    if tools.listed:
        more["tools"] = [dict(tool) for tool in tools.listed]
    try:
        text = render(service.files, messages, "the model", **more)
    except QdeployError as error:
        facts = f": {error.found}" if error.found else ""
        raise Refusal(400, f"{error.what}{facts}", param="messages", code="chat_template") from None
    ids: list[int] = service.tokenizer.encode(text, add_special_tokens=False).ids
    return ids
