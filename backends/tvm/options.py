"""What a caller can ask of the TVM backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qdeploy.contracts import results
from qdeploy.contracts.results import CheckResult, Choice
from qdeploy.errors import BadArgumentError
from qdeploy.options import Arithmetic, TargetOptions, option, refuse_unknown

if TYPE_CHECKING:
    from qdeploy.ir.model import Model

__all__ = ["CheckResult", "Choice", "Lowered", "Options"]

Form = Literal["library", "bare"]


@dataclass(frozen=True)
class Options(TargetOptions):
    """How to compile.

    Attributes:
        target: A name of targets.py.
        forms: "library": model.so for TVM's virtual machine. "bare": an object file, its plan and its weights.
        axes: Extents of free axes. Of those not given, "sequence" is 128 and a batch (a first axis of any name) 1.
    """

    target: str = option("host", "The processor: host, x86-64-v3, aarch64+dotprod, ...", metavar="NAME")
    forms: tuple[Form, ...] = option(
        ("library", "bare"),
        "library (model.so for TVM's virtual machine) or bare (an object file and C). Both, if not given.",
        choices=("library", "bare"),
        flag="form",
        label="form of a compiled network",
    )
    axes: Mapping[str, int] = option(
        dict[str, int](),
        "The extent of a free axis, such as sequence=64 (128 if not given; a batch is 1). May be repeated.",
        metavar="NAME=EXTENT",
        flag="axis",
    )

    def __post_init__(self) -> None:
        """Refuses what no network could be compiled with, before any work is done."""
        from qdeploy.backends.tvm.targets import target

        refuse_unknown(self)
        if self.target != "host":
            target(self.target)
        if not self.forms:
            raise BadArgumentError("no form of a compiled network is chosen", allowed="library, bare")
        for name, extent in self.axes.items():
            if not isinstance(extent, int) or isinstance(extent, bool) or extent < 1:
                raise BadArgumentError(
                    "the extent of an axis is not a positive integer", where=name, found=extent, allowed="1, 2, ..."
                )

    @property
    def arithmetic(self) -> Arithmetic:
        """Integers always."""
        return "wide"


@dataclass(frozen=True)
class Lowered(results.Lowered):
    """The result: files, a choice per weight, remarks; the target, the graph and the proof for `check`."""

    target: str = "host"
    proof: Mapping[str, Any] = field(default_factory=dict)
    graph: Model | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
