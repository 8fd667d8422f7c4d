"""Fields of configurations that families with Mamba-2 layers have in common."""

from __future__ import annotations

import math
from typing import Any

from qdeploy.arch.config import Config


def limits(config: Config) -> tuple[float, float]:
    """`time_step_limit`: the least and the greatest step; no greatest (0) where it is infinite."""
    value = config.fields.get("time_step_limit")
    if value is None:
        return 0.0, 0.0
    pair = [_number(entry) for entry in value] if isinstance(value, list) and len(value) == 2 else []
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] or not math.isfinite(pair[0]):
        raise config.contradiction("time_step_limit", value, "two numbers, the least and the greatest")
    return pair[0], pair[1] if math.isfinite(pair[1]) else 0.0


def _number(entry: Any) -> float:
    """A number of JSON; infinity may be an object that says so, or a word."""
    if isinstance(entry, dict):
        entry = entry.get("__float__", "nan")
    return float(entry) if isinstance(entry, int | float | str) else math.nan
