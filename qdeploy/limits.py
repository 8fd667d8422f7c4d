"""What all layers of a network together may cost, as people write it: `size:0.5`, `bops:72G`, `latency:12ms`.

`AllocationSpec` holds the options of a choice of bits within such a limit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qdeploy.errors import BadArgumentError
from qdeploy.options import option, refuse_unknown
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
            BadArgumentError: The text is not a limit.
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
        raise BadArgumentError("not a limit", found=text, allowed=_ALLOWED)


@dataclass(frozen=True)
class AllocationSpec:
    """How bits are chosen.

    Attributes:
        limit: See `Limit.parse`.
        sensitivity: output, weights or hessian (`quantize/sensitivity.py`).
        choices: Bits of a layer: "8,4" or "8x8,4x4" (weights x inputs).
        latency: A file that `latency_table` wrote.
        fixed: Layers that keep 8 bits, comma-separated: "first", "last" and names; "none": all may choose.
        ties: Layers that take the same value get the same bits.
        samples: Entries of the data that losses are measured on; 0: 64 for output, 256 for hessian.
    """

    limit: str = option(
        "",
        "Of size (bytes of weights), bops (products times the bits of both factors) or latency. A number from 0 to 1 "
        "lies between the least and the greatest cost; else it has a unit: size:3.5MB, bops:72G, latency:12ms.",
        metavar="KIND:AMOUNT",
    )
    sensitivity: str = option(
        "output",
        "output: error of the network's outputs with one layer changed. hessian: trace of the Hessian times the error "
        "of the weights (HAWQ). weights: error of the layer's own outputs, the fastest.",
        choices=("output", "weights", "hessian"),
    )
    choices: str = option("8,4", "Bits: 8,4,2, or weights x inputs: 8x8,4x8,4x4.", metavar="LIST")
    latency: str = option("", "A table that qdeploy bench MODEL --layers wrote.", metavar="FILE")
    fixed: str = option(
        "first,last", "Layers that keep 8 bits: first, last, names of weights, or none.", metavar="LIST"
    )
    ties: bool = option(True, "The same bits for layers that take one value.")
    samples: int = option(0, "Measured on; 0: 64 of the data (output), 256 (hessian).")

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        from qdeploy.quantize.allocate import parse_choices

        refuse_unknown(self)
        limit, options = Limit.parse(self.limit), parse_choices(self.choices)
        if self.sensitivity != "output" and len({w for w, _ in options}) < len(options):
            raise BadArgumentError(
                "choices that differ in the bits of inputs alone need the sensitivity of outputs",
                found=f"{self.choices} with {self.sensitivity}",
                allowed="output",
            )
        if (limit.kind == "latency") != bool(self.latency):
            raise BadArgumentError(
                "a limit of latency and a table of latencies go together",
                found=self.limit,
                todo="Measure one: qdeploy bench MODEL --layers --out table.json",
            )

    @classmethod
    def parse(cls, text: str) -> AllocationSpec:
        """Parses `size:0.5,sensitivity=hessian,choices=8x8/4x4,latency=FILE,samples=64`."""
        limit, *rest = text.split(",")
        options = dict(part.partition("=")[::2] for part in rest)
        known = ("sensitivity", "choices", "latency", "samples")
        samples = options.get("samples", "0")
        if any(name not in known or not value for name, value in options.items()) or not samples.isdecimal():
            raise BadArgumentError(
                "no such option of an allocation",
                found=", ".join(rest),
                allowed=", ".join(f"{name}=..." for name in known),
            )
        choices = options.get("choices", "8,4").replace("/", ",")
        return cls(
            limit, options.get("sensitivity", "output"), choices, options.get("latency", ""), samples=int(samples)
        )


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
