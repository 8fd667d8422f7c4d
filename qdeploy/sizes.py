"""Sizes as people write them: `350MB` is 350,000,000 bytes, `1.5GiB` is 1.5 * 2**30."""

from __future__ import annotations

import math
import re

from qdeploy.errors import BadArgumentError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Returns bytes; BadArgumentError for what is not a size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not match or match[2] not in _UNITS:
        raise BadArgumentError("not a size", found=text, allowed="350MB, 1.5GiB, 4096")
    size = float(match[1]) * _UNITS[match[2]]
    if size == math.inf:
        raise BadArgumentError("not a size", found=text, allowed="350MB, 1.5GiB, 4096")
    return int(size)


def human(count: float) -> str:
    """Bytes with a decimal unit, three digits: "1.71 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
