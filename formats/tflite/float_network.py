"""A float TFLite subgraph that is being translated, whose images exist with channels last, first, or both.

The rows of convolution and pooling have channels first. Images are transposed where such a row needs it and transposed
back where something else takes them, but not between two such rows. Weights stay in the order of the file, and a
Transpose of a constant stands before the row. Weights that are int8 (dynamic range) or float16 are decoded as they are:
activations, which TFLite's hybrid kernels would quantize while they run, stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.tflite.graph import Network
from qdeploy.formats.tflite.schema import Operator, Parsed
from qdeploy.formats.tflite.stored import Part

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""Transpositions of an image: to channels first, and to channels last."""
LIMITS = {2: {"min": -1.0, "max": 1.0}, 3: {"min": 0.0, "max": 6.0}}
"""Activation functions that are a Clip, by their number in the schema."""
_RELU, _TANH = 1, 4


class FloatNetwork(Network):
    """A float subgraph, whose images exist with channels last, first, or both."""

    def __init__(self, file: str, parsed: Parsed, names: Sequence[str], parts: Mapping[int, Part]) -> None:
        super().__init__(file, parsed, names, parts)
        self.parts: dict[int, Part] = dict(parts)
        self._first: dict[int, str] = {}
        self._last: dict[int, str] = {i: names[i] for i in (*parts, *parsed.inputs)}
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}

    def last(self, index: int) -> str:
        """A value as the file has it."""
        if index not in self._last:
            if index not in self._first:
                raise BadFileError("an operator takes what nothing before it gives", where=self.where(index))
            self._last[index] = self.add("Transpose", (self._first[index],), self.names[index], perm=LAST)
        return self._last[index]

    def first(self, index: int) -> str:
        """An image with channels first; a constant that is broadcast over images as one that is broadcast so."""
        if index not in self._first:
            shape, source = self.shape(index), self.last(index)
            if index in self.parts and len(shape) < 4:
                source = self.add("Reshape", (source,), f"{source}/image", shape=[1] * (4 - len(shape)) + list(shape))
            elif len(shape) != 4:
                raise BadFileError("an image without four axes", where=self.where(index), found=shape)
            self._first[index] = self.add("Transpose", (source,), f"{self.names[index]}/nchw", perm=FIRST)
        return self._first[index]

    def has_first(self, *indices: int) -> bool:
        """Whether values exist with channels first already, beside constants of fewer than all elements."""
        images = [i for i in indices if i not in self.parts]
        return bool(images) and all(i in self._first for i in images)

    def transposed(self, index: int, perm: Sequence[int]) -> str:
        """A constant with its axes permuted."""
        key = (self.last(index), tuple(perm))
        if key not in self._transposed:
            self._transposed[key] = self.add(
                "Transpose", (key[0],), f"{key[0]}/turned{len(self._transposed)}", perm=list(perm)
            )
        return self._transposed[key]

    def give(self, op: Operator, row: str, inputs: Sequence[str], first: bool, **attrs: Any) -> None:
        """Adds a row and its fused activation function, as the operator's result."""
        index, activation = op.outputs[0], int(op.options.get("FusedActivationFunction", 0))
        name = f"{self.names[index]}/nchw" if first else self.names[index]
        if activation not in (0, _RELU, _TANH, *LIMITS):
            raise UnsupportedError(
                "a fused activation function that is not read",
                where=self.where(index),
                found=activation,
                allowed="none, RELU, RELU_N1_TO_1, RELU6, TANH",
            )
        output = self.add(row, inputs, f"{name}/linear" if activation else name, **attrs)
        if activation:
            limits = LIMITS.get(activation, {})
            function = "Clip" if limits else "Tanh" if activation == _TANH else "Relu"
            self.add(function, (output,), name, **limits)
        self.is_given(index, name, first)

    def is_given(self, index: int, name: str, first: bool = False) -> None:
        """Notes that a value is there by now."""
        (self._first if first else self._last)[index] = name

    def alias(self, index: int, of: int) -> None:
        """Lets a tensor stand for a constant."""
        self._last[index] = self.last(of)
        self.parts[index] = self.part(of)

    def step(self, row: str, inputs: Sequence[str], op: Operator, key: str, **attrs: Any) -> str:
        """Adds a row on the way to an operator's result; `key` tells it from others."""
        return self.add(row, inputs, f"{self.names[op.outputs[0]]}/{key}", **attrs)

    def number(self, index: int) -> int:
        """A constant integer."""
        numbers = self.listed(index)
        if len(numbers) != 1:
            raise BadFileError("one number was expected", where=self.where(index), found=numbers)
        return numbers[0]

    def axis(self, index: int, number: int) -> int:
        """An axis of a tensor, counted from the front."""
        rank = len(self.shape(index))
        if not -rank <= number < rank:
            raise BadFileError("an axis that a tensor does not have", where=self.where(index), found=number)
        return number % rank

    def count(self, index: int) -> int:
        """The elements of a tensor, its free axis as the file has it."""
        return math.prod(self.shape(index))


FloatImporter = Callable[[FloatNetwork, Operator], None]
"""Adds what an operator means to a network."""
