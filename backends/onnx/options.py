"""What a caller can ask of the ONNX backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qdeploy.backends.onnx.external import Placed
from qdeploy.backends.onnx.forms import Form
from qdeploy.backends.results import Choice


@dataclass(frozen=True)
class Options:
    """How to lower.

    Attributes:
        activations: "exact": float32 activations everywhere. "int8": the kernels quantize activations to 8 bits per
            block while they run, which is faster and changes results by about half a percent.
        requantize: Whether weights that have no lossless form may be rounded to 4 or 8 bits.
        jobs: Weights that are written at the same time.
        integer: For networks of integers. "strict" (and ""): operators over integers alone, equal to the graph bit for
            bit. "fast": ONNX Runtime's kernels for 8-bit codes.
    """

    activations: Literal["exact", "int8"] = "exact"
    requantize: bool = False
    jobs: int = 1
    integer: Literal["", "strict", "fast"] = ""


@dataclass(frozen=True)
class Lowered:
    """The result.

    Attributes:
        files: Written files, relative to the target folder.
        choices: One per weight, in order of first use.
        notes: Warnings for the report.
        digests: SHA-256 of each range of the data file, by the name of the initializer that brought it.
        forms: The forms themselves, by tensor; for `check`.
        places: Where each range lies; for `check`.
        int8: Whether kernels quantize activations, or round where the graph of integers says how; for `check`.
    """

    files: tuple[str, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    digests: Mapping[str, str]
    forms: Mapping[str, Form] = field(default_factory=dict, repr=False)
    places: Mapping[str, Placed] = field(default_factory=dict, repr=False)
    int8: bool = False
