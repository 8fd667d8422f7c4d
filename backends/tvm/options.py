"""What a caller can ask of the TVM backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qdeploy.backends.results import CheckResult, Choice

__all__ = ["CheckResult", "Choice", "Lowered", "Options"]

Form = Literal["library", "bare"]


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        activations: Of no meaning here: activations are integers.
        requantize: Of no meaning here: weights are taken as they are.
        jobs: Of no meaning here.
        target: A name of targets.py.
        forms: "library": model.so for TVM's virtual machine. "bare": an object file, its plan and its weights.
        axes: Extents of the free axes.
    """

    activations: Literal["exact", "int8"] = "exact"
    requantize: bool = False
    jobs: int = 1
    target: str = "host"
    forms: tuple[Form, ...] = ("library", "bare")
    axes: Mapping[str, int] = field(default_factory=lambda: {"batch": 1, "sequence": 128})


@dataclass(frozen=True)
class Lowered:
    """The result: files, a choice per weight, remarks; the target, the graph and the proof for `check`."""

    files: tuple[str, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    target: str = "host"
    proof: Mapping[str, Any] = field(default_factory=dict)
    graph: Any = None
    axes: Mapping[str, int] = field(default_factory=dict)
