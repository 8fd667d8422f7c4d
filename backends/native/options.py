"""What a caller can ask of the native backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from qdeploy.backends.results import Choice
from qdeploy.errors import BadArgumentError

Layout = Literal["elastic", "whole"]
Order = Literal["gain", "uniform", "reference"]


@dataclass(frozen=True)
class Options:
    """How to write a model file.

    Attributes:
        activations: Of no meaning here: the runtime chooses when it opens a file.
        requantize: Of no meaning here: every encoding has a form.
        jobs: Of no meaning here.
        layout: "elastic": integer codes in bit planes, so that a prefix of the file runs. "whole": packed codes.
        order: In which order blocks become resident: by error removed per byte ("gain"), level by level ("uniform"), or
            as the authors of a BitStack checkpoint publish it ("reference").
        sensitivities: What an error of a tensor costs the model: a file of perplexities as BitStack's authors publish
            them (reduced_ppl_average.json), or the factors themselves by tensor. Empty: all tensors count the same.
        conversion: What else the conversion was asked for, as JSON; kept in the metadata, so that the source can be
            derived again when the file is held against it.

    Raises:
        BadArgumentError: A value is not one of those.
    """

    activations: Literal["exact", "int8"] = "exact"
    requantize: bool = False
    jobs: int = 1
    layout: Layout = "elastic"
    order: Order = "gain"
    sensitivities: str | Mapping[str, float] = ""
    conversion: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (("layout", get_args(Layout)), ("order", get_args(Order))):
            if getattr(self, name) not in allowed:
                raise BadArgumentError(
                    f"no such {name} of a native file", found=getattr(self, name), allowed=", ".join(allowed)
                )
        if self.sensitivities and self.order != "gain":
            raise BadArgumentError("sensitivities weigh the order by gain", found=f"order {self.order}", allowed="gain")


@dataclass(frozen=True)
class Lowered:
    """The result: the file's name, a choice per matrix in order of first use, and remarks for the report."""

    files: tuple[str, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
