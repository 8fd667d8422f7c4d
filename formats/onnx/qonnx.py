"""QONNX's operators (arXiv 2206.07527; brevitas and FINN export them too) as rows: quantization that stays in floats.

    Quant(x, scale, zero, bits; signed, narrow, rounding_mode)      IntQuant is another name of it
        (round(limit(x / scale + zero)) - zero) * scale; one bit with a sign: 1 where the quotient is 0 or more, else -1
        limits: signed -2^(bits - 1) [+ 1 if narrow] .. 2^(bits - 1) - 1; unsigned 0 .. 2^bits - 1 [- 1 if narrow]
    BipolarQuant(x, scale)          scale where x is not below 0, else -scale
    Trunc, version 1 (x, scale, zero, bits, bits behind; rounding_mode)
        (round(rint(x / scale + zero) / 2^(bits - bits behind)) - zero) * scale
    Trunc, version 2 (x, scale, zero, bits, scale behind, zero behind, bits behind; rounding_mode, signed, narrow)
        s = 2^rint(log2(scale behind / scale)); (round(limit(rint(x / scale + zero) / s)) - zero / s) * scale behind

Bits may be fractions, and arrays. Limits come before rounding, as in the library. What is computed at run time (scales,
zeros) is taken as it is; bits are constants, and in version 2 of Trunc both scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.ir.tensor import Array, Float32

if TYPE_CHECKING:
    from qdeploy.formats.onnx.graph import Network

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
OPERATORS = ("Quant", "IntQuant", "BipolarQuant", "Trunc")
_PLAIN = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}
_OF_SIZE = {"UP": ("Ceil", 0.0), "DOWN": ("Floor", 0.0), "HALF_UP": ("Floor", 0.5), "HALF_DOWN": ("Ceil", -0.5)}
"""Rounding of |x| + a number, with the sign of x."""
_OF_SIZE["ROUND_TO_ZERO"] = _OF_SIZE["DOWN"]


def import_quant(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """Adds rows for one of `OPERATORS`; False where they would not mean the same."""
    mode = str(attrs.get("rounding_mode", "FLOOR" if node.op_type == "Trunc" else "ROUND")).upper()
    known = {"signed", "narrow", "rounding_mode"}
    if set(attrs) - known or mode not in {*_PLAIN, *_OF_SIZE} or not node.input or any(node.output[1:]):
        return False
    return _KINDS[node.op_type](_Rows(network, node), attrs, mode)


class _Rows:
    """Rows of one node, by what they are for."""

    def __init__(self, network: Network, node: Any) -> None:
        self.network, self.inputs, self.output = network, list(node.input), node.output[0]
        self._count = 0

    def static(self, place: int) -> Float32 | None:
        """A constant input in float32; None for what is computed."""
        array = self.network.static(self.inputs[place])
        return None if array is None else np.asarray(array, np.float32)

    def value(self, place: int) -> str:
        """An input as float32."""
        name, stored = self.network.value(self.inputs[place]), self.network.stored.get(self.inputs[place])
        if stored is None or stored.dtype.element == "F32":
            return name
        return self.network.cast(name, "F32", self._name("float"))

    def add(self, op: str, *inputs: str | Array | float) -> str:
        """Adds a row over values and constants."""
        names = [x if isinstance(x, str) else self.network.constant(np.array(x, np.float32), "F32") for x in inputs]
        return self.network.add(op, names, (self._name(op.lower()),))

    def done(self, name: str) -> bool:
        """Gives the node's output."""
        self.network.add("Identity", (name,), (self.output,))
        return True

    def _name(self, label: str) -> str:
        self._count += 1
        return f"{self.output}/{label}.{self._count}"

    # ---- parts that the operators share

    def codes(self) -> str:
        """The quotient x / scale + zero; a zero of nothing but 0 is not added."""
        quotient = self.add("Div", self.value(0), self.value(1))
        return quotient if self.is_zero(2) else self.add("Add", quotient, self.value(2))

    def is_zero(self, place: int) -> bool:
        """Whether an input is a constant of nothing but 0."""
        array = self.static(place)
        return array is not None and not array.any()

    def limited(self, x: str, bits: Array, attrs: Mapping[str, Any]) -> str:
        """Within what so many bits hold."""
        least, most = limits(bits, bool(attrs.get("signed", 1)), bool(attrs.get("narrow", 0)))
        return self.add("Max", self.add("Min", x, most), least)

    def rounded(self, x: str, mode: str) -> str:
        """To whole numbers."""
        if mode in _PLAIN:
            return self.add(_PLAIN[mode], x)
        op, shift = _OF_SIZE[mode]
        size = self.add("Abs", x)
        size = self.add("Add", size, shift) if shift else size
        return self.add("Mul", self.add(op, size), self.add("Sign", x))

    def signs(self, x: str) -> str:
        """1 where x is not below 0, else -1."""
        return self.add("Where", self.add("GreaterOrEqual", x, 0.0), 1.0, -1.0)


