"""The API: what clients of OpenAI's send is answered in its form, and every answer says how it was computed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serve.conftest import Alone, Client


def test_a_completion_is_the_text_of_the_engine(client: Client, alone: Alone):
    answer = client.complete(max_tokens=12)
    assert answer.status == 200
    choice = answer.json["choices"][0]
    assert choice["text"] == alone.text("ROMEO:", 12) and choice["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 12


def test_every_answer_says_how_it_was_computed(client: Client):
    for answer in (client.complete(), client.chat()):
        computed = answer.json["qdeploy"]
        assert computed["rung"] == computed["rungs"] and 3 < computed["bits"] < 6 and computed["memory"] > 1_000_000


def test_a_stream_has_the_same_text_and_ends_with_usage(client: Client):
    whole = client.chat(n=2).json
    events = client.chat(n=2, stream=True, stream_options={"include_usage": True}).events
    for index in range(2):
        pieces = [c["delta"].get("content", "") for e in events for c in e["choices"] if c["index"] == index]
        assert "".join(pieces) == whole["choices"][index]["message"]["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    assert "bits" in events[-1]["qdeploy"]


def test_answers_do_not_depend_on_who_else_is_served(client: Client, alone: Alone):
    prompts = [f"{name}: what" for name in ("ROMEO", "JULIET", "KING", "A", "The long and winding road")]
    one_by_one = [alone.text(prompt, 10) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda p: client.complete(p, max_tokens=10).json["choices"][0]["text"], prompts))
    assert together == one_by_one


def test_several_prompts_and_tokens_are_prompts(client: Client, alone: Alone):
    ids = alone.tokenizer.encode("ROMEO:").ids
    answer = client.complete([ids, ids], max_tokens=4).json
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert {c["text"] for c in answer["choices"]} == {alone.text("ROMEO:", 4)}


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: Client, alone: Alone):
    text = alone.text("ROMEO:", 12)
    word = text[5:8]
    answer = client.complete(max_tokens=12, stop=[word, "never"]).json["choices"][0]
    assert answer["finish_reason"] == "stop" and answer["text"] == text[: text.find(word)]


def test_a_seed_repeats_a_draw_and_n_draws_differ(client: Client):
    settings = {"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 12}
    first, second = (client.complete(**settings).json for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]] and len(set(texts)) == 3


def test_a_bias_decides_and_one_of_nothing_changes_nothing(client: Client):
    token = client.post("/tokenize", text="zz", special=False).json["tokens"][0]
    biased = client.complete(max_tokens=3, logit_bias={str(token): 100}, logprobs=0).json["choices"][0]
    piece = client.post("/detokenize", tokens=[token]).json["text"]
    assert biased["logprobs"]["tokens"] == [piece] * 3
    drawn = {"temperature": 1.2, "seed": 3, "max_tokens": 16, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2}
    plain = client.complete(**drawn).json["choices"][0]["text"]
    assert client.complete(**drawn, logit_bias={str(token): 0}).json["choices"][0]["text"] == plain


def test_penalties_of_counts_stop_repetition(client: Client):
    plain = client.complete(max_tokens=48, logprobs=0).json["choices"][0]["logprobs"]["tokens"]
    varied = client.complete(max_tokens=48, logprobs=0, frequency_penalty=2, presence_penalty=2)
    assert len(set(varied.json["choices"][0]["logprobs"]["tokens"])) > len(set(plain))


def test_the_scores_of_an_echoed_prompt_are_those_of_the_logits(client: Client, alone: Alone):
    ids = alone.tokenizer.encode("To be, or not").ids
    scores = client.complete(ids, echo=True, max_tokens=0, logprobs=2).json["choices"][0]["logprobs"]
    logits = alone.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert scores["token_logprobs"][0] is None
    values = [expected[place, token] for place, token in enumerate(ids[1:])]
    np.testing.assert_allclose(scores["token_logprobs"][1:], values, atol=1e-5)
    assert len(scores["top_logprobs"][1]) == 2 and len(scores["text_offset"]) == len(ids)


def test_logprobs_of_a_chat_name_the_chosen_token_first(client: Client):
    content = client.chat(logprobs=True, top_logprobs=3).json["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for entry in content:
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3


def test_an_answer_by_a_schema_is_json_of_it(client: Client):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["glad", "sad"]}, "on": {"type": "boolean"}},
        "required": ["mood", "on"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    choice = client.chat(response_format=form, max_tokens=64).json["choices"][0]
    value = json.loads(choice["message"]["content"])
    assert value["mood"] in ("glad", "sad") and isinstance(value["on"], bool) and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_tool_is_called_with_arguments_of_its_schema(client: Client, stream: bool):
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {**parameters, "additionalProperties": False}},
    }
    answer = client.chat(tools=[tool], tool_choice="required", max_tokens=80, stream=stream)
    if stream:
        choices = [choice for event in answer.events for choice in event["choices"]]
        calls = next(c["delta"]["tool_calls"] for c in choices if "tool_calls" in c["delta"])
        reason = choices[-1]["finish_reason"]
    else:
        choice = answer.json["choices"][0]
        calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
    assert reason == "tool_calls" and calls[0]["function"]["name"] == "weather"
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Rome"}


def test_text_and_tokens_go_there_and_back(client: Client):
    tokens = client.post("/tokenize", text="JULIET: où", special=False).json
    assert client.post("/detokenize", tokens=tokens["tokens"]).json["text"] == "JULIET: où"
    assert tokens["count"] == len(tokens["tokens"])


def test_the_model_is_listed_with_its_context(client: Client):
    listed = client.get("/v1/models").json["data"]
    assert [row["id"] for row in listed] == ["tiny"] and listed[0]["max_model_len"] == 256
    assert client.get("/v1/models/tiny").json["id"] == "tiny"
    assert client.get("/v1/models/other").status == 404


def test_a_shared_prompt_is_computed_once(client: Client):
    prompt = "the same words for everyone, again and again; " * 4
    first = client.complete(prompt, max_tokens=2).json
    second = client.complete(prompt, max_tokens=2).json
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
