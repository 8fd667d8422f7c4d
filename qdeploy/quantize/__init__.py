"""float -> terms: one file per method, listed here. A method is asked for as `name:datatype,option=value,...`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.match import plain_float
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.quantize.rtn import Rtn

METHODS = {"rtn": Rtn}
_LINEAR_WEIGHTS = {"Linear": slice(1, 2), "GatedMlp": slice(1, 4)}


def parse(text: str) -> Rtn:
    """Parses `rtn:int4,group=128,clip=none,skip=REGEX,only=REGEX`.

    Raises:
        BadArgumentError: An unknown method, option or value; the error lists what is allowed.
    """
    method, _, rest = text.partition(":")
    if method not in METHODS:
        raise BadArgumentError("no such quantization method", found=method, allowed=", ".join(METHODS))
    options = [part.partition("=") for part in rest.split(",") if part]
    given = {name if sign else "type": value if sign else name for name, sign, value in options}
    return METHODS[method].from_options(given)


def quantize_model(model: Model, specs: Sequence[str]) -> Model:
    """Returns the model with the weights of its linear layers (a tied embedding included) quantized as they are read.

    Args:
        model: A model with float weights.
        specs: Methods; the first that takes a tensor's name has it.

    Raises:
        UnsupportedError: A weight is quantized already.
        BadArgumentError: A spec does not parse.
    """
    methods = [parse(spec) for spec in specs]
    losses: dict[str, float] = {}
    chosen = {}
    for name in linear_weights(model):
        method = next((m for m in methods if m.takes(name)), None)
        if method is None:
            continue
        tensor = model.tensors[name]
        if plain_float(tensor) is None:
            raise UnsupportedError(
                "the source is quantized already: quantizing again would lose twice",
                where=name,
                found=model.format,
                todo="Name the float tensors with only=REGEX (only=lm_head), or start from the float checkpoint.",
            )
        chosen[name] = method.quantize(name, tensor, losses)
    return dataclasses.replace(model, tensors=_Replaced(model.tensors, chosen), losses=losses)


def linear_weights(model: Model) -> tuple[str, ...]:
    """Names of the weights that are multiplied with activations, in graph order; without a graph all float matrices."""
    try:
        nodes = model.graph.nodes
    except UnsupportedError:
        return tuple(n for n, t in model.tensors.items() if len(t.shape) == 2 and min(t.shape) > 1 and plain_float(t))
    found: dict[str, None] = {}
    for node in nodes:
        if node.op in _LINEAR_WEIGHTS:
            found.update((name, None) for name in node.inputs[_LINEAR_WEIGHTS[node.op]])
    return tuple(name for name in found if math.prod(model.tensors[name].shape) > 0)


class _Replaced(Mapping[str, QTensor]):
    """A mapping with some values replaced, in the order of the original."""

    def __init__(self, tensors: Mapping[str, QTensor], replaced: Mapping[str, QTensor]) -> None:
        self._tensors, self._replaced = tensors, replaced

    def __getitem__(self, name: str) -> QTensor:
        return self._replaced[name] if name in self._replaced else self._tensors[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
