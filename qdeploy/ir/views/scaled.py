"""A quantized tensor times one number per output: its codes stay, its scales change."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from qdeploy.ir.decode import decode_codes
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Term
from qdeploy.ir.views.kinds import Coded
from qdeploy.ir.views.recognise import view


def is_quantized(tensor: QTensor) -> bool:
    """Whether a tensor is more than plain numbers: codes with a scale, a zero point, an offset or a codebook."""
    seen = view(tensor)
    return not isinstance(seen, Coded) or bool(seen.params) or not isinstance(seen.codes.table, str)


def scaled(tensor: QTensor, factor: Array) -> QTensor | None:
    """The tensor times a number per index of its first axis.

    Args:
        tensor: [M, ...].
        factor: float64 [M]; may be negative or 0.

    Returns:
        The same codes, with scales in float32 [M, 1, ...]: the product of both, rounded once. None for a tensor that is
        no grid of codes with a scale for all or one per output.
    """
    seen = view(tensor)
    if not isinstance(seen, Coded) or seen.codes.shape != tensor.shape or seen.codes.offset:
        return None
    codes = seen.codes
    ones = (1,) * (len(tensor.shape) - 1)
    numbers = np.ones(1) if codes.scale is None else _numbers(codes.scale, tensor.shape)
    if numbers is None or factor.shape != tensor.shape[:1]:
        return None
    products = (numbers * factor).astype(np.float32).reshape(-1, *ones)  # [M, 1, ...]
    values = Codes(products.shape, (Buffer.of("scale", products, "F32"),), PLAIN, "f32")
    scale = Param(values, (1, *tensor.shape[1:]))
    return QTensor(tensor.shape, tensor.dtype, (Term(dataclasses.replace(codes, scale=scale)),))


def _numbers(param: Param, shape: tuple[int, ...]) -> Array | None:
    """The numbers of a scale, float64 [1] or [M]; None where it is spread in another way."""
    grid = param.values.decoded_shape
    if not isinstance(param.values, Codes) or param.index is not None or math.prod(grid) not in (1, shape[0]):
        return None
    if math.prod(grid) > 1 and (grid[0] != shape[0] or param.tile[0] != 1):
        return None
    numbers = decode_codes(param.values, slice(0, grid[0])).astype(np.float64).reshape(-1)
    return 1 / numbers if param.divide else numbers
