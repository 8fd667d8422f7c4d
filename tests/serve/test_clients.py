"""Programs that were written for OpenAI's servers talk to this one as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Client

pytestmark = pytest.mark.clients
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}


@pytest.fixture
def openai(client: Client) -> Any:
    package = pytest.importorskip("openai")
    with package.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_the_openai_package_chats_and_streams(openai: Any):
    settings = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    whole = openai.chat.completions.create(**settings)
    chunks = list(openai.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    assert whole.model_extra["qdeploy"]["bits"] > 3 and openai.models.list().data[0].id == "tiny"


def test_the_openai_package_gets_json_and_calls_of_tools(openai: Any):
    settings = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}
    form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}
    answer = openai.chat.completions.create(**settings, response_format=form)
    assert isinstance(json.loads(answer.choices[0].message.content)["on"], bool)
    tools = [{"type": "function", "function": {"name": "light", "parameters": SCHEMA}}]
    called = openai.chat.completions.create(**settings, tools=tools, tool_choice="required").choices[0]
    assert called.finish_reason == "tool_calls" and called.message.tool_calls[0].function.name == "light"


def test_the_openai_package_reads_responses_and_their_events(openai: Any):
    settings = {"model": "tiny", "input": "hello", "instructions": "be short", "max_output_tokens": 8, "temperature": 0}
    whole = openai.responses.create(**settings)
    events = list(openai.responses.create(**settings, stream=True))
    assert whole.status == "incomplete" and whole.usage.output_tokens == 8 and whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text


def test_the_openai_package_knows_the_errors(openai: Any):
    package = pytest.importorskip("openai")
    with pytest.raises(package.NotFoundError, match="no such model"):
        openai.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(package.BadRequestError, match="no vectors"):
        openai.embeddings.create(model="tiny", input="x")
    with pytest.raises(package.BadRequestError, match="context"):
        openai.completions.create(model="tiny", prompt="word " * 1000)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_completes(client: Client):
    body = json.dumps({"prompt": "ROMEO:", "max_tokens": 4, "temperature": 0, "stream": True})
    command = ["curl", "-sSN", f"http://127.0.0.1:{client.port}/v1/completions", "-d", body]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.startswith('data: {"id": "cmpl-') and shown.endswith("data: [DONE]\n\n")


def test_no_request_is_lost_and_the_budget_is_kept_while_it_moves(tiny: Path):
    soak = Path(__file__).resolve().parents[2] / "bench" / "soak.py"
    command = [sys.executable, str(soak), str(tiny), "--seconds", "10", "--clients", "8", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["lost"] == [] and report["statuses"]["200"] > 20, done.stdout
    assert set(report["statuses"]) <= {"200", "503", "vanished", "budget 200", "budget 409"}
