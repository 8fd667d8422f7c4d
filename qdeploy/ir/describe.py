"""A tensor's encoding in one line, and its cost in bits per weight: for tables, reports and error messages."""

from __future__ import annotations

import math

from qdeploy.ir.tensor import Codes, LowRank, Param, QTensor, Term


def encoding(tensor: QTensor) -> str:
    """For example "uint4 g128 scale f16 zero uint4", "f16", "uint4 g32 scale uint6*f16 offset uint6*f16"."""
    text = " + ".join(_term(t) for t in tensor.terms)
    return text + (" (scaled)" if tensor.scale else "")


def bits_per_weight(tensor: QTensor) -> float:
    """Stored bits per element of the parameter, scales and tables included."""
    return 8 * tensor.nbytes / max(1, math.prod(tensor.shape))


def _term(term: Term) -> str:
    text = _values(term.values)
    return f"{term.mode} {text} where mask" if term.where else text


def _values(values: Codes | LowRank) -> str:
    if isinstance(values, LowRank):
        return f"rank-{values.u.shape[-1]}"
    parts = [_table(values)]
    if values.scale and _group(values.scale, values) > 1:
        parts.append(f"g{_group(values.scale, values)}")
    for name, param in (("scale", values.scale), ("zero", values.zero), ("offset", values.offset)):
        if param is not None and not _constant(param):
            parts.append(f"{name} {_chain(param)}")
    if any(p is not None and p.index is not None for p in (values.scale, values.zero, values.offset)):
        parts.append("act-order")
    return " ".join(parts)


def _table(codes: Codes) -> str:
    if isinstance(codes.table, str):
        return codes.table
    tables, levels, *block = codes.table.values.shape
    kind = f"{tables}x{levels}" if tables > 1 else f"{levels}"
    return f"table{kind}" + (f"v{math.prod(block)}" if block else "")


def _chain(param: Param) -> str:
    values = param.values
    if isinstance(values, LowRank):
        return _values(values)
    inner = f"*{_chain(values.scale)}" if values.scale else ""
    return _table(values) + inner


def _constant(param: Param) -> bool:
    return isinstance(param.values, Codes) and math.prod(param.values.shape) == 1


def _group(param: Param, owner: Codes) -> int:
    if param.index is not None and isinstance(param.values, Codes):
        return owner.decoded_shape[-1] // max(1, param.values.decoded_shape[-1])
    return param.tile[-1] if param.tile else 0
