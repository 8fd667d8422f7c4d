"""A tiny model that is served on a port of 127.0.0.1, and a client that knows nothing but HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.native import Engine, Runtime
from qdeploy.serve.application import application
from qdeploy.serve.limits import Limits
from qdeploy.serve.listening import bind, server
from qdeploy.serve.opening import open_model
from qdeploy.serve.service import Service
from qdeploy.streaming import TextStream
from tests.conversing import model_with_template

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}BOT:{% endif %}"
)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.data.decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@dataclass
class Client:
    """Sends requests to a server of the tests."""

    port: int
    service: Service
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, {**self.headers, **headers})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, **body: Any) -> Answer:
        return self.send("POST", path, body)

    def complete(self, prompt: Any = "ROMEO:", **more: Any) -> Answer:
        return self.post("/v1/completions", **{"prompt": prompt, "temperature": 0, **more})

    def chat(self, text: str = "hello", **more: Any) -> Answer:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", **{"messages": messages, "temperature": 0, "max_tokens": 8, **more})

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").data.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def serving(
    path: Path, limits: Limits | None = None, memory: int | str | None = None, **options: Any
) -> Iterator[Client]:
    """Serves a model while the block runs."""
    with open_model(path, memory=memory, threads=1) as model:
        service = Service(model, "tiny", limits)
        opened = bind("127.0.0.1", 0)
        running = server(application(service, **options), service.limits)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([opened])), daemon=True)
        thread.start()
        try:
            while not running.started and thread.is_alive():
                thread.join(0.005)
            yield Client(opened.getsockname()[1], service)
        finally:
            running.should_exit = True
            thread.join(30)
            opened.close()
            assert not thread.is_alive()


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template, of 256 tokens of context."""
    return model_with_template(tmp_path_factory.mktemp("served"), TEMPLATE)


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[Client]:
    """A server with the limits of the tests, an admin token and no keys."""
    with serving(
        tiny, Limits(sequences=4, body_bytes=1 << 18, body_seconds=5, head_seconds=1), admin="admin"
    ) as served:
        yield served


class Alone:
    """The same model without a server, one sequence at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.tokenizer = engine, engine.model.tokenizer

    def logits(self, ids: list[int]) -> np.ndarray:
        """Float32 [tokens, vocab], a token at a time."""
        sequence = self.engine.open(ids[:1], len(ids))
        rows = []
        for token in [*ids[1:], None]:
            self.engine.step()
            rows.append(sequence.logits)
            if token is not None:
                sequence.push([token])
        sequence.close()
        return np.stack(rows)

    def text(self, prompt: str, tokens: int) -> str:
        """The greedy answer."""
        ids = self.tokenizer.encode(prompt).ids
        sequence, stream = self.engine.open(ids, len(ids) + tokens), TextStream(self.tokenizer, ids)
        text = ""
        for place in range(tokens):
            while not self.engine.step():
                pass
            token = sequence.sample()
            text += stream.add(token)
            if place + 1 < tokens:
                sequence.push([token])
        sequence.close()
        return text + stream.end()


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Iterator[Alone]:
    with Runtime(tiny, threads=1, session=False) as model, Engine(model) as engine:
        yield Alone(engine)
