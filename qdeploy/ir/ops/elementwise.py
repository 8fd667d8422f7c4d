"""Rows of the table of ops: functions of one element, or of two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.ops.cast import cast_like
from qdeploy.ir.ops.rounding import rounded_once
from qdeploy.ir.ops.row import ONNX, Op
from qdeploy.ir.tensor import Array


def power(x: Array, exponent: Array) -> Any:
    """X to a power, in the type of x."""
    if x.dtype.kind == "f":
        return np.power(x, exponent.astype(x.dtype))
    return np.power(x.astype(np.float64), exponent).astype(x.dtype)


def modulo(a: Array, b: Array, *, fmod: int = 0) -> Any:
    """The remainder, with the sign of b; with fmod, that of a."""
    return np.fmod(a, b) if fmod else np.mod(a, b)


def leaky_relu(x: Array, *, alpha: float = 0.01) -> Any:
    """X, or alpha x below 0."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@rounded_once
def elu(x: Array, *, alpha: float = 1.0) -> Any:
    """X, or alpha (exp(x) - 1) below 0."""
    return np.where(x < 0, x.dtype.type(alpha) * (np.exp(np.minimum(x, 0)) - 1), x)


@rounded_once
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """Alpha x + beta, limited to 0..1."""
    return np.clip(x.dtype.type(alpha) * x + x.dtype.type(beta), 0, 1)


@rounded_once
def log_softmax(x: Array, *, axis: int = -1) -> Any:
    """The logarithm of Softmax."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def cum_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Any:
    """Running sums along an axis."""
    place = int(axis.reshape(()))
    flipped = np.flip(x, place) if reverse else x
    total = np.cumsum(flipped, axis=place, dtype=x.dtype)
    total = total - flipped if exclusive else total
    return np.flip(total, place) if reverse else total


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Any:
    """The triangle above (or below) a diagonal."""
    diagonal = 0 if k is None else int(k.reshape(()))
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


def folded(function: Any) -> Any:
    """A function of two values, over any number of them."""
    return lambda first, *others: reduce(function, others, first)


def opaque(
    *inputs: Array,
    domain: str,
    type: str,
    version: int,
    attributes: list[str],
    outputs: list[Any],
    captured: Sequence[str] = (),
) -> Any:
    """Refuses: an operator without a row is carried for a backend that knows it, and has no numpy meaning here.

    Args:
        inputs: The operator's, and behind them the values that its subgraphs take from outside.
        domain: Of the operator; "" is ai.onnx.
        type: Its name there.
        version: The version of the domain that the source imports.
        attributes: Each an AttributeProto in base64, with tensors and subgraphs whole.
        outputs: [element type, shape] of each output, or null where the source does not say.
        captured: What the subgraphs call those last inputs.
    """
    raise UnsupportedError(
        "an operator that the table of ops does not know",
        found=f"{domain or 'ai.onnx'}.{type}",
        todo="Only the ONNX backend passes it on.",
    )


ELEMENTWISE_ROWS: tuple[Op, ...] = (
    Op("Neg", ONNX, "-x", lambda x: np.negative(x)),
    Op("Abs", ONNX, "|x|", lambda x: np.abs(x)),
    Op("Exp", ONNX, "exp(x)", lambda x: np.exp(x), monotone=True),
    Op("Log", ONNX, "the natural logarithm", lambda x: np.log(x), monotone=True),
    Op("Reciprocal", ONNX, "1 / x", lambda x: np.reciprocal(x)),
    Op("Floor", ONNX, "the greatest integer not above x", lambda x: np.floor(x), monotone=True),
    Op("Ceil", ONNX, "the smallest integer not below x", lambda x: np.ceil(x), monotone=True),
    Op("Round", ONNX, "the nearest integer, halves to even", lambda x: np.rint(x), monotone=True),
    Op("Sign", ONNX, "-1, 0 or 1", lambda x: np.sign(x), monotone=True),
    Op("Sin", ONNX, "sin(x)", lambda x: np.sin(x)),
    Op("Cos", ONNX, "cos(x)", lambda x: np.cos(x)),
    Op("Softplus", ONNX, "log(1 + exp(x))", rounded_once(lambda x: np.logaddexp(x, x.dtype.type(0))), monotone=True),
    Op("LeakyRelu", ONNX, "x, or alpha x below 0", leaky_relu),
    Op("Elu", ONNX, "x, or alpha (exp(x) - 1) below 0", elu),
    Op("PRelu", ONNX, "x, or slope x below 0", lambda x, slope: np.where(x < 0, x * slope, x)),
    Op("HardSigmoid", ONNX, "alpha x + beta, limited to 0..1", hard_sigmoid),
    Op("HardSwish", ONNX, "x HardSigmoid(x; 1/6, 1/2)", rounded_once(lambda x: x * hard_sigmoid(x, alpha=1 / 6))),
    Op("LogSoftmax", ONNX, "x - log(sum(exp(x))) along an axis", log_softmax),
    Op("CumSum", ONNX, "running sums along an axis", cum_sum),
    Op("Trilu", ONNX, "the triangle above or below a diagonal", trilu),
    Op("Pow", ONNX, "x to a power, in the type of x", power),
    Op("Mod", ONNX, "the remainder of a / b", modulo),
    Op("Min", ONNX, "the smallest of any number of values", folded(np.minimum), monotone=True),
    Op("Max", ONNX, "the greatest of any number of values", folded(np.maximum), monotone=True),
    Op("Sum", ONNX, "the sum of any number of values", folded(np.add), monotone=True),
    Op("CastLike", ONNX, "x in the type of another value", cast_like),
)
