"""What a caller can ask of the native backend, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """How to write a model file.

    Attributes:
        activations: Of no meaning here: the runtime chooses when it opens a file.
        requantize: Of no meaning here: every encoding has a form.
        jobs: Of no meaning here.
        layout: "elastic": integer codes in bit planes, so that a prefix of the file runs. "whole": packed codes.
    """

    activations: Literal["exact", "int8"] = "exact"
    requantize: bool = False
    jobs: int = 1
    layout: Literal["elastic", "whole"] = "elastic"


@dataclass(frozen=True)
class Choice:
    """What became of a tensor: its form, why, whether every stored number is carried unrounded, its bytes."""

    tensor: str
    form: str
    reason: str
    lossless: bool
    bytes: int


@dataclass(frozen=True)
class Lowered:
    """The result: the file's name, a choice per matrix in order of first use, and remarks for the report."""

    files: tuple[str, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """What was read back: greatest relative error of a matrix's sampled rows, and what is allowed."""

    name: str
    kind: str
    error: float
    limit: float
