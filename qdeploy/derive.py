"""A source as a conversion takes it: quantized, lowered to another form, made integers, where that was asked for.

All are pure functions of the source and what was asked, so an output can be held against its source by doing the same
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.ir.model import Model
from qdeploy.progress import SILENT, Progress

INTEGER_OPTIONS = ("calibrate", "calibrate_method", "weight_bits", "activation_bits", "layer_bits", "rounding")
"""What a conversion to integers can be asked for (`calibrate.network.Integers`)."""


def derived(
    model: Model,
    quantize: Sequence[str] = (),
    lower: str = "",
    integers: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> Model:
    """Returns the model with its tensors quantized and lowered as they are read.

    Args:
        model: As its reader gives it.
        quantize: Specs of `qdeploy.quantize`.
        lower: Spec of `qdeploy.quantize.restate`.
        integers: What `calibrate.network.Integers` takes, for a network of integers; None: it stays as it is.
        progress: Told of calibration.

    Raises:
        BadArgumentError: A spec does not parse.
        UnsupportedError: The model has nothing that a spec could be applied to.
    """
    if quantize:
        from qdeploy.quantize import quantize_model

        model = quantize_model(model, quantize)
    if lower:
        from qdeploy.quantize.restate import lower_model

        model = lower_model(model, lower)
    if integers is not None:
        from qdeploy.calibrate.network import Integers, integer_network

        model = integer_network(model, Integers(**integers), progress)
    return model


def integers_asked(target: Any, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to ask of a conversion to integers; None where the output holds what the source does.

    A backend that proves that it computes with integers (`integer_only`) always needs them, or, if it has an option
    `integer`, where that is given. Without a backend (a package), calibration data asks for them.

    Args:
        target: A backend, or None.
        asked: Options of the conversion by name.
    """
    chosen = target is not None and "integer" in option_names(target)
    always = hasattr(target, "integer_only") and not chosen
    if not (always or (chosen and asked.get("integer")) or (target is None and asked.get("calibrate"))):
        return None
    found = {name: asked[name] for name in INTEGER_OPTIONS if asked.get(name)}
    return {**found, "narrow_sums": True} if chosen and asked.get("integer") == "fast" else found


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