def limits(bits: Array, signed: bool, narrow: bool) -> tuple[Float32, Float32]:
    """The least and the greatest code."""
    wide = bits.astype(np.float64)
    if signed:
        half = 2.0 ** (wide - 1)
        return (-half + narrow).astype(np.float32), (half - 1).astype(np.float32)
    return np.zeros_like(bits, np.float32), (2.0**wide - 1 - narrow).astype(np.float32)


def _quant(rows: _Rows, attrs: Mapping[str, Any], mode: str) -> bool:
    bits = rows.static(3) if len(rows.inputs) == 4 else None
    if bits is None or not bits.size or bits.min() < 1 or bits.max() > 24:
        return False
    codes = rows.codes()
    bipolar = bits.size == 1 and float(bits.reshape(())) == 1 and attrs.get("signed", 1)
    codes = rows.signs(codes) if bipolar else rows.rounded(rows.limited(codes, bits, attrs), mode)
    codes = codes if rows.is_zero(2) else rows.add("Sub", codes, rows.value(2))
    return rows.done(rows.add("Mul", codes, rows.value(1)))


def _bipolar(rows: _Rows, attrs: Mapping[str, Any], mode: str) -> bool:
    if len(rows.inputs) != 2:
        return False
    return rows.done(rows.add("Mul", rows.signs(rows.value(0)), rows.value(1)))


def _trunc(rows: _Rows, attrs: Mapping[str, Any], mode: str) -> bool:
    if len(rows.inputs) == 7:
        return _trunc_to_scale(rows, attrs, mode)
    before, behind = (rows.static(place) for place in (3, 4)) if len(rows.inputs) == 5 else (None, None)
    if before is None or behind is None:
        return False
    codes = rows.add("Div", rows.add("Round", rows.codes()), 2.0 ** (before - behind))
    codes = rows.rounded(codes, mode)
    codes = codes if rows.is_zero(2) else rows.add("Sub", codes, rows.value(2))
    return rows.done(rows.add("Mul", codes, rows.value(1)))


def _trunc_to_scale(rows: _Rows, attrs: Mapping[str, Any], mode: str) -> bool:
    scale, scale_behind, bits = (rows.static(place) for place in (1, 4, 6))
    if scale is None or scale_behind is None or bits is None or min(scale.min(), scale_behind.min()) <= 0:
        return False
    step = np.asarray(2.0 ** np.round(np.log2(scale_behind / scale)), np.float32)
    codes = rows.add("Div", rows.add("Round", rows.codes()), step)
    codes = rows.rounded(rows.limited(codes, bits, attrs), mode)
    codes = codes if rows.is_zero(2) else rows.add("Sub", codes, rows.add("Div", rows.value(2), step))
    return rows.done(rows.add("Mul", codes, rows.value(4)))


_KINDS: Mapping[str, Callable[[_Rows, Mapping[str, Any], str], bool]] = {
    "Quant": _quant,
    "IntQuant": _quant,
    "BipolarQuant": _bipolar,
    "Trunc": _trunc,
}
