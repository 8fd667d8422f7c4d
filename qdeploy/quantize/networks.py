"""Weights of networks: which tensors layers multiply with, and how such a tensor of any rank is rounded as a matrix.

A weight of a layer has axes of outputs, which get scales of their own, and axes that are summed:

    Conv             [M, C / group, *kernel]   M              Linear, GatedMlp   [N, K]   N
    ConvTranspose    [C, M / group, *kernel]   M, or both     Gather             [V, D]   V
    MatMul           [..., K, N]               all but K      Gemm               [K, N]   N; transposed: as Linear
    LSTM, GRU, RNN   [directions, gates, K]    the first two

Between a tensor and its layer there may be nodes that only move elements; the axes are followed through them. What a
subgraph takes from outside has its rows for outputs. A tensor that anything else takes, too, stays as it is, and so
do one that sums few entries, and the smallest layers of a network: they are the first ones, whose errors go through
all others, and a few percent of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.codes import read_codes
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, ComputedRows, Param, QTensor, Shape, Term
from qdeploy.ir.views import Affine, Floats, view
from qdeploy.quantize.contract import Weight
from qdeploy.quantize.specs import Spec

META = "weight_only"
"""Where the meta of a graph lists the tensors that were quantized alone, without their layer's inputs."""
_LEAST = 1024
"""Elements below which codes and scales save nothing worth a node."""
_NARROW = 32
"""Summed entries below which a layer stays as it is: depthwise filters are few bytes, and rounding them costs most."""
_SHARE = 0.035
"""Of all entries of layers, what the smallest ones may have together that stay float beside codes of 8 bits."""
_BLOCK = 32
"""Entries that share a scale where nobody says how many; networks multiply on floats, so that blocks cost no time."""
_SIGNED = (2, 4, 8)
_SMALL_BLOCK = 16
_RECURRENT = ("LSTM", "GRU", "RNN")
_MOVES = ("Transpose", "Identity", "Cast", "Slice", "Unsqueeze", "Squeeze")
_Axes = tuple[int, ...]
_Origin = tuple[str, _Axes]
"""A tensor, and which of its axes each axis of a value is."""


def layer_weights(graph: Graph, tensors: Mapping[str, QTensor]) -> dict[str, _Axes]:
    """The tensors that layers multiply with, in graph order: the axes of each that are outputs.

    Args:
        graph: A network.
        tensors: The model's.
    """
    origins: dict[str, list[_Origin]] = {
        name: [(name, tuple(range(len(tensor.shape))))]
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1 and math.prod(tensor.shape) >= _LEAST
    }
    uses: dict[str, set[_Axes]] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            for root, axes in origins.get(name, []):
                moved = _moved(node, place, axes)
                if moved is not None:
                    origins.setdefault(node.outputs[0], []).append((root, moved))
                else:
                    uses.setdefault(root, set()).add(_of_root(_outputs(node, place, len(axes)), axes))
    for value in graph.outputs:
        for root, _ in origins.get(value.name, []):
            uses.setdefault(root, set()).add(())
    weights = {name: next(iter(axes)) for name, axes in uses.items() if len(axes) == 1 and axes != {()}}
    return {name: outputs for name, outputs in weights.items() if _summed(tensors[name].shape, outputs) >= _NARROW}


def smallest_layers(layers: Mapping[str, _Axes], tensors: Mapping[str, QTensor], bits: int) -> frozenset[str]:
    """The smallest weights, which together are so few that floats instead of codes make a file a tenth larger at most.

    Args:
        layers: As `layer_weights` gives them.
        tensors: The model's.
        bits: Of the codes.
    """
    sizes = {name: math.prod(tensors[name].shape) for name in layers}
    left, smallest = sum(sizes.values()) * _SHARE * bits / 8, set[str]()
    for name in sorted(sizes, key=lambda name: sizes[name]):
        left -= sizes[name]
        if left < 0:
            break
        smallest.add(name)
    return frozenset(smallest)


def _summed(shape: Shape, outputs: _Axes) -> int:
    """Entries that are summed into each output."""
    return math.prod(n for i, n in enumerate(shape) if i not in outputs)


def _of_root(outputs: Sequence[int] | None, axes: _Axes) -> _Axes:
    """The axes of a tensor that are a layer's axes of outputs; none where it is no weight."""
    return () if outputs is None else tuple(sorted(axes[i] for i in outputs if axes[i] >= 0))


