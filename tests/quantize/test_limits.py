"""Limits as people write them: read as meant, shown with units, everything else refused."""

from __future__ import annotations

import pytest

from qdeploy.errors import BadArgumentError
from qdeploy.limits import Limit, rounded_up, show_cost


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("size:0.5", Limit("size", 0.5, True)),
        ("bops:1", Limit("bops", 1, True)),
        ("latency:.25", Limit("latency", 0.25, True)),
        ("size:3.5MB", Limit("size", 3.5e6, False)),
        ("size:4KiB", Limit("size", 4096, False)),
        ("size:900B", Limit("size", 900, False)),
        ("bops:72G", Limit("bops", 72e9, False)),
        ("latency:12ms", Limit("latency", 0.012, False)),
        ("latency:850us", Limit("latency", 850e-6, False)),
        ("latency:0.5 s", Limit("latency", 0.5, False)),
    ],
)
def test_limits_are_read(text: str, limit: Limit):
    result = Limit.parse(text)
    assert (result.kind, result.ratio) == (limit.kind, limit.ratio)
    assert result.amount == pytest.approx(limit.amount)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size",
        "size:",
        "size:2",
        "size:-1",
        "size:nan",
        "size:inf",
        "size:0.5x",
        "size:1e3",
        "latency:12",
        "latency:12MB",
        "bops:72GB",
        "speed:0.5",
        "0.5",
        "size:0.5:1",
    ],
)
def test_what_is_no_limit_is_refused(text: str):
    with pytest.raises(BadArgumentError) as caught:
        Limit.parse(text)
    assert "size:3.5MB" in caught.value.allowed


def test_costs_have_units():
    assert show_cost("size", 134_704) == "135 kB"
    assert show_cost("bops", 72e9) == "72 G"
    assert show_cost("latency", 0.0123) == "12.3 ms"
    assert show_cost("latency", 3.2e-5) == "32 us"
    assert show_cost("size", rounded_up(134_004)) == "135 kB"
    assert rounded_up(135_000) == 135_000
    assert rounded_up(0) == 0
