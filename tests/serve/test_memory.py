"""The budget of a server: it moves while answers run, says what it gives, and refuses what cannot be."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qdeploy.serve.limits import Limits
from tests.serve.conftest import Answer, Client, serving


@pytest.fixture(scope="module")
def budgeted(tiny: Path) -> Iterator[Client]:
    with serving(tiny, Limits(sequences=4), memory="4MB", admin="admin") as served:
        yield served


def move(client: Client, budget: int | str) -> Answer:
    return client.send("PUT", "/v1/memory", {"budget": budget}, Authorization="Bearer admin")


def test_fewer_bytes_give_fewer_bits_and_more_bytes_give_them_back(budgeted: Client):
    full = budgeted.complete(max_tokens=4).json["qdeploy"]
    memory = budgeted.get("/v1/memory").json
    small = memory["floor"] + 300_000
    assert move(budgeted, small).status == 200
    less = budgeted.complete(max_tokens=4).json["qdeploy"]
    assert less["bits"] < full["bits"] and less["rung"] < full["rung"] and less["memory"] <= small
    assert move(budgeted, "4MB").json["budget"] == 4_000_000
    budgeted.service.model.wait()
    assert budgeted.complete(max_tokens=4).json["qdeploy"]["bits"] == full["bits"]


def test_a_running_answer_survives_a_shrink(budgeted: Client):
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(budgeted.complete, max_tokens=150) for _ in range(2)]
        while budgeted.get("/v1/memory").json["running"] < 2 and not all(future.done() for future in running):
            pass
        floor = budgeted.get("/v1/memory").json["floor"]
        statuses = [move(budgeted, size).status for size in (floor + 250_000, "4MB", floor + 200_000, "4MB")]
        answers = [future.result() for future in running]
    assert set(statuses) <= {200, 409} and 200 in statuses
    assert [answer.json["usage"]["completion_tokens"] for answer in answers] == [150, 150]


def test_answers_go_on_with_fewer_bits_when_the_limit_of_the_group_is_halved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QDEPLOY_CGROUP", str(tmp_path))
    with serving(tiny, Limits(sequences=2)) as client, ThreadPoolExecutor(2) as pool:
        content = client.service.model.stats
        high = 2 * content["total"]
        (tmp_path / "memory.max").write_text(f"{high}\n")
        (tmp_path / "memory.current").write_text(f"{content['total']}\n")
        client.service.model.follow_pressure()
        full = client.complete(max_tokens=4).json["qdeploy"]
        running = [pool.submit(client.complete, max_tokens=200) for _ in range(2)]
        room = content["floor"] + 350_000
        (tmp_path / "memory.max").write_text(f"{room * 16 // 15 + 1}\n")
        (tmp_path / "memory.current").write_text(f"{10 * high}\n")  # nothing is free beside what is held
        answers = [future.result() for future in running]
        for _ in range(100):
            less = client.complete(max_tokens=4)
            if less.json["qdeploy"]["bits"] < full["bits"]:
                break
        assert [answer.status for answer in answers] == [200, 200] and less.status == 200
        assert [answer.json["usage"]["completion_tokens"] for answer in answers] == [200, 200]
        assert less.json["qdeploy"]["bits"] < full["bits"]


def test_a_budget_under_the_floor_is_refused_with_the_floor(budgeted: Client):
    answer = move(budgeted, "100kB")
    assert answer.status == 409 and answer.json["qdeploy"]["floor"] > 1_000_000
    assert budgeted.get("/v1/memory").json["budget"] == 4_000_000


def test_a_request_that_does_not_fit_is_told_what_would(budgeted: Client):
    floor = budgeted.get("/v1/memory").json["floor"]
    assert move(budgeted, floor + 1000).status == 200
    try:
        answer = budgeted.complete("a " * 100, max_tokens=50)
        assert answer.status == 503 and answer.json["error"]["code"] == "memory"
        assert move(budgeted, answer.json["qdeploy"]["floor"]).status == 200
        assert budgeted.complete("a " * 100, max_tokens=50).status == 200
    finally:
        assert move(budgeted, "4MB").status == 200


def test_a_plan_says_what_a_budget_gives(budgeted: Client):
    floor = budgeted.get("/v1/plan").json["floor"]
    plans = [budgeted.get(f"/v1/plan?budget={floor + extra}").json for extra in (0, 200_000, 400_000)]
    assert plans[0]["rung"] == 1 and plans[0]["bits"] < plans[1]["bits"] < plans[2]["bits"]
    assert plans[0]["predicted_loss"] > plans[1]["predicted_loss"]
    assert all(plan["bytes"] <= plan["budget"] for plan in plans)
    assert not budgeted.get("/v1/plan?budget=1kB").json["fits"]
    budgeted.complete(max_tokens=4)
    assert budgeted.get("/v1/plan").json["measured_tokens_per_second"] > 0
    assert budgeted.get("/v1/plan?budget=much").status == budgeted.get("/v1/plan?other=1").status == 400


def test_metrics_count_what_happened(budgeted: Client):
    before = budgeted.metric("qdeploy_generated_tokens_total")
    budgeted.complete(max_tokens=5)
    assert budgeted.metric("qdeploy_generated_tokens_total") == before + 5
    stats = budgeted.service.model.stats
    assert budgeted.metric("qdeploy_memory_bytes") >= stats["weights"] + stats["scratch"]
    assert (
        0 <= budgeted.metric("qdeploy_kv_cache_usage") <= 1 and budgeted.metric("qdeploy_first_token_seconds_count") > 0
    )


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_other_script(budgeted: Client):
    answer = budgeted.get("/")
    text, policy = answer.data.decode(), answer.headers["content-security-policy"]
    assert answer.status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.findall(r"""(?:https?:|src=|href=|url\(|@import|\son\w+=|style=)""", text)
    for tag in ("script", "style"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        assert base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode() in policy
