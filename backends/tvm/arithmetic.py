"""The arithmetic of a chain as TIR expressions: the same numbers as `ir/integer_arithmetic.py`, to the last bit.

Two habits keep TVM's simplifier from wrong conclusions. A shift by a number that is not constant is masked (`e & 63`):
of a shift that could be negative it derives wrong bounds, and folds what depends on them. Sign extension is never
written as two shifts of a narrow type, which the C target promotes to int.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qdeploy.backends.tvm.engine import tirx

Expr = Any
Link = dict[str, Any]
Read = Callable[[int], Expr]


def const(value: int, dtype: str = "int32") -> Expr:
    """A constant of a type."""
    return tirx.const(value, dtype)


def wide(x: Expr) -> Expr:
    """An expression in int64."""
    return x.astype("int64")


def limited(x: Expr, lo: int, hi: int, dtype: str = "int32") -> Expr:
    """Limited to lo..hi, where the type has room beyond them."""
    bits = int(dtype.removeprefix("int"))
    if hi < (1 << (bits - 1)) - 1:
        x = tirx.min(x, const(hi, dtype))
    return tirx.max(x, const(lo, dtype)) if lo > -(1 << (bits - 1)) else x


def apply(
    value: Expr,
    chain: Sequence[Link],
    read: Callable[[int, int], Expr],
    element: Callable[[int], Expr],
    table: Callable[[int, Expr], Expr],
) -> Expr:
    """Applies a chain to an int32 expression.

    Args:
        value: Where it begins.
        chain: Its links (planner.py).
        read: A parameter: its place among the operands, and the axis that it goes along.
        element: The element of another operand, int32.
        table: An entry of a table.
    """
    for link in chain:
        op = link["op"]
        if op == "requantize":
            value = requantized(value, read(link["m"], link["axis"]), read(link["e"], link["axis"]), link)
        elif op == "clip":
            value = limited(value, link["lo"], link["hi"])
        elif op == "lookup":
            value = table(link["table"], value - const(link["base"])).astype("int32")
        elif op in ("add", "mul"):
            other = apply(element(link["other"]), link["chain"], read, element, table)
            left, right = value - const(link["a_zero"]), other - const(link["b_zero"])  # IntegerAdd has no zeros
            value = left + right if op == "add" else left * right
        else:
            value = FUNCTIONS[op](value, link)
    return value


def requantized(x: Expr, m: Expr, e: Expr, link: Link) -> Expr:
    """Requantize, int32.

    The narrow form: numbers that fit int32 after the shift to the left, and shifts of at least 33. Then what is added
    for rounding lies in the upper half of the product, which alone matters: the rest is arithmetic in 32 bits, since
    most instruction sets have no 64-bit shift of vectors.
    """
    if link["narrow"]:
        codes = (x - const(link["x_zero"])) << const(link["left_shift"])
        high = ((wide(codes) * wide(m)) >> const(32, "int64")).astype("int32")
        half = const(1) << ((e - const(33)) & const(31))
        return limited(((high + half) >> ((e - const(32)) & const(31))) + const(link["zero"]), link["lo"], link["hi"])
    codes = (wide(x) - const(link["x_zero"], "int64")) << const(link["left_shift"], "int64")
    rounded = ROUNDINGS[link["rounding"]](codes, wide(m), wide(e)) + const(link["zero"], "int64")
    return limited(rounded, link["lo"], link["hi"], "int64").astype("int32")


def _power(e: Expr) -> Expr:
    return const(1, "int64") << (e & const(63, "int64"))


def _down(p: Expr, e: Expr) -> Expr:
    return p >> (e & const(63, "int64"))


def _half_up(x: Expr, m: Expr, e: Expr) -> Expr:
    return _down(x * m + _power(e - const(1, "int64")), e)


def _bound(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """A body that uses a value more than once: without a name for it, chains would grow exponentially."""
    name = tirx.Var("bound", "int64")
    return tirx.Let(name, value, body(name))


def _half_even(x: Expr, m: Expr, e: Expr) -> Expr:
    """floor((p + half - 1 + (floor(p / 2^e) odd)) / 2^e): what ties add is the last bit of the floor."""
    half = _power(e - const(1, "int64"))
    return _bound(x * m, lambda p: _down(p + (half - const(1, "int64")) + (_down(p, e) & const(1, "int64")), e))


def _sign(x: Expr) -> Expr:
    return tirx.Select(x < const(0, "int64"), const(-1, "int64"), const(1, "int64"))


def _half_away(x: Expr, m: Expr, e: Expr) -> Expr:
    half = _power(e - const(1, "int64"))
    return _bound(x * m, lambda p: _sign(p) * _down(_sign(p) * p + half, e))


def _tflite_double(x: Expr, m: Expr, e: Expr) -> Expr:
    zero, bits = const(0, "int64"), const(31, "int64")
    left, right = tirx.max(bits - e, zero), tirx.max(e - bits, zero)
    mask = _power(right) - const(1, "int64")

    def high(product: Expr) -> Expr:
        """Towards zero: what is below zero is raised by all bits that are dropped."""
        nudge = tirx.Select(product < zero, const((1 << 31) - (1 << 30), "int64"), const(1 << 30, "int64"))
        return (product + nudge) >> bits

    def divided_by_power(value: Expr) -> Expr:
        above = (value & mask) > ((mask >> const(1, "int64")) + (value >> const(63, "int64") & const(1, "int64")))
        return _down(value, right) + tirx.Select(above, const(1, "int64"), zero)

    return _bound(_bound((x << (left & bits)) * m, high), divided_by_power)


ROUNDINGS: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "half_up": _half_up,
    "half_even": _half_even,
    "half_away": _half_away,
    "tflite_double": _tflite_double,
}


def exponential(x: Expr, link: Link) -> Expr:
    """exp(x) for x <= 0 by I-BERT's polynomial (ir/ops/integer_functions.py): int64."""
    ln2, left = const(link["ln2"], "int64"), const(link.get("left", 0), "int64")

    def polynomial(rest: Expr) -> Expr:
        return (rest * (rest + const(link["b"], "int64")) + const(link["c"], "int64")) << left

    def reduced(down: Expr) -> Expr:
        return _bound(
            tirx.floordiv(down, ln2), lambda h: _bound(h * ln2 - down, polynomial) >> (h & const(63, "int64"))
        )

    return _bound(tirx.min(const(0, "int64") - wide(x), const(31 * link["ln2"], "int64")), reduced)


