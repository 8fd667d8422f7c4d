"""What must not be: each hostile request is answered by one clear refusal, and the server goes on as before."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdeploy.serve.limits import Limits
from tests.serve.conftest import Client, serving

HELLO = [{"role": "user", "content": "hello"}]
DEEP = b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.fixture(autouse=True)
def goes_on(client: Client) -> Iterator[None]:
    """After each attack the server answers, and nobody is left in the batch or in the queue."""
    yield
    assert client.chat().status == 200
    assert client.metric("qdeploy_requests_running") == client.metric("qdeploy_requests_waiting") == 0


def test_a_body_that_is_too_large_is_refused(client: Client):
    answer = client.send("POST", "/v1/chat/completions", b" " * (10 << 20))
    assert answer.status == 413 and "bytes" in answer.message


def test_a_body_in_chunks_is_counted_as_it_comes(client: Client):
    with client.socket() as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1 << 6):
            try:
                raw.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
            except OSError:
                break
        raw.sendall(b"0\r\n\r\n")
        assert b" 413 " in raw.recv(1 << 12)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"messages": "\xff\xfe"}', "JSON"),
        (DEEP, "deep"),
        (b'{"messages": [], "messages": []}', "twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b"", "JSON"),
        (b"[]", "object"),
        (b"12", "object"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "JSON"),
    ],
    ids=["bad UTF-8", "depth 10,000", "duplicate key", "NaN", "empty", "list", "number", "5000 digits"],
)
def test_what_is_no_json_object_is_refused(client: Client, body: bytes, part: str):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        answer = client.send("POST", path, body)
        assert answer.status == 400 and part in answer.message


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"stop": ["x"] * 100_000}, ("stop", "bytes")),
        ({"stop": ["x"] * 17}, ("stop",)),
        ({"stop": [""]}, ("stop",)),
        ({"stop": ["x" * 1000]}, ("stop",)),
        ({"temperature": -1}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"top_p": 0}, ("top_p",)),
        ({"n": 1_000_000}, ("n must",)),
        ({"max_tokens": -5}, ("max_tokens",)),
        ({"max_tokens": 0}, ("max_tokens",)),
        ({"logit_bias": {"512": 1}}, ("logit_bias",)),
        ({"logit_bias": {"-1": 1}}, ("logit_bias",)),
        ({"logit_bias": {"1": 1e9}}, ("logit_bias",)),
        ({"seed": 1 << 70}, ("seed",)),
        ({"stream": "yes"}, ("stream",)),
        ({"model": "../../etc/passwd"}, ("no such model",)),
        ({"frequency": 1}, ("frequency is not supported",)),
        ({"response_format": {"type": "xml"}}, ("response_format",)),
        ({"tools": [{"type": "function"}]}, ("tool",)),
        ({"tool_choice": "required"}, ("tool_choice",)),
        ({"messages": []}, ("messages",)),
        ({"messages": [{"role": "root", "content": "x"}]}, ("role",)),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, ("surrogate",)),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
            ("text",),
        ),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, ("context",)),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_refused_by_its_name(client: Client, fields: dict[str, Any], part: tuple[str, ...]):
    answer = client.post("/v1/chat/completions", **{"messages": HELLO, **fields})
    assert answer.status in (400, 404, 413) and any(p in answer.message for p in part), answer.data[:300]


def bomb(depth: int) -> dict[str, Any]:
    """A schema whose expansion is 10 to the power of its depth."""
    definitions = {
        f"d{i}": {"type": "object", "properties": {f"p{j}": {"$ref": f"#/$defs/d{i + 1}"} for j in range(10)}}
        for i in range(depth)
    }
    return {"$defs": {**definitions, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


SCHEMAS = {
    "no schema": 5,
    "bad type": {"type": "nonsense"},
    "unknown reference": {"$ref": "#/$defs/nothing"},
    "remote reference": {"$ref": "http://127.0.0.1:1/schema"},
    "file reference": {"$ref": "file:///etc/passwd"},
    "intersections": {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(9)]},
    "large": {"enum": ["x" * 70_000]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_refused(client: Client, name: str):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name]}}
    start = time.monotonic()
    answer = client.chat(response_format=form)
    assert answer.status == 400 and "schema" in answer.message and time.monotonic() - start < 10


BOMBS = {
    "expansion": bomb(12),
    "itself": {"$ref": "#"},
    "powers of powers": {"type": "string", "pattern": "((a{1,9999}){1,9999}){1,9999}"},
    "repetition": {"type": "array", "items": {"type": "string", "pattern": "(x+x+){1,500}y"}, "minItems": 999_999},
    "intersection": {"allOf": [{"type": "string", "pattern": f"(.*{i % 10}){{{i + 2}}}.*"} for i in range(8)]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_schema_that_is_a_bomb_costs_no_time(client: Client, name: str):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": BOMBS[name]}}
    start = time.monotonic()
    assert client.chat(response_format=form).status in (200, 400)
    assert time.monotonic() - start < 10


def test_templates_in_messages_are_text(client: Client):
    bombs = "{% for i in range(10**9) %}{{ i }}{% endfor %}{{ ''.__class__.__mro__ }}"
    plain = client.chat(bombs)
    assert plain.status == 200 and plain.json["usage"]["prompt_tokens"] > len(bombs) // 8


def test_a_variable_cannot_replace_the_messages(client: Client):
    answer = client.chat(chat_template_kwargs={"messages": [], "add_generation_prompt": True})
    assert answer.json["usage"] == client.chat().json["usage"]


def test_a_path_from_the_network_is_never_a_file(client: Client):
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/page.html"):
        answer = client.get(path)
        assert answer.status == 404 and b"root:" not in answer.data
    assert client.send("DELETE", "/v1/models").status == 405


def test_a_page_of_another_origin_cannot_reach_a_local_server(tiny: Path):
    with serving(tiny, hosts=("localhost", "127.0.0.1", "[::1]")) as local:
        assert local.send("GET", "/health", Host="evil.example").status == 421
        assert local.send("GET", "/health", Host=f"localhost:{local.port}").status == 200


def test_keys_are_asked_for(tiny: Path):
    with serving(tiny, keys=("one", "two"), admin="admin") as closed:
        assert closed.get("/health").status == closed.get("/").status == 200
        assert closed.get("/v1/models").status == closed.complete().status == 401
        for key, status in (("two", 200), ("admin", 200), ("tw", 401), ("", 401), ("twoo", 401), ("\xe9", 401)):
            assert closed.send("GET", "/v1/models", Authorization=f"Bearer {key}").status == status
        assert closed.send("PUT", "/v1/memory", {"budget": 0}, Authorization="Bearer two").status == 401


def test_the_memory_is_moved_by_the_admin_alone(client: Client, tiny: Path):
    assert client.send("PUT", "/v1/memory", {"budget": "1GB"}).status == 401
    with serving(tiny) as without:
        assert without.send("PUT", "/v1/memory", {"budget": "1GB"}, Authorization="Bearer ").status == 403
    for budget in ("lots", -1, True, [1], 1 << 80, "9" * 400, None):
        answer = client.send("PUT", "/v1/memory", {"budget": budget}, Authorization="Bearer admin")
        assert answer.status == 400 and "budget" in answer.message


def stream_of(client: Client, tokens: int) -> socket.socket:
    """A stream whose first event has come."""
    body = json.dumps({"prompt": "a", "max_tokens": tokens, "stream": True, "temperature": 0}).encode()
    raw = client.socket()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw.sendall(head + body)
    assert b" 200 " in raw.recv(1 << 12)
    return raw


def eventually(condition: Any, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.01)
    return True


def test_a_client_that_goes_away_frees_its_place(client: Client):
    cancelled = client.metric("qdeploy_cancelled_total")
    streams = [stream_of(client, 250) for _ in range(3)]
    for raw in streams:
        raw.close()
    assert eventually(lambda: client.metric("qdeploy_requests_running") == 0)
    assert client.metric("qdeploy_cancelled_total") > cancelled


def test_a_client_that_waits_for_a_whole_answer_and_goes_away_frees_its_place(client: Client):
    body = json.dumps({"prompt": "a", "max_tokens": 250, "n": 4}).encode()
    raw = client.socket()
    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    cancelled = client.metric("qdeploy_cancelled_total")
    assert eventually(lambda: client.metric("qdeploy_requests_running") > 0)
    raw.close()
    assert eventually(lambda: client.metric("qdeploy_cancelled_total") > cancelled)
    assert eventually(lambda: client.metric("qdeploy_requests_running") == 0)


def test_a_connection_that_says_nothing_is_closed(client: Client):
    with client.socket() as silent, client.socket() as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost:")
        assert silent.recv(1) == b"" and half.recv(1) == b""


def test_a_body_that_does_not_come_is_not_waited_for(tiny: Path):
    with serving(tiny, Limits(body_seconds=0.2)) as impatient, impatient.socket() as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in raw.recv(1 << 12)


def test_who_comes_when_all_places_are_taken_is_told_when_to_come_again(tiny: Path):
    with serving(tiny, Limits(sequences=1, requests=1)) as small:
        raw = stream_of(small, 250)
        answer = small.complete()
        if answer.status == 429:
            assert int(answer.headers["retry-after"]) >= 1 and answer.json["error"]["type"] == "rate_limit_error"
            assert small.get("/ready").status == 503 and small.get("/health").status == 200
        raw.close()
        assert answer.status == 429
        assert eventually(lambda: small.complete(max_tokens=1).status == 200)


def test_an_answer_ends_at_its_deadline(tiny: Path):
    with serving(tiny, Limits(seconds=0.0)) as hurried:
        answer = hurried.complete(max_tokens=200)
        assert answer.status == 504 and answer.json["error"]["code"] == "deadline"
