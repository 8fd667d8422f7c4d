"""`/v1/responses`: the text that a chat gives, as OpenAI's newer API frames it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import Answer, Client

MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]


def respond(client: Client, **body: Any) -> Answer:
    return client.post("/v1/responses", **{"temperature": 0, "max_output_tokens": 8, **body})


def test_a_response_has_the_text_of_the_same_chat(client: Client):
    chat = client.post("/v1/chat/completions", messages=MESSAGES, temperature=0, max_tokens=8).json
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}]}]
    for body in ({"input": "hello", "instructions": "be short"}, {"input": MESSAGES}, {"input": [MESSAGES[0], *parts]}):
        answer = respond(client, **body).json
        (message,) = answer["output"]
        assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]
        assert answer["status"] == "incomplete" and answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert answer["usage"]["output_tokens"] == 8 and "bits" in answer["qdeploy"]


def test_a_stream_has_named_and_numbered_events_and_ends_with_the_whole(client: Client):
    whole = respond(client, input="hello").json
    lines = respond(client, input="hello", stream=True).data.decode().split("\n\n")
    events = [json.loads(line.partition("\ndata: ")[2]) for line in lines if line]
    assert [line.partition("\n")[0] for line in lines if line] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.incomplete"
    assert deltas == last["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]


def test_an_answer_may_be_bound_to_a_schema(client: Client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    form = {"type": "json_schema", "name": "s", "schema": {**schema, "additionalProperties": False}}
    answer = respond(client, input="hello", text={"format": form}, max_output_tokens=64).json
    assert isinstance(json.loads(answer["output"][0]["content"][0]["text"])["on"], bool)
    assert answer["status"] == "completed" and answer["text"]["format"] == form


@pytest.mark.parametrize(
    "body",
    [
        {"input": 3},
        {"input": [{"type": "function_call_output", "output": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "store": True},
        {"input": "x", "background": True},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": "x", "truncation": "auto"},
        {"input": "x", "max_output_tokens": 0},
        {"input": "x", "n": 2},
        {"input": "x", "text": {"format": {"type": "xml"}}},
    ],
)
def test_what_a_response_does_not_do_is_refused_by_its_name(client: Client, body: dict[str, Any]):
    answer = respond(client, **body)
    assert answer.status == 400 and answer.message
