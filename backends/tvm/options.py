"""What a caller can ask of the TVM backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from qdeploy.backends.results import CheckResult, Choice
from qdeploy.errors import BadArgumentError

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
        axes: Extents of free axes. Of those not given, "sequence" is 128 and a batch (a first axis of any name) 1.
    """

    activations: Literal["exact", "int8"] = "exact"
    requantize: bool = False
    jobs: int = 1
    target: str = "host"
    forms: tuple[Form, ...] = ("library", "bare")
    axes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what no network could be compiled with, before any work is done."""
        from qdeploy.backends.tvm.targets import target

        if self.target != "host":
            target(self.target)
        if unknown := [form for form in self.forms if form not in get_args(Form)]:
            raise BadArgumentError(
                "unknown form of a compiled network",
                found=", ".join(map(str, unknown)),
                allowed=", ".join(get_args(Form)),
            )
        if not self.forms:
            raise BadArgumentError("no form of a compiled network is asked for", allowed=", ".join(get_args(Form)))
        for name, extent in self.axes.items():
            if not isinstance(extent, int) or isinstance(extent, bool) or extent < 1:
                raise BadArgumentError(
                    "the extent of an axis is no positive integer", where=name, found=extent, allowed="1, 2, ..."
                )


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
