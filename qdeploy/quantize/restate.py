"""A whole model in another form, which is asked for as `sign-planes:group=128`: the tensors that can have it, lazily.

sign-planes   BitStack's sums of signs times low-rank products as residual sign planes (sign_planes.py). This rounds;
              the loss of every tensor is reported.
"""

from __future__ import annotations

import dataclasses

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.match import sign_lowrank
from qdeploy.ir.model import Model
from qdeploy.quantize.sign_planes import GROUP, sign_planes
from qdeploy.store.spill import Spill

SIGN_PLANES = "sign-planes"
_ALLOWED = f"{SIGN_PLANES}[:group=N]"


def parse(spec: str) -> int:
    """The group of `sign-planes[:group=N]`.

    Raises:
        BadArgumentError: An unknown form or option, or a group that is no positive number.
    """
    form, _, rest = spec.partition(":")
    name, _, value = rest.partition("=")
    if form != SIGN_PLANES or (rest and name != "group"):
        raise BadArgumentError("no such form to lower to", found=spec, allowed=_ALLOWED)
    if not rest:
        return GROUP
    if not (value.isascii() and value.isdigit() and len(value) < 7 and int(value) > 0):
        raise BadArgumentError("the group of sign planes is no such number", found=value, allowed="1..999999")
    return int(value)


def lower_model(model: Model, spec: str) -> Model:
    """Returns the model with every tensor that can be in the form that `spec` names.

    Args:
        model: At least one of its tensors is such a sum.
        spec: See `parse`.

    Raises:
        BadArgumentError: The spec does not parse.
        UnsupportedError: No tensor can be lowered.
    """
    group, spill = parse(spec), Spill()
    lowered = {
        name: sign_planes(name, tensor, model.losses, group=group, spill=spill)
        for name, tensor in model.tensors.items()
        if sign_lowrank(tensor) is not None
    }
    if not lowered:
        raise UnsupportedError(
            "no tensor is a sum of signs times low-rank products",
            where=model.path,
            found=model.format,
            todo="Decompose it first: --quantize bitstack.",
        )
    note = f"{len(lowered)} tensors lowered to residual sign planes, groups of {group}: this rounds"
    tensors = {**model.tensors, **lowered}
    return dataclasses.replace(model, tensors=tensors, notes=[*model.notes, note])
