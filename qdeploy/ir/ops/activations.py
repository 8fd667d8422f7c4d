"""Activations of single numbers, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.ops.rounding import rounded_once
from qdeploy.ir.tensor import Array


@rounded_once
def sigmoid(x: Array) -> Any:
    """1 / (1 + exp(-x))."""
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


@rounded_once
def erf(x: Array) -> Array:
    """The error function."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float32, x.size).reshape(x.shape)


@rounded_once
def gelu(x: Array, *, approximate: str = "none") -> Any:
    """X * Phi(x), exactly or by the tanh formula."""
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def xielu(x: Array, *, positive: float, negative: float, linear: float, least: float) -> Any:
    """An activation with parameters (arXiv 2411.13010): quadratic above zero, exponential below."""
    below = np.expm1(np.minimum(x, np.float32(least))) - x
    curved = np.where(x > 0, np.float32(positive) * x * x, np.float32(negative) * below)
    return curved + np.float32(linear) * x


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "tanh": lambda x: np.tanh(x),
}
"""By their names in attributes of nodes."""
ACTIVATION_CHOICES = {"activation": ("", *ACTIVATIONS)}
"""What the attribute `activation` of an op may be; "" leaves the activation out, where the op allows that."""


def activation_of(name: str) -> Callable[[Array], Array]:
    """The function of a name; UnsupportedError for one that there is not."""
    if name not in ACTIVATIONS:
        raise UnsupportedError("unknown activation", found=name, allowed=", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]
