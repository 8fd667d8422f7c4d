"""Functions of several steps over 16-bit floats: computed in float32, and rounded once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from qdeploy.ir.tensor import Array


def is_half(x: Any) -> bool:
    """Whether an array is of 16-bit floats."""
    return isinstance(x, np.ndarray) and x.dtype.itemsize == 2 and x.dtype.kind not in "iub"


def rounded_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every 16-bit float in float32 inside, and its result in the type of the first input."""

    @functools.wraps(function)
    def computed(x: Array, *others: Any, **attrs: Any) -> Any:
        if not is_half(x):
            return function(x, *others, **attrs)
        wide = (a.astype(np.float32) if is_half(a) else a for a in (x, *others))
        return np.asarray(function(*wide, **attrs)).astype(x.dtype)

    return computed


def product(a: Array, b: Array) -> Any:
    """A @ b in the type of its factors; sums of 16-bit floats are rounded once."""
    if is_half(a) and is_half(b):
        return np.asarray(a.astype(np.float32) @ b.astype(np.float32)).astype(np.result_type(a, b))
    return a @ b
