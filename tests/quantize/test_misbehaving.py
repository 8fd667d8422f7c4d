"""Quantizers of other people that misbehave: a mistake is one error that names the method; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qdeploy
from qdeploy.cli import cli
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Term, plain
from qdeploy.options import option
from qdeploy.quantize import QUANTIZERS, parse
from qdeploy.quantize.contract import Grid, Needs, QuantizerRow, Statistics, Weight

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


@dataclass(frozen=True)
class Good:
    """Every weight as it is."""

    TYPES = ()
    factor: int = option(1, "Not used.", least=1, most=9)

    @property
    def needs(self) -> Needs:
        return Needs()

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> Any:
        return weight.tensor


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = set(QUANTIZERS.rows())
    yield
    for name in set(QUANTIZERS.rows()) - before:
        QUANTIZERS.remove(name)


def add(**changed: Any) -> None:
    QUANTIZERS.add(QuantizerRow("toy", dataclass(frozen=True)(type("Changed", (Good,), changed)), "a-distribution"))


def raising(error: BaseException) -> Any:
    def fail(*arguments: Any) -> Any:
        raise error

    return fail


def half(self: Any, weight: Weight, statistics: Any, grid: Grid) -> QTensor:
    return plain(Buffer.of("data", weight.tensor.decode()[::2], "F32"), "f32")


def beyond(self: Any, weight: Weight, statistics: Any, grid: Grid) -> QTensor:
    """Codes of which the buffer holds too few."""
    shape = weight.tensor.shape
    return QTensor(
        shape, "F32", (Term(Codes(shape, (Buffer.of("codes", np.zeros((1, 1), np.uint8), "U8"),), PLAIN, "uint8")),)
    )


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"quantize": raising(KeyError("w"))}, UnsupportedError, "plug-in toy failed while it quantized"),
        ({"quantize": raising(SystemExit(0))}, UnsupportedError, "plug-in toy failed while it quantized"),
        ({"quantize": lambda *a: None}, UnsupportedError, "toy made something else of a weight"),
        ({"quantize": lambda self, weight, *a: weight.tensor.decode()}, UnsupportedError, "made something else"),
        ({"quantize": half}, UnsupportedError, "made something else of a weight"),
        ({"quantize": beyond}, BadFileError, "buffer"),
        ({"needs": property(raising(AttributeError("no")))}, UnsupportedError, "failed while it said what it needs"),
        ({"needs": None}, UnsupportedError, "does not say what it needs"),
        ({"needs": property(lambda self: Needs(levels=10**9))}, BadArgumentError, "cannot be given so many levels"),
        ({"needs": property(lambda self: Needs(streams=-1))}, BadArgumentError, "cannot be given so many streams"),
        (
            {"needs": property(lambda self: Needs(frozenset({"hessians"})))},  # type: ignore[arg-type]
            BadArgumentError,
            "no such statistics",
        ),
        ({"__post_init__": raising(ValueError("odd"))}, UnsupportedError, "failed while it was asked for"),
    ],
)
def test_a_quantizer_that_misbehaves_is_named(
    changed: dict[str, Any], kind: type[Exception], said: str, tmp_path: Path
):
    add(**changed)
    with pytest.raises(kind, match=said):
        qdeploy.convert(TINY, tmp_path / "out", to="ir", quantize="toy:only=up_proj")
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Required(Good):
    depth: int = field(kw_only=True)


@pytest.mark.parametrize("broken", [object, Good(), Required, type("Loose", (), {}), dict], ids=range(5))
def test_what_is_no_quantizer_is_refused(broken: Any):
    QUANTIZERS.add(QuantizerRow("toy", broken, "a-distribution"))
    with pytest.raises(BadArgumentError, match=r"not a qdeploy\.quantize\.contract\.Quantizer"):
        parse("toy")


@pytest.mark.parametrize("types", ["int4", ["int4"], (4,)])
def test_number_types_are_a_tuple_of_names(types: Any):
    add(TYPES=types)
    with pytest.raises(BadArgumentError, match=r"not a qdeploy\.quantize\.contract\.Quantizer"):
        parse("toy")


@pytest.mark.parametrize("name", ["skip", "only", "group", "type"])
def test_an_option_of_one_quantizer_is_none_of_all(name: str):
    body = {"__annotations__": {name: int}, name: option(1, "Means something else."), "TYPES": ("int4",)}
    QUANTIZERS.add(QuantizerRow("toy", dataclass(frozen=True)(type("Clashing", (Good,), body)), "a-distribution"))
    with pytest.raises(UnsupportedError, match="an option that all of them have"):
        parse("toy:int4")
    shown = CliRunner().invoke(cli, ["convert", "--help"])
    assert shown.exit_code == 0 and "rtn" in shown.stdout
    assert CliRunner().invoke(cli, ["formats"]).exit_code == 0


@pytest.mark.parametrize(("kind", "bits"), [("int4", 4), ("e2m1", 4), ("e4m3", 8), ("nf3", 3), ("grid", 0)])
def test_a_quantizer_is_told_its_number_type(kind: str, bits: int):
    add(TYPES=("int8", kind))
    grid = parse(f"toy:{kind}").grid
    assert (grid.type, grid.bits, grid.group) == (kind, bits, 128)
    assert parse("toy").grid.type == "int8"


def scaled(self: Any, weight: Weight, statistics: Any, grid: Grid) -> QTensor:
    """Codes whose scale comes after the sum of the terms."""
    values = weight.tensor.decode()
    codes = Codes(values.shape, (Buffer.of("codes", np.sign(values).astype(np.int8), "I8"),), PLAIN, "int8")
    one = Param(Codes((1, 1), (Buffer.of("scale", np.ones((1, 1), np.float32), "F32"),), PLAIN, "f32"), values.shape)
    return QTensor(values.shape, "F32", (Term(codes),), scale=one)


def test_codes_that_a_network_cannot_hold_are_refused(tmp_path: Path):
    """A convolution's weight is rounded as a matrix; a scale that is brought back nowhere would be lost in silence."""
    onnx = pytest.importorskip("onnx")
    weight = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 8, 6, 6])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 16, 4, 4])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    add(TYPES=("int8",), quantize=scaled)
    with pytest.raises(UnsupportedError, match="cannot round tensors of several axes") as caught:
        qdeploy.convert(tmp_path / "model.onnx", tmp_path / "out", quantize="toy:int8")
    assert caught.value.found == "toy"
