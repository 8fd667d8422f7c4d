"""The verbs of the native runtime, as far as they need no model."""

from __future__ import annotations

import pytest

from qdeploy.cli.plan import curve
from qdeploy.cli.run import parse_trace
from qdeploy.errors import BadArgumentError


def test_a_memory_trace_is_seconds_and_sizes_in_order_of_time():
    assert parse_trace("2s:250MB,0s:400MB, 4:1GiB") == [(0.0, 400_000_000), (2.0, 250_000_000), (4.0, 2**30)]
    assert parse_trace("") == []


@pytest.mark.parametrize("text", ["400MB", "x:400MB", "-1s:400MB", "nan:1MB", "inf:1MB", "1s:", "1s:lots"])
def test_what_is_no_trace_is_refused(text: str):
    with pytest.raises(BadArgumentError):
        parse_trace(text)


def test_a_curve_falls_from_the_floor_to_everything():
    drawn = curve([1.0, 0.5, 0.25, 0.0])
    assert drawn[0] == "█" and drawn[-1] == " "
    assert curve([]) == "" and curve([0.0]) == ""
    assert len(curve([float(i) for i in range(1000)])) == 72