def _moved(node: Node, place: int, axes: _Axes) -> _Axes | None:
    """The axes behind a node that only moves elements, -1 for new ones; None for any other node."""
    op, attrs = node.op, node.attrs
    if op == "Concat":
        return axes
    if place or op not in _MOVES:
        return None
    listed: Any = attrs.get("perm" if op == "Transpose" else "axes")
    if op == "Transpose":
        return tuple(axes[i] for i in listed or range(len(axes))[::-1])
    if op in ("Unsqueeze", "Squeeze") and listed is None:
        return None
    if op == "Squeeze":
        gone = {i % len(axes) for i in listed}
        return tuple(axis for i, axis in enumerate(axes) if i not in gone)
    if op == "Unsqueeze":
        rank, rest = len(axes) + len(listed), iter(axes)
        added = {i % rank for i in listed}
        return tuple(-1 if i in added else next(rest) for i in range(rank))
    return axes


def _outputs(node: Node, place: int, rank: int) -> Sequence[int] | None:
    """The axes of outputs of a layer's weight; None where the input is no weight of a layer."""
    op, attrs = node.op, node.attrs
    if op == "Opaque":
        captured = len(attrs.get("captured", []))  # type: ignore[arg-type]
        if place >= len(node.inputs) - captured:
            return (0,)
        return (0, 1) if attrs["type"] in _RECURRENT and place in (1, 2) and rank == 3 else None
    if op == "MatMul":
        summed = rank - 2 if place else rank - 1
        return [i for i in range(rank) if i != summed]
    if op == "Gather":
        return (0,) if place == 0 and attrs.get("axis", 0) == 0 else None
    if op == "GatedMlp":
        return (0,) if place else None
    if place != 1:
        return None
    group = int(attrs.get("group", 1))  # type: ignore[arg-type]
    gemm = (0,) if attrs.get("transB") else (1,)
    return {"Conv": (0,), "Linear": (0,), "ConvTranspose": (0, 1) if group > 1 else (1,), "Gemm": gemm}.get(op)


def rounded(weight: Weight, outputs: _Axes, spec: Spec) -> QTensor:
    """A weight of a network, quantized; nothing is computed before its buffers are read.

    Scales belong to blocks of the summed axes, of as many entries as asked for, or of a divisor of that where it does
    not divide them; where these axes are several and not the last ones, there is one scale per output.

    Args:
        weight: A plain float tensor of any rank.
        outputs: Its axes of outputs.
        spec: Rounds matrices, to a number type and in groups.

    Raises:
        UnsupportedError: The method gives something that is not a grid of codes in the place of the tensor's own axes.
    """
    shape = weight.tensor.shape
    matrix = _Matrix(weight.tensor, outputs)
    leading = outputs == tuple(range(len(outputs)))
    whole = not leading and len(shape) - len(outputs) > 1
    width, free = matrix.shape[1], len(shape) > 2 and not spec.names_group
    group = _block(width) if free else _group(width, spec.grid.group)
    grid = replace(spec.grid, group=-1 if whole else group)
    result = spec.quantized(replace(weight, tensor=matrix.tensor()), (), grid)
    keeps = result.scale is None and result.offset is None if leading else _is_symmetric(result, grid.bits)
    if not keeps:
        raise UnsupportedError(
            "this method cannot round tensors of several axes",
            where=weight.name,
            found=spec.method,
            allowed="integer codes with their middle for a zero point, and a float16 scale per group",
            todo="Leave the tensor out with skip=REGEX.",
        )
    if leading:
        return QTensor(shape, weight.tensor.dtype, result.terms)
    return _Rearranged(result, shape, outputs, grid.bits, weight.tensor.dtype).tensor()


def _is_symmetric(matrix: QTensor, bits: int) -> bool:
    """Whether a matrix is what `nearest.grouped_tensor` makes: unsigned codes around their middle, and scales."""
    seen = view(matrix)
    if not isinstance(seen, Affine) or seen.codes.table != f"uint{bits}" or seen.codes.offset is not None:
        return False
    zero, scale = (param.values if param is not None else None for param in (seen.codes.zero, seen.codes.scale))
    if seen.divides or not isinstance(zero, Codes) or not isinstance(scale, Codes):
        return False
    if (scale.table, scale.layout) != ("f16", PLAIN) or scale.zero or scale.scale or scale.offset:
        return False
    middle = 1 << (bits - 1)
    return zero.shape == (1, 1) and zero.table == "uint8" and int(zero.data[0].read().reshape(-1)[0]) == middle


def _group(width: int, wished: int) -> int:
    if wished == -1 or wished >= width:
        return -1
    common = math.gcd(width, wished)
    return common if common >= _SMALL_BLOCK else -1


