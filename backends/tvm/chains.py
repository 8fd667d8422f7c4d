"""Planning of elementwise nodes: they join the open step of their input, or make a kernel of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qdeploy.backends.tvm.packing import spread
from qdeploy.backends.tvm.planner import Chain, Open, Place, Planner, integer
from qdeploy.errors import UnsupportedError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array

UNIT = 33
"""The least shift of the narrow form (arithmetic.py), and that of a multiplier of padding, which is 0."""


def plan_requantize(planner: Planner, node: Node) -> None:
    """Requantize."""
    m, e = (planner.constant(name) for name in node.inputs[1:3])
    if m is None or e is None:
        raise UnsupportedError("factors that the network computes", where=node.name or node.outputs[0])
    step = _joinable(planner, node, (m.size > 1 and len(planner.shapes[node.inputs[0]])) or 0)
    axis = -1
    if m.size > 1 or e.size > 1:
        axis = _axis(step, integer(node, "axis", 1))
    extent, attrs = step.shape[axis], node.attrs
    rounding, zero, left = str(attrs.get("rounding", "half_up")), integer(node, "x_zero"), integer(node, "left_shift")
    more = max(0, UNIT - int(e.min(initial=UNIT)))
    bound = _largest_magnitude(
        planner, step.chain, step, 31 if step.kind != "elementwise" else _bits(planner, step.inputs[0])
    )
    narrow = rounding == "half_up" and (left + more + abs(zero) == 0 or (bound + abs(zero)) << (left + more) < 1 << 31)
    if narrow:
        e, left = e + np.int32(more), left + more
    link: dict[str, Any] = {
        "op": "requantize",
        "m": _operand(planner, step, spread(m, extent, 0)),
        "axis": axis % len(step.shape),
        "e": _operand(planner, step, spread(e, extent, UNIT)),
        "rounding": rounding,
        "lo": integer(node, "lo"),
        "hi": integer(node, "hi"),
        "zero": integer(node, "zero"),
        "x_zero": zero,
        "left_shift": left,
        "narrow": narrow,
        "dtype": element_dtype(str(attrs["dtype"])).name,
    }
    _join(planner, node, step, link, link["dtype"])


def _largest_magnitude(planner: Planner, chain: Chain, step: Open, bits: int) -> int:
    """The greatest magnitude of what a chain makes of a number of so many bits, as far as its links limit it."""
    value = 1 << bits
    for link in chain:
        if link["op"] in ("requantize", "clip"):
            limit = max(abs(link["lo"]), abs(link["hi"]))
            value = limit if link["op"] == "requantize" else min(value, limit)
        elif link["op"] == "add":
            value += _largest_magnitude(planner, link["chain"], step, _bits(planner, step.inputs[link["other"]]))
        else:
            value = 1 << 31
    return min(value, 1 << 31)


def _bits(planner: Planner, buffer: str) -> int:
    """How many bits a magnitude in a buffer has at most."""
    return {1: 8, 2: 16}.get(np.dtype(planner.program.operand(buffer).dtype).itemsize, 31)


def plan_clip(planner: Planner, node: Node) -> None:
    """Relu and Clip."""
    low = 0 if node.op == "Relu" else node.attrs.get("min")
    high = None if node.op == "Relu" else node.attrs.get("max")
    step = planner.opened(node.inputs[0])
    limits = np.iinfo(step.dtype)
    lo = int(limits.min) if low is None else max(int(limits.min), math.ceil(low))  # type: ignore[arg-type]
    hi = int(limits.max) if high is None else min(int(limits.max), math.floor(high))  # type: ignore[arg-type]
    _join(planner, node, step, {"op": "clip", "lo": lo, "hi": hi}, step.dtype)


def plan_lookup(planner: Planner, node: Node) -> None:
    """Lookup."""
    table = planner.constant(node.inputs[1])
    if table is None:
        raise UnsupportedError("a table that the network computes", where=node.name or node.outputs[0])
    step = planner.opened(node.inputs[0])
    link = {
        "op": "lookup",
        "table": _operand(planner, step, table),
        "base": int(np.iinfo(step.dtype).min),
        "dtype": table.dtype.name,
    }
    _join(planner, node, step, link, table.dtype.name)


def plan_function(planner: Planner, node: Node) -> None:
    """IntegerExp and IntegerGelu: functions of one number with constants as attributes."""
    step = planner.opened(node.inputs[0])
    link = {"op": node.op, **{name: int(value) for name, value in node.attrs.items()}}  # type: ignore[arg-type]
    _join(planner, node, step, link, planner.dtypes[node.outputs[0]])


def plan_binary(planner: Planner, node: Node) -> None:
    """IntegerAdd and IntegerMul."""
    main, other = _order(planner, node)
    shape = planner.shapes[node.outputs[0]]
    zeros = {name: integer(node, name) for name in ("a_zero", "b_zero")}
    if main != node.inputs[0]:
        zeros = {"a_zero": zeros["b_zero"], "b_zero": zeros["a_zero"]}
    step = planner.opened(main)
    if step.place.shape != shape:  # the greater operand is the other one, or both are broadcast
        planner.plain(main)
        step = planner.opened(main)
        step.shape = step.final = shape
        step.place = Place("", shape)
    name, chain = _other(planner, step, other)
    step.inputs.append(name)
    at = len(step.inputs) - 1
    for link in chain:
        moved = [key for key in ("m", "e", "table") if key in link]
        link.update({key: _operand(planner, step, planner.program.constants[link[key]]) for key in moved})
    op = "add" if node.op == "IntegerAdd" else "mul"
    _join(planner, node, step, {"op": op, "other": at, "chain": chain, **zeros}, "int32")


def _order(planner: Planner, node: Node) -> tuple[str, str]:
    """Which operand's step goes on: one that accumulates, and of two the later one."""
    a, b = node.inputs
    shape = planner.shapes[node.outputs[0]]
    first, second = planner.open(a), planner.open(b)
    rank = [
        (step is not None and step.kind != "elementwise" and a != b, _shape(planner, name) == shape)
        for name, step in ((a, first), (b, second))
    ]
    return (b, a) if rank[1] > rank[0] or (rank[1] == rank[0] and rank[1][0]) else (a, b)


