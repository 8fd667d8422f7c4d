"""A tensor's encoding in one line, and its cost in bits per weight: for tables, reports and error messages."""

from __future__ import annotations

import math

import numpy as np

from qdeploy.ir.tensor import Codes, LowRank, Param, QTensor, Term

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of NF4 (arXiv 2305.14314, appendix E)."""
_FP4 = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
_NAMED = {
    np.array(NF4, "<f4").tobytes(): "nf4",
    np.array([*_FP4, *(-n for n in _FP4)], "<f4").tobytes(): "fp4",
}
"""Tables that go by a name: NF4, and the FP4 of bitsandbytes."""


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
    if (tables, levels, *block) == (1, 16) and codes.table.values.dtype == "F32":
        named = _NAMED.get(codes.table.values.read().astype("<f4").tobytes())
        if named:
            return named
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
