"""A whole model in another form (`sign-planes:group=128`): the tensors that can take it, each at its first use.

sign-planes   BitStack's sums of signs times low-rank products as residual sign planes (sign_planes.py). This rounds;
              the loss of every tensor is reported.
"""

from __future__ import annotations

import dataclasses

from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.views import SignLowRank, view
from qdeploy.quantize.sign_planes import sign_planes
from qdeploy.quantize.specs import parse_lowering
from qdeploy.store.spill import Spill


def lower_model(model: Model, spec: str) -> Model:
    """Returns the model with every tensor that can be in the form that `spec` names.

    Args:
        model: At least one of its tensors is such a sum.
        spec: See `specs.parse_lowering`.

    Raises:
        BadArgumentError: The spec does not parse.
        UnsupportedError: No tensor can be lowered.
    """
    group, spill = parse_lowering(spec), Spill()
    lowered = {
        name: sign_planes(name, tensor, model.losses, group=group, spill=spill)
        for name, tensor in model.tensors.items()
        if isinstance(view(tensor), SignLowRank)
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
