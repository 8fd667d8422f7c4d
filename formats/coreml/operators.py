"""Operators of ML programs, one function each (coremltools 9, mil/ops/defs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qdeploy.errors import UnsupportedError
from qdeploy.formats.coreml.graph import FLOATS, Network
from qdeploy.formats.coreml.program import Operation

Importer = Callable[[Network, Operation], None]


def _same(op: str, *keys: str) -> Importer:
    """An operator that ONNX has, too, over these parameters."""

    def importer(net: Network, operation: Operation) -> None:
        net.add(operation, op, [net.name(operation, key) for key in keys])

    return importer


def _linear(net: Network, operation: Operation) -> None:
    keys = ("x", "weight", "bias") if operation.inputs.get("bias") else ("x", "weight")
    net.add(operation, "Linear", [net.name(operation, key) for key in keys])


def _matmul(net: Network, operation: Operation) -> None:
    sides = []
    for key in ("x", "y"):
        name, rank = net.name(operation, key), len(net.type(operation, key).shape)
        if net.number(operation, f"transpose_{key}", 0):
            perm = [*range(rank - 2), rank - 1, rank - 2]
            name = net.add(operation, "Transpose", [name], net.fresh(operation, f"turned_{key}"), perm=perm)
        sides.append(name)
    net.add(operation, "MatMul", sides)


def _reshape(net: Network, operation: Operation) -> None:
    net.add(operation, "Reshape", [net.name(operation, "x")], shape=net.listed(operation, "shape"))


def _transpose(net: Network, operation: Operation) -> None:
    net.add(operation, "Transpose", [net.name(operation, "x")], perm=net.listed(operation, "perm"))


def _axes(op: str) -> Importer:
    """Squeeze and expand_dims."""

    def importer(net: Network, operation: Operation) -> None:
        axes = net.listed(operation, "axes")
        attrs: dict[str, Any] = {"axes": axes} if axes else {}
        net.add(operation, op, [net.name(operation, "x")], **attrs)

    return importer


def _reducer(op: str) -> Importer:
    def importer(net: Network, operation: Operation) -> None:
        keep = int(net.number(operation, "keep_dims", 0))
        attrs: dict[str, Any] = {"axes": net.listed(operation, "axes")} if operation.inputs.get("axes") else {}
        net.add(operation, op, [net.name(operation, "x")], keepdims=keep, **attrs)

    return importer


def _concat(net: Network, operation: Operation) -> None:
    if net.number(operation, "interleave", 0):
        raise UnsupportedError("parts that are joined in turn are not read", where=net.where(operation))
    net.add(operation, "Concat", net.names(operation, "values"), axis=int(net.number(operation, "axis", 0)))


def _split(net: Network, operation: Operation) -> None:
    axis, sizes = int(net.number(operation, "axis", 0)), net.listed(operation, "split_sizes")
    extent, count = net.type(operation, "x").shape[axis], len(operation.outputs)
    sizes = sizes or [extent // count] * count
    if extent < 0 or min(sizes) < 0 or sum(sizes) != extent or len(sizes) != count:
        raise UnsupportedError(
            "parts that are not known to make up the whole",
            where=net.where(operation),
            found=f"{count} parts of {'a free axis' if extent < 0 else extent}: {sizes}",
            allowed="an axis of a fixed extent",
        )
    begin = 0
    for size, (name, _) in zip(sizes, operation.outputs, strict=True):
        end = begin + size
        net.add(operation, "Slice", [net.name(operation, "x")], name, starts=[begin], ends=[end], axes=[axis])
        begin = end


def _slice(net: Network, operation: Operation) -> None:
    begin, end = net.listed(operation, "begin"), net.listed(operation, "end")
    rank = len(begin)
    stride = net.listed(operation, "stride") or [1] * rank
    masks = [net.listed(operation, key) or [0] * rank for key in ("begin_mask", "end_mask", "squeeze_mask")]
    far = 1 << 31
    starts = [(0 if s > 0 else far - 1) if m else b for b, m, s in zip(begin, masks[0], stride, strict=True)]
    ends = [(far - 1 if s > 0 else -far) if m else e for e, m, s in zip(end, masks[1], stride, strict=True)]
    dropped = [axis for axis, drop in enumerate(masks[2]) if drop]
    for axis in dropped:
        ends[axis] = starts[axis] + 1 if starts[axis] != -1 else far - 1
    x = [net.name(operation, "x")]
    window: dict[str, Any] = {"starts": starts, "ends": ends, "axes": list(range(rank)), "steps": stride}
    if not dropped:
        net.add(operation, "Slice", x, **window)
        return
    cut = net.add(operation, "Slice", x, net.fresh(operation, "cut"), **window)
    net.add(operation, "Squeeze", [cut], axes=dropped)


def _gather(net: Network, operation: Operation) -> None:
    if net.number(operation, "batch_dims", 0):
        raise UnsupportedError("a look-up within batches is not read", where=net.where(operation))
    inputs = [net.name(operation, key) for key in ("x", "indices")]
    net.add(operation, "Gather", inputs, axis=int(net.number(operation, "axis", 0)))


def _tile(net: Network, operation: Operation) -> None:
    net.add(operation, "Tile", [net.name(operation, "x"), net.integers(operation, "reps")])


def _softmax(net: Network, operation: Operation) -> None:
    net.add(operation, "Softmax", [net.name(operation, "x")], axis=int(net.number(operation, "axis", -1)))


def _rsqrt(net: Network, operation: Operation) -> None:
    x, epsilon = net.name(operation, "x"), net.number(operation, "epsilon", 1e-12)
    moved = net.add(operation, "Add", [x, net.scalar(operation, "epsilon", epsilon)], net.fresh(operation, "moved"))
    net.add(operation, "Reciprocal", [net.add(operation, "Sqrt", [moved], net.fresh(operation, "root"))])


def _silu(net: Network, operation: Operation) -> None:
    x = net.name(operation, "x")
    net.add(operation, "Mul", [x, net.add(operation, "Sigmoid", [x], net.fresh(operation, "gate"))])


def _square(net: Network, operation: Operation) -> None:
    x = net.name(operation, "x")
    net.add(operation, "Mul", [x, x])


def _gelu(net: Network, operation: Operation) -> None:
    mode = net.text(operation, "mode", "EXACT").upper()
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise UnsupportedError("this form of Gelu is not read", where=net.where(operation), found=mode)
    approximate = "none" if mode == "EXACT" else "tanh"
    net.add(operation, "Gelu", [net.name(operation, "x")], approximate=approximate)


def _clip(net: Network, operation: Operation) -> None:
    low, high = (net.number(operation, key, 0) for key in ("alpha", "beta"))
    net.add(operation, "Clip", [net.name(operation, "x")], min=low, max=high)


def _layer_norm(net: Network, operation: Operation) -> None:
    if net.listed(operation, "axes") not in ([-1], [len(net.type(operation, "x").shape) - 1]):
        raise UnsupportedError("a norm over other axes than the last is not read", where=net.where(operation))
    keys = [key for key in ("x", "gamma", "beta") if operation.inputs.get(key)]
    epsilon = net.number(operation, "epsilon", 1e-5)
    net.add(operation, "LayerNormalization", [net.name(operation, key) for key in keys], epsilon=epsilon)


def _cast(net: Network, operation: Operation) -> None:
    target = operation.outputs[0][1]
    if net.type(operation, "x").element in FLOATS and target.element in FLOATS:
        net.alias(operation, net.name(operation, "x"))
    else:
        to = net.element(target, net.where(operation))
        net.add(operation, "Cast", [net.name(operation, "x")], to=to)


def _identity(net: Network, operation: Operation) -> None:
    net.alias(operation, net.name(operation, "x"))


def _stack(net: Network, operation: Operation) -> None:
    axis = int(net.number(operation, "axis", 0))
    parts = [
        net.add(operation, "Unsqueeze", [name], net.fresh(operation, f"part{place}"), axes=[axis])
        for place, name in enumerate(net.names(operation, "values"))
    ]
    net.add(operation, "Concat", parts, axis=axis)


_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "logical_not": "Not",
    "relu": "Relu",
    "shape": "Shape",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "softplus": "Softplus",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_BINARY = {
    "add": "Add",
    "equal": "Equal",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
    "maximum": "Max",
    "minimum": "Min",
    "mul": "Mul",
    "pow": "Pow",
    "real_div": "Div",
    "sub": "Sub",
}
OPERATORS: dict[str, Importer] = {
    **{kind: _same(op, "x") for kind, op in _UNARY.items()},
    **{kind: _same(op, "x", "y") for kind, op in _BINARY.items()},
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "expand_dims": _axes("Unsqueeze"),
    "gather": _gather,
    "gelu": _gelu,
    "identity": _identity,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "reduce_max": _reducer("ReduceMax"),
    "reduce_mean": _reducer("ReduceMean"),
    "reduce_min": _reducer("ReduceMin"),
    "reduce_sum": _reducer("ReduceSum"),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select": _same("Where", "cond", "a", "b"),
    "silu": _silu,
    "slice_by_index": _slice,
    "softmax": _softmax,
    "split": _split,
    "square": _square,
    "squeeze": _axes("Squeeze"),
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
"""By the type of the operation."""
