"""float -> terms: one file per method, listed here. A method is asked for as `name:datatype,option=value,...`.

rtn        round to nearest in groups
bitstack   sums of signs times low-rank products, elastic
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.match import plain_float
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.quantize.bitstack import BitStack
from qdeploy.quantize.nearest import Rtn

METHODS: Mapping[str, type[Rtn] | type[BitStack]] = {"rtn": Rtn, "bitstack": BitStack}
_LINEAR_WEIGHTS = {"Linear": slice(1, 2), "GatedMlp": slice(1, 4)}


class Method(Protocol):
    """A way to quantize, with its settings."""

    @property
    def only(self) -> str:
        """Regular expression of the tensor names that are quantized; empty: all weights of linear layers."""
        ...

    def takes(self, name: str) -> bool:
        """Whether a tensor is to be quantized."""
        ...

    def quantize(self, name: str, tensor: QTensor, losses: dict[str, float]) -> QTensor:
        """Describes the quantized tensor; its loss (dB) is put into `losses` when it is first read."""
        ...


def parse(text: str) -> Rtn | BitStack:
    """Parses `rtn:int4,group=128,clip=none,skip=REGEX,only=REGEX` or `bitstack:blocks=8,rank=16,calibrate=FILE,...`.

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

    An embedding that is nothing else is quantized only where a method names it with only=REGEX.

    Args:
        model: A model with float weights.
        specs: Methods; the first that takes a tensor's name has it.

    Raises:
        UnsupportedError: A weight is quantized already.
        BadArgumentError: A spec does not parse.
    """
    methods = [_prepared(parse(spec), model) for spec in specs]
    losses: dict[str, float] = {}
    chosen = {}
    tables = embedding_tables(model)
    for name in (*linear_weights(model), *tables):
        method = next((m for m in methods if m.takes(name) and (m.only or name not in tables)), None)
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


def embedding_tables(model: Model) -> tuple[str, ...]:
    """Names of the matrices that rows are gathered from and that no linear layer uses, in graph order."""
    try:
        nodes = model.graph.nodes
    except UnsupportedError:
        return ()
    linear = set(linear_weights(model))
    found = dict.fromkeys(node.inputs[0] for node in nodes if node.op == "Gather" and node.inputs[0] in model.tensors)
    return tuple(n for n in found if n not in linear and len(model.tensors[n].shape) == 2)


def _prepared(method: Rtn | BitStack, model: Model) -> Method:
    return method.prepared(model, model.notes) if isinstance(method, BitStack) else method


class _Replaced(Mapping[str, QTensor]):
    """A mapping with some values replaced, in the order of the original."""

    def __init__(self, tensors: Mapping[str, QTensor], replaced: Mapping[str, QTensor]) -> None:
        self._tensors, self._replaced = tensors, replaced

    def __getitem__(self, name: str) -> QTensor:
        return self._replaced[name] if name in self._replaced else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