def _shape(planner: Planner, name: str) -> tuple[int, ...]:
    array = planner.constant(name)
    return planner.shapes[name] if array is None else array.shape


def _other(planner: Planner, step: Open, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The other operand in the layout of a step: a buffer, and the chain that is applied to what is read of it.

    Operands of the chain are given by name here.
    """
    array = planner.constant(name)
    if array is not None:
        return _constant(planner, step, array), []
    pending = planner.open(name)
    chain: list[dict[str, Any]] = []
    if (
        _simple(pending)
        and pending is not None
        and pending.place.last == step.place.last
        and (pending.place.shape == step.place.shape and pending.final == step.final)
    ):
        chain = [
            {**link, **{key: pending.inputs[link[key]] for key in ("m", "e", "table") if key in link}}
            for link in pending.chain
        ]
        for link in chain:
            link["axis"] = link.get("axis", 0) + len(step.shape) - len(pending.shape)
        return planner.view(pending.inputs[0], step.shape), chain
    place = planner.place(name)
    if step.place.shape == place.shape:
        buffer = planner.operand(place)
        if place.last == step.place.last and buffer.shape == step.final:
            return planner.view(place.buffer, step.shape), []
        return planner.view(_alike(planner, name, step), step.shape), []
    if step.place.last or step.final != step.place.shape:
        raise UnsupportedError("an operand that is broadcast over channels", where=name)
    return planner.plain(name).buffer, []


def _alike(planner: Planner, name: str, step: Open) -> str:
    """A value in the layout of another."""
    if step.place.last and step.final[-1] == -(-step.place.shape[1] // 4) * 4:
        return planner.channels_last(name).buffer
    source = planner.plain(name)
    dtype = planner.operand(source).dtype
    return planner.step("to_last" if step.place.last else "to_padded", [source.buffer], {}, step.final, dtype)


def _simple(pending: Open | None) -> bool:
    """Whether an open step is a chain over one buffer that reads nothing else but parameters."""
    return (
        pending is not None
        and pending.kind == "elementwise"
        and all(link["op"] in ("requantize", "clip") for link in pending.chain)
    )


def _constant(planner: Planner, step: Open, array: Array) -> str:
    """A constant operand in the layout of a step, of its rank; what is broadcast keeps extent 1."""
    rank = len(step.place.shape)
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if step.place.last:
        full = np.moveaxis(full, 1, -1)
    room = [(0, have - n) if n != 1 else (0, 0) for n, have in zip(full.shape, step.final, strict=True)]
    full = np.pad(full, room)
    if step.shape != step.final:  # a linear layer, [1, 1, rows, channels], or an image of one row
        single = all(n == 1 for n in full.shape[:-1])
        rows = full if single else np.broadcast_to(full, (*step.final[:-1], full.shape[-1]))
        full = rows.reshape(*([1] * (len(step.shape) - 1) if single else step.shape[:-1]), full.shape[-1])
    return planner.data(full.astype(np.int32))


def _operand(planner: Planner, step: Open, array: Array) -> int:
    name = planner.data(array)
    if name not in step.inputs:
        step.inputs.append(name)
    return step.inputs.index(name)


def _joinable(planner: Planner, node: Node, rank: int) -> Open:
    """The open step of a node's input; closed first where its layout has another axis than the node names."""
    step = planner.opened(node.inputs[0])
    viewed = step.final != step.shape
    if rank and viewed and step.place.axis(integer(node, "axis", 1)) != rank - 1:
        planner.place(node.inputs[0])
        planner.plain(node.inputs[0])
        step = planner.opened(node.inputs[0])
    return step


def _axis(step: Open, axis: int) -> int:
    """The axis of a step's output of an axis of its value."""
    return len(step.shape) - 1 if step.final != step.shape else step.place.axis(axis)


def _join(planner: Planner, node: Node, step: Open, link: Mapping[str, Any], dtype: str) -> None:
    step.chain.append(dict(link))
    step.dtype = dtype
    planner.set(node.outputs[0], step)
