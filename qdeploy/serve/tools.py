"""Calls of tools in what a model wrote: one row per published form, chosen by the marks in its chat template.

Forms: Hermes and Qwen (`<tool_call>{...}</tool_call>`), Llama 3 (`{"name": ..., "parameters": ...}`), Mistral
(`[TOOL_CALLS][{...}]` and `[TOOL_CALLS]name[ARGS]{...}`), gpt-oss (`to=functions.name ... <|message|>{...}`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.serve.fields import Fields
from qdeploy.serve.refusal import Refusal

_MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Call:
    """A tool's name, and its arguments as JSON."""

    name: str
    arguments: str

    def as_json(self, index: int | None = None) -> dict[str, Any]:
        """An entry of `tool_calls`; with an index as streams have it."""
        place = {} if index is None else {"index": index}
        function = {"name": self.name, "arguments": self.arguments}
        return {**place, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


Parsed = tuple[str, list[Call]]
"""The text outside of calls, and the calls."""


@dataclass(frozen=True)
class Tools:
    """What a request offers.

    Args:
        listed: As the template takes them.
        forced: Schema that the answer must follow, where a call is required; None: the model may choose.
    """

    listed: Sequence[Mapping[str, Any]]
    forced: Mapping[str, Any] | None = None


def take_tools(fields: Fields) -> Tools:
    """The fields `tools` and `tool_choice`."""
    listed = fields.take("tools")
    choice = fields.take("tool_choice")
    fields.flag("parallel_tool_calls", True)
    tools = [_checked(tool) for tool in listed] if isinstance(listed, list) else []
    if (listed is not None and not isinstance(listed, list)) or len(tools) > _MOST_TOOLS:
        raise Refusal(400, f"tools must be a list of at most {_MOST_TOOLS}", param="tools")
    if choice == "none" or not tools:
        if choice not in (None, "none", "auto"):
            raise Refusal(400, "tool_choice asks for a tool, and there are none", param="tool_choice")
        return Tools([])
    if choice in (None, "auto"):
        return Tools(tools)
    return Tools(tools, _forced(tools, choice))


def _checked(tool: object) -> Mapping[str, Any]:
    """A tool of the kind "function"."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(tool, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refusal(400, "a tool is {type: function, function: {name, description, parameters}}", param="tools")
    if not isinstance((function or {}).get("parameters", {}), dict):
        raise Refusal(400, f"the parameters of {name} must be a JSON schema", param="tools")
    return {"type": "function", **tool}


def _forced(tools: Sequence[Mapping[str, Any]], choice: object) -> Mapping[str, Any]:
    """The schema of a call of one of the tools, or of the one that is named."""
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        functions = [f for f in functions if f["name"] == name]
    elif choice != "required":
        functions = []
    if not functions:
        text = "tool_choice must be none, auto, required or {type: function, function: {name}} of a tool that is listed"
        raise Refusal(400, text, param="tool_choice")
    return {"anyOf": [_call_schema(function) for function in functions]}


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    required = ["name", "arguments"]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def parse_calls(text: str, template: str) -> Parsed:
    """The calls in an answer.

    Args:
        text: What the model wrote, special tokens included.
        template: Its chat template; decides which form it writes.
    """
    for mark, parse in _FORMS:
        if mark in template:
            return parse(text)
    return _bare(text)


def parse_forced(text: str) -> Parsed:
    """The call that an answer by `Tools.forced` is."""
    return _bare(text)


def _call(value: object) -> Call | None:
    """A JSON object as a call; None where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(value["name"], written)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _hermes(text: str) -> Parsed:
    calls, rest, end = list[Call](), "", 0
    for match in re.finditer(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL):
        call = _call(_loaded(match[1].strip()))
        if call is not None:
            calls.append(call)
            rest += text[end : match.start()]
            end = match.end()
    return (rest + text[end:]).strip() if calls else text, calls


def _mistral(text: str) -> Parsed:
    before, mark, after = text.partition("[TOOL_CALLS]")
    if not mark:
        return text, []
    loaded = _loaded(after.strip())
    if isinstance(loaded, list):
        calls = [call for call in map(_call, loaded) if call is not None]
        return (before.strip(), calls) if len(calls) == len(loaded) else (text, [])
    calls = []
    for part in after.split("[TOOL_CALLS]"):
        name, _, arguments = part.partition("[ARGS]")
        name = name.partition("[CALL_ID]")[0].strip()
        if not _NAME.fullmatch(name) or not isinstance(_loaded(arguments), dict):
            return text, []
        calls.append(Call(name, arguments.strip()))
    return before.strip(), calls


def _harmony(text: str) -> Parsed:
    pattern = r"to=functions\.([A-Za-z0-9_.-]+).*?<\|message\|>(.*?)(?:<\|call\|>|\Z)"
    calls = [Call(m[1], m[2].strip()) for m in re.finditer(pattern, text, re.DOTALL) if _loaded(m[2]) is not None]
    if calls:
        return "", calls
    final = re.search(r"<\|channel\|>final<\|message\|>(.*?)(?:<\|return\|>|<\|end\|>|\Z)", text, re.DOTALL)
    return (final[1] if final else text), []


def _bare(text: str) -> Parsed:
    """Llama 3: the whole answer is a call, or several with semicolons between them, behind a mark or none."""
    stripped = text.strip().removeprefix("<|python_tag|>").strip()
    one = _call(_loaded(stripped))
    if one is not None:
        return "", [one]
    calls = [_call(_loaded(part)) for part in stripped.split("; ")]
    whole = [call for call in calls if call is not None]
    return ("", whole) if whole and len(whole) == len(calls) else (text, [])


_FORMS: list[tuple[str, Callable[[str], Parsed]]] = [
    ("<tool_call>", _hermes),
    ("[TOOL_CALLS]", _mistral),
    ("<|channel|>", _harmony),
]