def _block(width: int) -> int:
    """The largest divisor of the summed entries up to `_BLOCK`; all of them where that is a small one."""
    divisors = [n for n in range(_SMALL_BLOCK, min(_BLOCK, width) + 1) if width % n == 0]
    return divisors[-1] if divisors else -1


def _order(rank: int, outputs: _Axes) -> list[int]:
    """All axes, outputs first."""
    return [*outputs, *(i for i in range(rank) if i not in outputs)]


@dataclass(frozen=True)
class _Matrix:
    """A float tensor as the matrix [outputs, summed entries]."""

    source: QTensor
    outputs: _Axes

    @property
    def shape(self) -> tuple[int, int]:
        rows = math.prod(self.source.shape[i] for i in self.outputs)
        return rows, math.prod(self.source.shape) // rows

    def tensor(self) -> QTensor:
        seen = view(self.source)
        assert isinstance(seen, Floats)  # the driver has looked
        stored, width = seen.codes.data[0], self.shape[1]

        def read(start: int, stop: int) -> Array:
            if self.outputs == (0,):
                return stored.read(start, stop).reshape(stop - start, width)
            return (
                stored.read()
                .reshape(self.source.shape)
                .transpose(_order(len(self.source.shape), self.outputs))
                .reshape(self.shape)[start:stop]
            )

        buffer = Buffer("data", stored.dtype, self.shape, ComputedRows(read))
        return QTensor(self.shape, self.source.dtype, (Term(Codes(self.shape, (buffer,), PLAIN, seen.codes.table)),))


@dataclass(frozen=True)
class _Rearranged:
    """Codes of a matrix [outputs, summed entries], brought back to the order of the tensor's own axes."""

    matrix: QTensor
    shape: Shape
    outputs: _Axes
    bits: int
    dtype: str

    @cached_property
    def _codes(self) -> Codes:
        values = self.matrix.terms[0].values
        assert isinstance(values, Codes)
        return values

    @cached_property
    def _scale(self) -> Codes:
        values = self._codes.scale.values if self._codes.scale else None
        assert isinstance(values, Codes)
        return values

    def _back(self, rows: Array, summed: Shape) -> Array:
        """[outputs, ...] in the order of the tensor's axes; `summed`: the shape of the summed ones."""
        order = _order(len(self.shape), self.outputs)
        shape = [self.shape[i] for i in self.outputs] + list(summed)
        return np.ascontiguousarray(rows.reshape(shape).transpose(np.argsort(order)))

    @cached_property
    def _stored(self) -> Array:
        codes = read_codes(self._codes, 0, self._codes.shape[0])
        codes = codes ^ (1 << (self.bits - 1)) if self.bits in _SIGNED else codes
        return self._back(codes, tuple(n for i, n in enumerate(self.shape) if i not in self.outputs))

    @cached_property
    def _scales(self) -> Array:
        numbers = self._scale.data[0].read()
        ones = [1] * (len(self.shape) - len(self.outputs))
        return self._back(numbers, (*ones[1:], self._scale.shape[1]) if len(ones) == 1 else tuple(ones))

    def tensor(self) -> QTensor:
        """The tensor: signed codes where their type has a form of its own in engines, else unsigned ones."""
        numbers = self._scale.shape[1]
        places = tuple(
            n if i in self.outputs else numbers if len(self.shape) - len(self.outputs) == 1 else 1
            for i, n in enumerate(self.shape)
        )
        tile = tuple(n // m for n, m in zip(self.shape, places, strict=True))
        signed = self.bits in _SIGNED
        data = Buffer("codes", "I8" if self.bits == 8 else "U8", self.shape, ComputedRows(self._code_rows))
        scale = Buffer("scale", "F16", places, ComputedRows(lambda start, stop: self._scales[start:stop]))
        codes = Codes(
            self.shape,
            (data,),
            PLAIN,
            f"{'' if signed else 'u'}int{self.bits}",
            zero=None if signed else self._middle(),
            scale=Param(Codes(places, (scale,), PLAIN, "f16"), tile),
        )
        return QTensor(self.shape, self.dtype, (Term(codes),))

    def _middle(self) -> Param:
        """The zero point of unsigned codes."""
        ones = (1,) * len(self.shape)
        number = Buffer.of("zero", np.full(ones, 1 << (self.bits - 1), np.uint8), "U8")
        return Param(Codes(ones, (number,), PLAIN, "uint8"), self.shape)

    def _code_rows(self, start: int, stop: int) -> Array:
        rows = self._stored[start:stop]
        return rows.view(np.int8) if self.bits == 8 else rows
