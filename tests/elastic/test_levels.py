"""Levels are the writer's: as many pieces as it makes of a tensor, whose errors are those of the file at each rung."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdeploy import registry
from qdeploy.backends.native import BACKEND
from qdeploy.backends.native.layout import SectionId
from qdeploy.backends.native.options import Options
from qdeploy.backends.native.order import BlockPlan, stack_order
from qdeploy.backends.native.reading import ModelFile
from qdeploy.backends.native.sums import lower_matrix
from qdeploy.elastic.pieces import Piece, pieces_of
from qdeploy.errors import BadArgumentError, QdeployError
from qdeploy.formats.gguf.blocks import BLOCKS
from qdeploy.ir.describe import encoding
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, ArrayRows, Buffer, Codes, Layout, Param, QTensor, Table, Term, buffers
from qdeploy.ir.views import Masked, Sum, view
from qdeploy.ir.views.levels import WHOLE, Levels, levels
from qdeploy.pack import bits as bitstream
from qdeploy.quantize.bitstack import BitStack
from qdeploy.quantize.contract import Grid, Weight
from qdeploy.quantize.nearest import Rtn
from qdeploy.quantize.sign_planes import sign_planes

CUT_GRIDS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
RNG = np.random.default_rng(5)


def block_tensor(name: str, rows: int = 32, blocks: int = 2) -> QTensor:
    """Random blocks of a GGUF type, with scales that are numbers of ordinary size."""
    block = BLOCKS[name]
    raw = np.random.default_rng(7).integers(0, 256, (rows, blocks * block.size), dtype=np.uint8)
    shape = (rows, blocks * block.elements)
    fields = dict(zip(block.keys, block.unpack(raw), strict=True))
    tensor = QTensor(shape, "F32", (Term(block.codes(shape, {k: ArrayRows(v) for k, v in fields.items()})),))
    for buffer in buffers(tensor):
        if buffer.dtype == "F16" and buffer.key in fields:
            fields[buffer.key] = RNG.uniform(0.5, 1.5, buffer.shape).astype(np.float16)
        if buffer.dtype == "F8_E8M0" and buffer.key in fields:
            fields[buffer.key] = np.full(buffer.shape, 120, np.uint8).view(fields[buffer.key].dtype)
    return QTensor(shape, "F32", (Term(block.codes(shape, {k: ArrayRows(v) for k, v in fields.items()})),))


def floats(rows: int, columns: int) -> QTensor:
    data = Buffer.of("data", RNG.standard_normal((rows, columns)).astype(np.float32), "F32")
    return QTensor((rows, columns), "F32", (Term(Codes(data.shape, (data,), PLAIN, "f32")),))


def integers(bits: int, rows: int = 32, columns: int = 96, key: str = "q") -> Codes:
    scale = Buffer.of(f"{key}.scale", RNG.uniform(0.5, 1, (rows, columns // 32)).astype(np.float32), "F32")
    codes = bitstream.pack(RNG.integers(0, 1 << bits, (rows, columns)).astype(np.uint8), bits)
    spread = Param(Codes(scale.shape, (scale,), PLAIN, "f32"), (1, 32))
    data = Buffer.of(key, codes, "U8")
    return Codes((rows, columns), (data,), Layout("bits", bits), f"int{bits}", scale=spread)


def with_outliers() -> QTensor:
    mask = np.zeros((32, 96), np.uint8)
    mask[3, 5] = mask[20, 90] = 1
    run = Buffer.of("out", np.array([7, -9], np.float32), "F32")
    where = Codes((32, 96), (Buffer.of("mask", mask, "U8"),), PLAIN, "uint1")
    outliers = Codes((32, 96), (run,), PLAIN, "f32")
    return QTensor((32, 96), "F32", (Term(integers(3)), Term(outliers, where, "add")))


def integer_table() -> QTensor:
    values = Table(Buffer.of("table", np.array([[-5, -1, 2, 6]], np.float32), "F32"))
    codes = Buffer.of("q", bitstream.pack(RNG.integers(0, 4, (32, 96)).astype(np.uint8), 2), "U8")
    return QTensor((32, 96), "F32", (Term(Codes((32, 96), (codes,), Layout("bits", 2), values)),))


def bit_stack() -> QTensor:
    return BitStack(3, 4).quantize(Weight("w", floats(64, 96)), (), Grid())


def int4() -> QTensor:
    return Rtn().quantize(Weight("w", floats(32, 96)), (), Grid(4, 32))


MADE = {
    "sum with a part that is packed whole": lambda: QTensor(
        (32, 96), "F32", (Term(integers(3, key="a")), Term(integers(4, key="b")))
    ),
    "sum of integers": lambda: QTensor((32, 96), "F32", (Term(integers(2, key="a")), Term(integers(4, key="b")))),
    "outliers": with_outliers,
    "integer table": integer_table,
    "blocks of a bit stack": bit_stack,
    "sign planes": lambda: sign_planes("w", bit_stack(), {}, group=32),
    "int4": int4,
}


def one_matrix(weight: QTensor) -> Model:
    """A network of one Linear."""
    rows, columns = weight.shape
    node = Node("Linear", ("x", "w"), ("y",), {}, "layer")
    inputs, outputs = (Value("x", "F32", ("batch", "n", columns)),), (Value("y", "F32", ("batch", "n", rows)),)
    graph = Graph(inputs, outputs, (node,), (), {}, {"kind": "encoder", "context": 8})
    return Model("made", "made", {"w": weight}, build_graph=lambda model: graph)


def agree(name: str, tensor: QTensor, layout: str) -> Levels:
    """The writer's levels, which are the pieces' too."""
    matrix = lower_matrix(name, tensor, layout)
    outputs = {max(plane, term.level) for term in matrix.terms for plane in range(term.planes)}
    pieces = pieces_of(name, tensor, matrix.levels)
    assert outputs == set(range(matrix.levels.count))
    assert len(pieces) == matrix.levels.count
    assert pieces[-1].error_after == 0
    return matrix.levels


@pytest.mark.parametrize("layout", ["elastic", "whole"])
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_type_has_as_many_pieces_as_the_writer_makes(name: str, layout: str) -> None:
    result = agree(name, block_tensor(name), layout)
    if layout == "elastic" and name in CUT_GRIDS:
        assert result.kind == "planes"
        assert result.count > 3


@pytest.mark.parametrize("layout", ["elastic", "whole"])
@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_sum_has_as_many_pieces_as_the_writer_makes(name: str, layout: str) -> None:
    result = agree(name, MADE[name](), layout)
    assert result.count > 1 or layout == "whole"
    if name.endswith("packed whole"):
        assert result.parts == ((3, 4) if layout == "elastic" else (3, 1))


def readable(root: Path) -> Iterator[Path]:
    for folder in ("checkpoints", "formats", "quantized"):
        yield from sorted(
            p for p in (root / folder).rglob("*") if p.suffix in (".gguf",) or (p / "config.json").exists()
        )


def test_every_readable_encoding_has_as_many_pieces_as_the_writer_makes(testdata) -> None:
    seen: dict[str, str] = {}
    for path in readable(testdata):
        try:
            model = registry.open_model(path, "", False)
            tensors = list(model.tensors.items())
        except QdeployError:
            continue
        for name, tensor in tensors:
            if len(tensor.shape) == 2 and tensor.shape[0] * tensor.shape[1] < 1 << 18:
                kind = f"{encoding(tensor)} {type(view(tensor)).__name__}"
                if kind not in seen:
                    seen[kind] = name
                    agree(name, tensor, "elastic")
                    agree(name, tensor, "whole")
    assert len(seen) > 30


@pytest.mark.parametrize("name", [*CUT_GRIDS, *(n for n in MADE if n not in ("blocks of a bit stack", "sign planes"))])
def test_the_error_of_a_rung_is_that_of_the_file_cut_there(name: str, tmp_path) -> None:
    tensor = MADE[name]() if name in MADE else block_tensor(name)
    BACKEND.lower(one_matrix(tensor), tmp_path, Options())
    file, want = ModelFile(tmp_path / "model.qd"), tensor.decode().astype(np.float64)
    index, rungs = file.matrices()["w"], file.section(SectionId.RUNGS)
    blocks = -(-tensor.shape[0] // 16)
    floor = int(file.header["floor_rung"])
    measured = [
        np.square(file.rows(index, 0, blocks, rung)[: len(want)] - want).sum() / np.square(want).sum()
        for rung in range(floor, len(rungs) + 1)
    ]
    predicted = [float(rung["error"]) for rung in rungs[floor - 1 :]]
    last_of_level = np.flatnonzero(np.diff([*predicted, -1.0]))
    np.testing.assert_allclose(
        np.array(predicted)[last_of_level], np.array(measured)[last_of_level], rtol=1e-4, atol=1e-12
    )
    assert measured[-1] < 1e-12 < measured[0]


def test_levels_that_are_not_the_tensors_are_refused() -> None:
    tensor = int4()
    assert levels(view(tensor)) == Levels("planes", 4)
    for cut in (Levels("planes", 3), Levels("terms", 4), Levels("planes", 4, (4,))):
        with pytest.raises(BadArgumentError, match="cut"):
            pieces_of("w", tensor, cut)
    assert pieces_of("w", tensor, WHOLE) == (Piece("w", 0, 0, tensor.nbytes, 1.0, 0.0),)


def test_blocks_of_another_number_of_levels_are_refused() -> None:
    tensor = int4()
    blocks = [BlockPlan(0, plane, 64, plane) for plane in range(3)]
    with pytest.raises(BadArgumentError, match="number of pieces"):
        stack_order([("w", tensor, Levels("planes", 4), blocks)])


def test_parts_of_a_sum_are_cut_together() -> None:
    tensor = MADE["sum of integers"]()
    seen = view(tensor)
    assert isinstance(seen, Sum)
    assert levels(seen) == Levels("planes", 4, (2, 4))
    pieces = pieces_of("w", tensor)
    assert sum(p.nbytes for p in pieces) == tensor.nbytes
    assert pieces[0].nbytes > pieces[1].nbytes > pieces[2].nbytes == pieces[3].nbytes
    masked = with_outliers()
    assert isinstance(view(masked), Masked)
    assert levels(view(masked)) == levels(view(replace(masked, terms=masked.terms[:1]))) == Levels("planes", 3)
