"""What all layers of a network together may cost, as people write it: `size:0.5`, `bops:72G`, `latency:12ms`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qdeploy.errors import BadArgumentError
from qdeploy.sizes import human, parse_size

KINDS = ("size", "bops", "latency")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_ALLOWED = "size:0.5 (a ratio between least and greatest), size:3.5MB, bops:72G, latency:12ms"


@dataclass(frozen=True)
class Limit:
    """What all layers together may cost.

    Attributes:
        kind: size (bytes of the codes of weights), bops (products times the bits of both factors) or latency (seconds).
        amount: Of that, or, if `ratio`, a place between the least (0) and the greatest (1) cost that there is.
        ratio: See `amount`.
    """

    kind: str
    amount: float
    ratio: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Parses `size:0.5`, `size:3.5MB`, `bops:72G` or `latency:12ms`.

        Raises:
            BadArgumentError: It is none of these.
        """
        kind, _, amount = text.strip().partition(":")
        if kind in KINDS and re.fullmatch(r"\d*\.?\d+|\d+\.", amount):
            if float(amount) <= 1:
                return cls(kind, float(amount), True)
            raise BadArgumentError("a limit without a unit is a ratio from 0 to 1", found=text, allowed=_ALLOWED)
        if kind == "latency" and (match := re.fullmatch(r"(\d*\.?\d+)\s*(s|ms|us|ns)", amount)):
            return cls(kind, float(match[1]) * _SECONDS[match[2]], False)
        if kind in ("size", "bops"):
            try:
                if kind == "size" or not amount.upper().endswith("B"):
                    return cls(kind, float(parse_size(amount)), False)
            except BadArgumentError:
                pass
        raise BadArgumentError("this is no limit", found=text, allowed=_ALLOWED)


def rounded_up(amount: float) -> float:
    """To three digits, so that what is shown is enough."""
    step = 10.0 ** (math.floor(math.log10(amount)) - 2) if amount > 0 else 1.0
    return math.ceil(amount / step - 1e-9) * step


def show_cost(kind: str, amount: float) -> str:
    """A cost with its unit: "137 kB", "12.3 ms", "72 G"."""
    if kind == "size":
        return human(amount)
    if kind == "bops":
        return human(amount).removesuffix("B").strip()
    unit = next((unit for unit, size in _SECONDS.items() if amount >= size), "ns")
    return f"{amount / _SECONDS[unit]:.4g} {unit}"
