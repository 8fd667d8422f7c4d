"""One attack per rule: each description or datum that contradicts itself is refused, by name, before it is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Rung, Table, Term
from qdeploy.pack import bits, planes

Array = npt.NDArray[Any]
N, K = 8, 32


def floats(key: str, *shape: int, value: float = 0.5) -> Codes:
    return Codes(shape, (Buffer.of(key, np.full(shape, value, np.float32), "F32"),), PLAIN, "f32")


def octets(key: str, *shape: int, value: int = 1) -> Buffer:
    return Buffer.of(key, np.full(shape, value, np.uint8), "U8")


def scaled(**changes: Any) -> Codes:
    """A legal grid of 4-bit codes with a scale per 16 columns."""
    legal = Codes(
        (N, K), (octets("codes", N, K // 2),), Layout("bits", 4), "uint4", scale=Param(floats("scale", N, 2), (1, 16))
    )
    return replace(legal, **changes)


def tensor(codes: Codes | LowRank, **rest: Any) -> QTensor:
    return QTensor((N, K), "F16", (Term(codes),), **rest)


def table(*shape: int, select: Param | None = None) -> Table:
    return Table(Buffer.of("table", np.ones(shape, np.float32), "F32"), select)


def index(*values: int, key: str = "index") -> Buffer:
    return Buffer.of(key, np.array(values, np.int32), "I32")


def nested(depth: int) -> Param:
    codes = floats("p0", 1, 1)
    for i in range(1, depth):
        codes = replace(floats(f"p{i}", 1, 1), scale=Param(codes, (1, 1)))
    return Param(codes, (N, K))


def masked(mask: Array, *, selected: int, **changes: Any) -> QTensor:
    where = Codes(mask.shape, (Buffer.of("mask", bits.pack(mask, 1), "U8"),), Layout("bits", 1), "uint1")
    run = Codes((N, K), (octets("run", selected),), PLAIN, "uint8")
    return QTensor((N, K), "F16", (Term(replace(run, **changes), where),))


def planar(*rungs: Rung) -> QTensor:
    data = tuple(Buffer.of(f"plane{i}", p, "U8") for i, p in enumerate(planes.pack(np.zeros((N, K), np.uint8), 3)))
    return tensor(Codes((N, K), data, Layout("planes", 3), "uint3"), rungs=rungs)


def refused(bad: QTensor, what: str) -> None:
    with pytest.raises(BadFileError, match=what) as caught:
        rules.check(bad, "layer.weight")
    assert caught.value.where.startswith("layer.weight")
    with pytest.raises(BadFileError, match=what):  # and decoding does not begin
        bad.decode()


STRUCTURE: dict[str, tuple[Callable[[], QTensor], str]] = {
    "no term": (lambda: QTensor((N, K), "F16", ()), "without a term"),
    "too many axes": (lambda: QTensor((1,) * 9, "F16", (Term(floats("w", 1)),)), "out of bounds"),
    "a product that overflows": (lambda: QTensor((1 << 40, 1 << 40), "F16", (Term(floats("w", 1)),)), "out of bounds"),
    "a negative extent": (lambda: QTensor((-N, K), "F16", (Term(floats("w", 1)),)), "out of bounds"),
    "one name for two buffers": (
        lambda: tensor(scaled(scale=Param(floats("codes", N, 2), (1, 16)))),
        "two buffers with one name",
    ),
    "a grid smaller than its tensor": (lambda: tensor(floats("w", N, K - 1)), "smaller than its tensor"),
    "a grid without axes": (lambda: tensor(Codes((), (octets("c", 1),), PLAIN, "uint8")), "do not fit the grid"),
    "codes of no bits": (lambda: tensor(scaled(layout=Layout("bits", 0))), "no codes can have"),
    "codes of 17 bits": (lambda: tensor(scaled(layout=Layout("bits", 17))), "no codes can have"),
    "a radix that no byte holds": (lambda: tensor(scaled(layout=Layout("radix", base=3, digits=6))), "no codes can"),
    "a radix of one": (lambda: tensor(scaled(layout=Layout("radix", base=1, digits=5))), "no codes can have"),
    "an unheard-of layout": (lambda: tensor(scaled(layout=Layout("words", 4))), "no codes can have"),  # type: ignore[arg-type]
    "no buffer": (lambda: tensor(scaled(data=())), "another number of buffers"),
    "a plane too few": (lambda: tensor(scaled(layout=Layout("planes", 2))), "another number of buffers"),
    "packed codes that are no bytes": (
        lambda: tensor(scaled(data=(Buffer.of("c", np.ones((N, K // 2), np.int8), "I8"),))),
        "are bytes",
    ),
    "a short run": (lambda: tensor(scaled(data=(octets("c", N, K // 2 - 1),))), "shape of its grid"),
    "a missing row": (lambda: tensor(scaled(data=(octets("c", N - 1, K // 2),))), "shape of its grid"),
    "a wide format in bytes": (lambda: tensor(Codes((N, K), (octets("c", N, K),), PLAIN, "f16")), "another width"),
    "a table without entries": (lambda: tensor(scaled(table=table(1, 0))), "without entries"),
    "a table of one axis": (lambda: tensor(scaled(table=table(16))), "without entries"),
    "blocks of another rank": (lambda: tensor(scaled(table=table(1, 16, 4))), "do not fit the grid"),
    "a group of zero": (lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, 0)))), "positive extent"),
    "a negative group": (lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, -16)))), "positive extent"),
    "a tile of another rank": (lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (16,)))), "positive extent"),
    "too few scales": (lambda: tensor(scaled(scale=Param(floats("scale", N, 1), (1, 16)))), "does not cover"),
    "too many scales": (lambda: tensor(scaled(scale=Param(floats("scale", N, 3), (1, 16)))), "does not cover"),
    "an index that is too short": (
        lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, 1), index(0, 1)))),
        "one per column",
    ),
    "an index over groups": (
        lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, 16), index(*[0] * K)))),
        "one per column",
    ),
    "a zero that divides": (
        lambda: tensor(scaled(zero=Param(floats("zero", 1, 1), (N, K), divide=True))),
        "only a scale",
    ),
    "params within params without end": (lambda: tensor(scaled(scale=nested(6))), "too deep"),
    "factors that do not fit": (lambda: tensor(LowRank(floats("u", N, 3), floats("vt", 2, K))), "do not fit"),
    "factors that are no matrices": (lambda: tensor(LowRank(floats("u", N), floats("vt", 2, K))), "do not fit"),
    "a selection of floats": (
        lambda: tensor(scaled(table=table(2, 16, select=Param(replace(floats("s", 1, 1), scale=nested(1)), (N, K))))),
        "bare codes",
    ),
    "a mask of another shape": (lambda: masked(np.ones((N, K // 2), bool), selected=1), "neither the grid nor"),
    "a mask that is no bits": (
        lambda: QTensor((N, K), "F16", (Term(floats("w", N * K), scaled(scale=None)),)),
        "not made of bits",
    ),
    "selected codes in rows": (
        lambda: masked(np.ones((N, K), bool), selected=1, data=(octets("run", N, K),)),
        "one run",
    ),
    "more elements than bytes can mean": (
        lambda: QTensor((1 << 40, 8), "F32", masked(np.zeros((1, 8), bool), selected=0, shape=(1 << 40, 8)).terms),
        "far more elements than bytes",
    ),
    "a rung with too many planes": (lambda: planar(Rung((4,))), "not a step of a ladder"),
    "a rung that goes down": (lambda: planar(Rung((2,)), Rung((1,)), Rung((3,))), "not a step of a ladder"),
    "a ladder that stops short": (lambda: planar(Rung((2,))), "not the complete form"),
    "a rung for two terms": (lambda: planar(Rung((2, 1)), Rung((3,))), "not a step of a ladder"),
    "a rung with foreign planes": (
        lambda: planar(Rung((1,), planar().terms), Rung((3,))),
        "does not read the planes",
    ),
}


@pytest.mark.parametrize("attack", STRUCTURE)
def test_a_description_that_contradicts_itself_is_refused(attack: str) -> None:
    make, what = STRUCTURE[attack]
    refused(make(), what)


@pytest.mark.parametrize("bad", [scaled(table="int9"), scaled(data=(Buffer("c", "F4", (N, K), octets("c", 1).rows),))])
def test_what_is_unknown_is_refused_by_name(bad: Codes) -> None:
    with pytest.raises(UnsupportedError, match="unknown"):
        rules.check(tensor(bad), "w")


def test_what_is_legal_passes() -> None:
    for legal in (tensor(scaled()), planar(Rung((0,)), Rung((2,)), Rung((3,))), tensor(scaled(scale=nested(4)))):
        rules.check(legal, "w")
        rules.check_values(legal, "w")


def with_scale(*at: int, value: float) -> Codes:
    numbers = np.ones((N, 2), np.float32)
    numbers[at] = value
    return Codes((N, 2), (Buffer.of("scale", numbers, "F32"),), PLAIN, "f32")


VALUES: dict[str, tuple[Callable[[], QTensor], str, str]] = {
    "a code above its format": (
        lambda: tensor(Codes((N, K), (octets("c", N, K, value=16),), PLAIN, "uint4")),
        "a code is out of range",
        "w: term 0[0, 0]",
    ),
    "a code above its table": (
        lambda: tensor(scaled(table=table(1, 9), data=(octets("c", N, K // 2, value=0x90),), scale=None)),
        "a code is out of range",
        "w: term 0[0, 1]",
    ),
    "a table that is not there": (
        lambda: tensor(
            scaled(
                table=table(2, 16, select=Param(Codes((1, 1), (octets("s", 1, 1, value=2),), PLAIN, "uint8"), (N, K)))
            )
        ),
        "a code is out of range",
        "w: term 0.select[0, 0]",
    ),
    "a byte that is no trits": (
        lambda: tensor(Codes((N, K), (octets("c", N, 7, value=243),), Layout("radix", base=3, digits=5), "ternary")),
        "not 5 digits of base 3",
        "w: term 0[0, 0]",
    ),
    "a column index out of range": (
        lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, 1), index(*[1] * 30, 2, 0)))),
        "a column index is out of range",
        "w: term 0.scale[30]",
    ),
    "a negative column index": (
        lambda: tensor(scaled(scale=Param(floats("scale", N, 2), (1, 1), index(*[1] * 31, -1)))),
        "a column index is out of range",
        "w: term 0.scale[31]",
    ),
    "a mask for more codes than there are": (
        lambda: masked(np.eye(N, K, dtype=bool), selected=N - 1),
        "another number of codes",
        "w: run",
    ),
    "a mask for fewer codes than there are": (
        lambda: masked(np.eye(N, K, dtype=bool), selected=N + 1),
        "another number of codes",
        "w: run",
    ),
}


@pytest.mark.parametrize("attack", VALUES)
def test_data_that_points_outside_is_refused_by_rule_and_by_decoding(attack: str) -> None:
    make, what, where = VALUES[attack]
    bad = make()
    rules.check(bad, "w")
    with pytest.raises(BadFileError, match=what) as caught:
        rules.check_values(bad, "w")
    assert caught.value.where == where
    if "byte" not in what and "digits" not in what:
        with pytest.raises(BadFileError):
            bad.decode()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("role", ["zero", "scale", "offset"])
def test_a_param_that_is_not_finite_is_refused_with_its_position(role: str, value: float) -> None:
    bad = tensor(replace(scaled(), **{role: Param(with_scale(3, 1, value=value), (1, 16))}))
    rules.check(bad, "w")
    with pytest.raises(BadFileError, match=f"{role} is not finite") as caught:
        rules.check_values(bad, "w")
    assert caught.value.where == f"w: term 0.{role}[3, 1]"


def test_a_low_rank_scale_is_judged_by_its_factors() -> None:
    scale = Param(LowRank(floats("u", N, 1, value=np.nan), floats("vt", 1, K)), (1, 1))
    with pytest.raises(BadFileError, match="scale is not finite"):
        rules.check_values(tensor(scaled(scale=scale)), "w")


def test_a_nested_scale_is_judged_where_it_stands() -> None:
    inner = Param(floats("inner", 1, 1, value=np.inf), (N, 2), divide=True)
    scale = Param(replace(floats("scale", N, 2), scale=inner), (1, 16))
    with pytest.raises(BadFileError, match="scale is not finite") as caught:
        rules.check_values(tensor(scaled(scale=scale)), "w")
    assert caught.value.where == "w: term 0.scale.scale[0, 0]"


def test_float_weights_may_hold_anything() -> None:
    rules.check_values(tensor(floats("w", N, K, value=np.nan)), "w")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_decoding_noise_ends_in_an_error_of_the_family(seed: int) -> None:
    """Random descriptions over random bytes: whatever they say, nothing else than numbers or a refusal comes out."""
    rng = np.random.default_rng(seed)

    def number(*choices: int) -> int:
        return int(rng.choice(choices))

    def shape() -> tuple[int, ...]:
        return tuple(number(0, 1, 2, 8, 8, 32) for _ in range(number(0, 1, 2, 2, 2, 3)))

    def noise(*extent: int) -> Buffer:
        return Buffer.of(f"b{rng.integers(1 << 30)}", rng.integers(0, 256, extent or (1,)).astype(np.uint8), "U8")

    def param(depth: int) -> Param:
        where = index(*rng.integers(-2, 9, number(8, 32)).tolist()) if number(0, 0, 1) else None
        return Param(codes(depth - 1), shape(), where, bool(number(0, 1)))

    def codes(depth: int) -> Codes:
        grid = shape() if number(0, 1) else (8, 8)
        layout = Layout(
            str(rng.choice(["plain", "bits", "planes", "radix"])),
            number(0, 1, 3, 8, 20),
            number(0, 3),  # type: ignore[arg-type]
            number(0, 5),
        )
        entries: str | Table = str(rng.choice(["uint8", "int4", "e2m1", "sign", "f16"]))
        if number(0, 0, 1):
            entries = Table(noise(*shape()), param(depth) if depth and number(0, 1) else None)
        rest = {k: param(depth) for k in ("zero", "scale", "offset") if depth and number(0, 0, 1)}
        data = tuple(noise(*(shape() if number(0, 1) else (8, number(1, 3, 8)))) for _ in range(number(0, 1, 1, 3)))
        return Codes(grid, data, layout, entries, **rest)

    def term() -> Term:
        values: Codes | LowRank = LowRank(codes(0), codes(0)) if number(0, 0, 0, 1) else codes(2)
        return Term(values, codes(0) if number(0, 0, 1) else None)

    drawn = QTensor(
        shape(), "F32", tuple(term() for _ in range(number(0, 1, 1, 2))), scale=param(1) if number(0, 0, 1) else None
    )
    try:
        drawn.decode()
        rules.check_values(drawn, "w")
    except QdeployError:
        return
