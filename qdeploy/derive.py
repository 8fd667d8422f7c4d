"""A source as a conversion takes it: quantized, and lowered to another form, where that was asked for.

Both are pure functions of the source and what was asked, so an output can be held against its source by doing the same
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.ir.model import Model


def derived(model: Model, quantize: Sequence[str] = (), lower: str = "") -> Model:
    """Returns the model with its tensors quantized and lowered as they are read.

    Args:
        model: As its reader gives it.
        quantize: Specs of `qdeploy.quantize`.
        lower: Spec of `qdeploy.lower.model`.

    Raises:
        BadArgumentError: A spec does not parse.
        UnsupportedError: The model has nothing that a spec could be applied to.
    """
    if quantize:
        from qdeploy.quantize import quantize_model

        model = quantize_model(model, quantize)
    if lower:
        from qdeploy.lower.model import lower_model

        model = lower_model(model, lower)
    return model


def target_options(target: Any, asked: Mapping[str, Any]) -> Any:
    """The Options of a target, from those of the values that it knows.

    Args:
        target: A backend.
        asked: Values by name; more than the target knows may be there.
    """
    names = option_names(target)
    return target.Options(**{name: value for name, value in asked.items() if name in names})


def option_names(target: Any) -> tuple[str, ...]:
    """Which options a target knows."""
    if dataclasses.is_dataclass(target.Options):
        return tuple(field.name for field in dataclasses.fields(target.Options))
    return ("activations", "requantize", "jobs")
