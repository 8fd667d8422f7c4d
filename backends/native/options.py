"""What a caller can ask of the native backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qdeploy.errors import BadArgumentError
from qdeploy.options import TargetOptions, option, refuse_unknown

Layout = Literal["elastic", "whole"]
Order = Literal["gain", "uniform", "reference"]


@dataclass(frozen=True)
class Options(TargetOptions):
    """How to write a model file.

    Attributes:
        layout: "elastic": integer codes in bit planes, so that a prefix of the file runs. "whole": packed codes.
        order: In which order blocks become resident: by error removed per byte ("gain"), level by level ("uniform"), or
            as the authors of a BitStack checkpoint publish it ("reference").
        sensitivities: What an error of a tensor costs the model: a file of perplexities as BitStack's authors publish
            them (reduced_ppl_average.json), or the factors themselves by tensor. Empty: all tensors count the same.
        measure: A text on which losses of rungs are measured once the file is written: every 16th of its sequences.
        conversion: The other options of the conversion, as JSON; kept in the metadata, so that the source can be
            derived again when the file is held against it.
        losses: The metadata's entry of measured losses; empty: there is none.

    Raises:
        BadArgumentError: A value is not one of those.
    """

    layout: Layout = option(
        "elastic",
        "elastic: any prefix of the file runs. whole: codes are packed, and there is one rung.",
        choices=("elastic", "whole"),
        label="layout of a native file",
    )
    order: Order = option(
        "gain",
        "What more memory adds next: gain (error removed per byte), uniform, or reference (BitStack's own order).",
        choices=("gain", "uniform", "reference"),
        label="order of a native file",
    )
    sensitivities: str | Mapping[str, float] = option(
        "",
        "Weigh the gains by measured perplexities, in the form of BitStack's reduced_ppl_average.json.",
        metavar="FILE",
        mapping=True,
    )
    measure: str = option(
        "",
        "A text: of two orders the better one on it is taken, and the file tells the loss of ten of its rungs.",
        metavar="FILE",
    )
    conversion: Mapping[str, object] = field(default_factory=dict)
    losses: bytes = b""

    def __post_init__(self) -> None:
        """Refuses combinations of values that each option alone allows."""
        refuse_unknown(self)
        if isinstance(self.sensitivities, Mapping):
            _refuse_costs(self.sensitivities)
        if self.sensitivities and self.order != "gain":
            raise BadArgumentError("sensitivities weigh the order by gain", found=f"order {self.order}", allowed="gain")

    @property
    def reads_text(self) -> bool:
        """A calibration text makes ladders, and their losses are measured on it."""
        return True

    @property
    def reads_rows(self) -> bool:
        """A row of an embedding is decoded when its token comes."""
        return True


def _refuse_costs(costs: Mapping[str, object]) -> None:
    """Refuses what an error of a tensor cannot cost."""
    for name, cost in costs.items():
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < math.inf:
            raise BadArgumentError(
                "unknown sensitivities", where=name, found=cost, allowed="a mapping from names to numbers from 0 on"
            )
