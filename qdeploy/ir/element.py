"""Element types of the values that flow through a graph, and tensors as such values.

Element types are named by the table of number types (`dtype.py`). Those of less than a byte lie in memory one to a
byte. A tensor that is nothing but integers enters a graph as integers of its own type; every other one as the float32
that it decodes to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import element_row, elements
from qdeploy.ir.tensor import Array, QTensor


def element_dtype(name: str) -> np.dtype[Any]:
    """Returns the numpy dtype of an element type; raises UnsupportedError for an unknown name."""
    return element_row(name).numpy


def element_name(dtype: np.dtype[Any]) -> str:
    """Returns the name of a numpy dtype; raises UnsupportedError for one that no graph holds."""
    name = next((name for name in elements() if element_row(name).numpy == dtype), None)
    if name is None:
        raise UnsupportedError("values of this type are not in any graph", found=dtype, allowed=", ".join(elements()))
    return name


def integer_type(tensor: QTensor) -> str | None:
    """Returns the element type of a tensor that is nothing but integers in its own shape; None for any other."""
    from qdeploy.ir.views import Integers, view  # those who only name types need no view

    seen = view(tensor)
    return seen.element if isinstance(seen, Integers) else None


def as_value(tensor: QTensor) -> Array:
    """Returns a tensor as nodes take it: integers as such, everything else in float32; its own shape."""
    from qdeploy.ir.views import Integers, view

    seen = view(tensor)
    return seen.value() if isinstance(seen, Integers) else tensor.decode()