def _gelu(x: Expr, link: Link) -> Expr:
    b, c, shift = link["b"], link["c"], const(link.get("shift", 0), "int64")
    zero, top = const(0, "int64"), const(c >> link.get("shift", 0), "int64")

    def error(codes: Expr) -> Expr:
        clipped = tirx.min(_sign(codes) * codes, const(b, "int64")) - const(b, "int64")
        part = _bound(clipped, lambda r: const(c, "int64") - r * r) >> shift
        return codes * (top + tirx.Select(codes == zero, zero, _sign(codes) * part))

    return _bound(wide(x), error).astype("int32")


FUNCTIONS: dict[str, Callable[[Expr, Link], Expr]] = {
    "IntegerGelu": _gelu,
    "IntegerExp": lambda x, link: exponential(x, link).astype("int32"),
}


def divided(total: Expr, count: int | Expr, rounding: str, dtype: str) -> Expr:
    """Total / count for a positive count: floor, or halves away from zero."""
    n = const(count, dtype) if isinstance(count, int) else count
    if rounding == "floor":
        return tirx.floordiv(total, n)
    half = const(count // 2, dtype) if isinstance(count, int) else tirx.floordiv(n, const(2, dtype))
    sign = tirx.Select(total < const(0, dtype), const(-1, dtype), const(1, dtype))
    return sign * tirx.floordiv(sign * total + half, n)
