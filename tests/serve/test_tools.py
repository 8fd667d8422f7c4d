"""Calls of tools in the words of each family of models."""

from __future__ import annotations

import pytest

from qdeploy.serve.tools import parse_calls

FORMS = [
    ("<tool_call>", 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "I look."),
    ("<tool_call>", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}', ""),
    ("", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ""),
    ("", '{"name": "f", "parameters": {"a": 1}}', ""),
    ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', ""),
    ("[TOOL_CALLS]", '[TOOL_CALLS]f[ARGS]{"a": 1}', ""),
    ("[TOOL_CALLS]", '[TOOL_CALLS]f[CALL_ID]x1[ARGS]{"a": 1}', ""),
    (
        "<|channel|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"a": 1}<|call|>',
        "",
    ),
]


@pytest.mark.parametrize(("mark", "text", "rest"), FORMS)
def test_a_call_is_read_in_each_form(mark: str, text: str, rest: str):
    content, calls = parse_calls(text, f"... {mark} ...")
    assert content == rest and [(c.name, c.arguments) for c in calls] == [("f", '{"a": 1}')]


def test_several_calls_are_several():
    call = '<tool_call>{"name": "%s", "arguments": {}}</tool_call>'
    _, calls = parse_calls(call % "f" + call % "g", "<tool_call>")
    assert [c.name for c in calls] == ["f", "g"]
    assert [c.name for c in parse_calls('{"name": "f"}; {"name": "g"}', "")[1]] == ["f", "g"]


@pytest.mark.parametrize("mark", ["<tool_call>", "", "[TOOL_CALLS]", "<|channel|>"])
@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        '{"name": 1}',
        "[1, 2]",
        "{",
        "<tool_call>{broken</tool_call>",
        "[TOOL_CALLS]f[ARGS]no",
        "[" * 9999,
    ],
)
def test_what_is_no_call_stays_text(mark: str, text: str):
    assert parse_calls(text, mark) == (text, [])
