"""The table of ops: one row each, with its source and its meaning in numpy.

Two kinds of row. A *primitive* is an ONNX operator with ONNX's semantics (opset 21; 23 for RMSNormalization), except
that what ONNX passes as a small constant input (shape, axes, starts, ends, min, max) is an attribute here. A
*composite* is ours: a backend matches it or takes its expansion into other rows (`ir/expand.py`), and the tests hold
the two equal. `Attention` keeps a state and has no expansion; `ir/attention.py` is its definition.
`Opaque` is an operator of a source graph that has no row: it is carried for the one backend that may know it.

The rows of exported networks stand apart, by concept: elementwise.py, shape.py, selection.py, conv.py, image.py and
quantized.py; and so do those of integer networks, in integer.py. Reshape, Unsqueeze, Squeeze and Slice take their
constants as inputs too, where the graph computes them.

The numpy function takes the node's inputs as positional arguments (None where one is left out) and its attributes as
keywords; arithmetic is float32, integers are int64. It is interpreter, specification and oracle in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.catalog.extensions import load_extensions
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.attention import attention, rotary
from qdeploy.ir.expand import (
    gated_mlp,
    greatest_token,
    last_token,
    linear,
    mean_pool,
    positions,
    skip_norm,
    token_positions,
    xielu_nodes,
)
from qdeploy.ir.ops import integer_intervals, intervals
from qdeploy.ir.ops.activations import ACTIVATION_CHOICES, activation_of, erf, gelu, sigmoid, xielu
from qdeploy.ir.ops.cast import cast
from qdeploy.ir.ops.conv import CONV_ROWS
from qdeploy.ir.ops.elementwise import ELEMENTWISE_ROWS, opaque
from qdeploy.ir.ops.experts import EXPERT_ROWS
from qdeploy.ir.ops.hadamard import HADAMARD_ROWS
from qdeploy.ir.ops.image import IMAGE_ROWS
from qdeploy.ir.ops.integer import INTEGER_ROWS
from qdeploy.ir.ops.measures import MEASURE_ROWS
from qdeploy.ir.ops.quantized import QUANTIZED_ROWS
from qdeploy.ir.ops.recurrent import RECURRENT_ROWS
from qdeploy.ir.ops.rounding import product, rounded_once
from qdeploy.ir.ops.row import ONNX, QDEPLOY, Op
from qdeploy.ir.ops.selection import SELECTION_ROWS
from qdeploy.ir.ops.shape import SHAPE_ROWS, bounded, reducer
from qdeploy.ir.ops.tflite import TFLITE_ROWS
from qdeploy.ir.tensor import Array


def register(row: Op) -> None:
    """Adds a row at run time; BadArgumentError where there is one of that name."""
    if row.name in OPS:
        raise BadArgumentError("there is an op of this name", found=row.name)
    OPS[row.name] = row


def forget(name: str) -> None:
    """Takes back what `register` added."""
    OPS.pop(name, None)


def op(name: str) -> Op:
    """Returns the row of an op; raises UnsupportedError for a name that is not in the table."""
    failures = load_extensions() if name not in OPS else ()
    if name not in OPS:
        raise UnsupportedError("unknown op", found=name, allowed=", ".join(sorted(OPS)), todo=" ".join(failures))
    return OPS[name]


def _gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    size = data.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        outlier = int(indices.max() if indices.max() >= size else indices.min())
        raise BadArgumentError(
            "an index lies outside of the tensor that it selects from", found=outlier, allowed=f"{-size}..{size - 1}"
        )
    return np.take(data, indices, axis=axis)


def _constant(*, value_int: int | None = None, value_float: float | None = None) -> Array:
    return np.array(value_float, np.float32) if value_int is None else np.array(value_int, np.int64)


def _softmax(x: Array, *, axis: int = -1) -> Any:
    exponential = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponential / exponential.sum(axis=axis, keepdims=True)


@rounded_once
def _rms_normalization(x: Array, weight: Array, *, epsilon: float = 1e-5) -> Any:
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(epsilon)) * weight


@rounded_once
def _layer_normalization(x: Array, weight: Array, bias: Array | None = None, *, epsilon: float = 1e-5) -> Any:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    normal = centred / np.sqrt(variance + np.float32(epsilon)) * weight
    return normal if bias is None else normal + bias


@rounded_once
def _lp_normalization(x: Array, *, p: int = 2, axis: int = -1) -> Any:
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


def _ints(array: Array | None, constant: Sequence[int] | None) -> list[int]:
    """A list of integers that is an input or an attribute."""
    if array is None and constant is None:
        raise BadArgumentError("a list of integers is neither an input nor an attribute")
    return [int(n) for n in (array if array is not None else constant or ())]


def _reshape(x: Array, to: Array | None = None, *, shape: Sequence[int] | None = None, allowzero: int = 0) -> Array:
    wanted = _ints(to, shape)
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(wanted)])


def _transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    return x.transpose(perm)


def _unsqueeze(x: Array, at: Array | None = None, *, axes: Sequence[int] | None = None) -> Array:
    return np.expand_dims(x, tuple(_ints(at, axes)))


def _squeeze(x: Array, at: Array | None = None, *, axes: Sequence[int] | None = None) -> Array:
    every = at is None and axes is None
    return np.squeeze(x, None if every else tuple(_ints(at, axes)))


def _concat(first: Array, *others: Array, axis: int) -> Array:
    return np.concatenate((first, *others), axis=axis)


def _slice(
    x: Array,
    first: Array | None = None,
    last: Array | None = None,
    along: Array | None = None,
    stride: Array | None = None,
    *,
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Array:
    begins, stops = _ints(first, starts), _ints(last, ends)
    every = along is None and axes is None
    places = list(range(len(begins))) if every else _ints(along, axes)
    paces = [1] * len(begins) if stride is None and steps is None else _ints(stride, steps)
    window = [slice(None)] * x.ndim
    for begin, stop, axis, pace in zip(begins, stops, places, paces, strict=True):
        if pace < 0 and stop < -x.shape[axis]:  # ONNX: to the beginning, with the first element
            window[axis] = slice(begin, None, pace)
        else:
            window[axis] = slice(begin, stop, pace)
    return x[tuple(window)]


def _divide(a: Array, b: Array) -> Any:
    if np.result_type(a, b).kind == "f" or a.dtype.kind not in "iu":
        return a / b
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)  # towards zero


def _shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[start:end], np.int64)


def _range(start: Array, limit: Array, delta: Array) -> Array:
    bounded([max(0, math.ceil((limit.item() - start.item()) / delta.item()))])
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _sum(x: Array, **where: Any) -> Any:
    return np.sum(x, dtype=x.dtype, **where)


def _clip(x: Array, *, min: float | None = None, max: float | None = None) -> Array:
    return x if min is None and max is None else np.clip(x, min, max)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Any:
    product = x @ weight.T  # [..., K] @ [K, N]
    return product if bias is None else product + bias


def _skip_norm(
    x: Array, skip: Array, weight: Array, bias: Array | None = None, *, kind: str, epsilon: float
) -> tuple[Array, Array]:
    total = x + skip
    if kind == "rms":
        return _rms_normalization(total, weight, epsilon=epsilon), total
    return _layer_normalization(total, weight, bias, epsilon=epsilon), total


def _gated_mlp(
    x: Array,
    gate: Array,
    up: Array,
    down: Array,
    gate_bias: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    *,
    activation: str,
) -> Any:
    gated = activation_of(activation)(_linear(x, gate, gate_bias))
    return _linear(gated * _linear(x, up, up_bias), down, down_bias)


def _mean_pool(hidden: Array, mask: Array) -> Any:
    weight = mask.astype(np.float32)[..., None]  # [B, T, 1]
    return (hidden * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), np.float32(1e-9))


def _last_token(hidden: Array, mask: Array) -> Array:
    last = mask.shape[1] - 1 - np.argmax(np.flip(mask, axis=1), axis=1)
    picked = np.take_along_axis(hidden, last.reshape(-1, 1, 1), axis=1)[:, 0]  # [B, H]
    return np.asarray(picked * mask.max(axis=1, keepdims=True).astype(np.float32))


def _greatest_token(hidden: Array, mask: Array) -> Array:
    return np.asarray(np.where(mask[..., None] != 0, hidden, np.finfo(np.float32).min).max(axis=1))


def _token_positions(ids: Array, *, pad: int) -> Array:
    kept = (ids != pad).astype(np.int64)
    return np.asarray(np.cumsum(kept, axis=1) * kept + pad)


def _positions(ids: Array) -> Array:
    return np.arange(ids.shape[1], dtype=np.int64)


def _positions_behind(ids: Array, *, length_of: str, past: tuple[Array, Array] | None = None) -> Array:
    start = 0 if past is None else past[0].shape[2]
    return np.arange(start, start + ids.shape[1], dtype=np.int64)


OPS = {
    row.name: row
    for row in (
        Op("Constant", ONNX, "a scalar: I64 value_int, or F32 value_float", _constant),
        Op("Identity", ONNX, "x", lambda x: x, moves=True, keeps_scale=True, interval=intervals.same),
        Op(
            "Gather",
            ONNX,
            "entries of data along an axis, selected by indices",
            _gather,
            moves=True,
            interval=intervals.same,
        ),
        Op("Add", ONNX, "a + b, broadcast", lambda a, b: a + b, monotone=True, interval=intervals.add),
        Op("Sub", ONNX, "a - b, broadcast", lambda a, b: a - b, interval=intervals.add),
        Op("Mul", ONNX, "a * b, broadcast", lambda a, b: a * b),
        Op("Div", ONNX, "a / b, broadcast; integers towards zero", _divide),
        Op("MatMul", ONNX, "a @ b over the last two axes", product),
        Op("Softmax", ONNX, "exp(x) / sum(exp(x)) along an axis", _softmax),
        Op("Sigmoid", ONNX, "1 / (1 + exp(-x))", sigmoid, monotone=True),
        Op("Tanh", ONNX, "tanh(x)", lambda x: np.tanh(x), monotone=True),
        Op(
            "Relu",
            ONNX,
            "max(x, 0)",
            lambda x: np.maximum(x, 0),
            keeps_scale=True,
            monotone=True,
            interval=intervals.clip,
        ),
        Op("Erf", ONNX, "the error function", erf, monotone=True),
        Op("Sqrt", ONNX, "the square root", lambda x: np.sqrt(x), monotone=True),
        Op(
            "Gelu",
            ONNX,
            "x * Phi(x), exactly or by the tanh formula",
            gelu,
            choices={"approximate": ("none", "tanh")},
        ),
        Op("RMSNormalization", "ONNX 23", "x / sqrt(mean(x^2) + epsilon) * weight, last axis", _rms_normalization),
        Op(
            "LayerNormalization",
            ONNX,
            "(x - mean) / sqrt(var + epsilon) * weight + bias, last axis",
            _layer_normalization,
        ),
        Op("LpNormalization", ONNX, "x / |x|_p along an axis, 0 where the norm is 0", _lp_normalization),
        Op("Cast", ONNX, "x in another element type; what float8 cannot hold becomes its greatest number", cast),
        Op(
            "Reshape",
            ONNX,
            "0 keeps an axis, -1 is inferred",
            _reshape,
            moves=True,
            keeps_scale=True,
            interval=intervals.same,
            constants=("shape",),
        ),
        Op(
            "Transpose",
            ONNX,
            "axes permuted by perm",
            _transpose,
            moves=True,
            keeps_scale=True,
            interval=intervals.same,
        ),
        Op(
            "Unsqueeze",
            ONNX,
            "axes of extent 1 inserted",
            _unsqueeze,
            moves=True,
            keeps_scale=True,
            interval=intervals.same,
            constants=("axes",),
        ),
        Op(
            "Squeeze",
            ONNX,
            "axes of extent 1 removed",
            _squeeze,
            moves=True,
            keeps_scale=True,
            interval=intervals.same,
            constants=("axes",),
        ),
        Op("Concat", ONNX, "parts joined along an axis", _concat, moves=True, interval=intervals.concat),
        Op(
            "Slice",
            ONNX,
            "x[start:end] on each of axes",
            _slice,
            moves=True,
            keeps_scale=True,
            interval=intervals.same,
            constants=("starts", "ends", "axes", "steps"),
        ),
        Op("Shape", ONNX, "I64: the extents of axes start..end", _shape),
        Op("Range", ONNX, "start, start + delta, ... below limit", _range),
        Op("ReduceSum", ONNX, "the sum over axes", reducer(_sum), constants=("axes",)),
        Op("ReduceMean", ONNX, "the mean over axes", reducer(np.mean), interval=intervals.same, constants=("axes",)),
        Op(
            "Clip",
            ONNX,
            "x limited to min..max",
            _clip,
            keeps_scale=True,
            monotone=True,
            interval=intervals.clip,
            constants=("min", "max"),
        ),
        Op(
            "Linear",
            QDEPLOY,
            "x @ weight.T + bias; weight [N, K]",
            _linear,
            linear,
            interval=intervals.layer,
            weights=((1, 2),),
        ),
        Op(
            "SkipNorm",
            QDEPLOY,
            "s = x + skip; gives norm(s) and s; kind rms or layer",
            _skip_norm,
            skip_norm,
            choices={"kind": ("rms", "layer")},
        ),
        Op(
            "GatedMlp",
            QDEPLOY,
            "Linear(act(Linear(x, gate)) * Linear(x, up), down), each with its bias where it is there",
            _gated_mlp,
            gated_mlp,
            choices=ACTIVATION_CHOICES,
            weights=((1, 4), (2, 5), (3, 6)),
        ),
        Op(
            "XIELU",
            QDEPLOY,
            "positive x^2 above 0, negative (exp(min(x, least)) - 1 - x) below; plus linear x",
            xielu,
            xielu_nodes,
        ),
        Op(
            "MeanPool",
            QDEPLOY,
            "mean of hidden [B, T, H] over the tokens where mask [B, T] is 1",
            _mean_pool,
            mean_pool,
        ),
        Op(
            "Positions",
            QDEPLOY,
            "I64 [T]: 0 .. T - 1 for ids [B, T]",
            _positions,
            positions,
            interval=integer_intervals.positions,
            result="I64",
        ),
        Op(
            "LastToken",
            QDEPLOY,
            "[B, H]: the vector of hidden [B, T, H] where the last 1 of mask [B, T] stands",
            _last_token,
            last_token,
        ),
        Op(
            "GreatestToken",
            QDEPLOY,
            "[B, H]: of each column of hidden [B, T, H] the greatest over the tokens where mask [B, T] is not 0",
            _greatest_token,
            greatest_token,
        ),
        Op(
            "TokenPositions",
            QDEPLOY,
            "I64 [B, T]: pad, plus which of the tokens it is that are not pad; pad for those that are",
            _token_positions,
            token_positions,
            result="I64",
        ),
        Op(
            "PositionsBehind",
            QDEPLOY,
            "I64 [T]: the length of a state, and on, for ids [B, T]",
            _positions_behind,
            interval=integer_intervals.positions,
            result="I64",
        ),
        Op("Attention", QDEPLOY, "rope, append to the state, attend; [B, T, heads * D]", attention),
        Op("Rotary", QDEPLOY, "heads rotated by their positions behind a state; [B, T, heads * D]", rotary),
        Op("Opaque", QDEPLOY, "an operator without a row, by domain, type and version; only ONNX passes it on", opaque),
        *MEASURE_ROWS,
        *EXPERT_ROWS,
        *HADAMARD_ROWS,
        *RECURRENT_ROWS,
        *ELEMENTWISE_ROWS,
        *SHAPE_ROWS,
        *CONV_ROWS,
        *IMAGE_ROWS,
        *SELECTION_ROWS,
        *QUANTIZED_ROWS,
        *INTEGER_ROWS,
        *TFLITE_ROWS,
    )
}
"""Every op by its name."""
