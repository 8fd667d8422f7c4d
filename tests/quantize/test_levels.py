"""Statistics per level: a quantizer that asks for them is shown what the layers before have become by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdeploy
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, QTensor, Term
from qdeploy.options import option
from qdeploy.quantize import QUANTIZERS, quantize_model
from qdeploy.quantize.contract import Grid, Needs, QuantizerRow, Statistics, Weight

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"
SEEN: list[tuple[str, int, float]] = []


@dataclass(frozen=True)
class Halves:
    """Level n of a weight is the weight less 4^-n of it; each level asks for statistics of its own."""

    TYPES = ()
    calibrate: str = option("", "A text.", metavar="FILE")
    log: list[Any] = field(default_factory=lambda: SEEN, compare=False)

    @property
    def needs(self) -> Needs:
        return Needs(frozenset({"moments"}), self.calibrate, levels=2)

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        moments = statistics[-1].moments if statistics else None
        self.log.append((weight.name, len(statistics), 0.0 if moments is None else float(np.trace(moments))))
        values = weight.tensor.decode() * np.float32(1 - 0.25 ** len(statistics))
        data = Buffer.of("data", values.astype(np.float32), "F32")
        return QTensor(values.shape, "F32", (Term(Codes(values.shape, (data,), PLAIN, "f32")),))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little dog. " * 30)
    return str(path)


def test_levels_are_measured_in_order_with_what_is_there(text: str):
    QUANTIZERS.add(QuantizerRow("halves", Halves, "a test"))
    SEEN.clear()
    try:
        model = qdeploy.load(TINY)
        output = quantize_model(model, [f"halves:calibrate={text}"])
    finally:
        QUANTIZERS.remove("halves")
    first, second = ([row for row in SEEN if row[1] == level] for level in (1, 2))
    assert [name for name, _, _ in first] == [name for name, _, _ in second]
    assert len(first) == len({name for name, _, _ in first}) == 5 * 7 + 1
    size = {level: {name: trace for name, _, trace in rows} for level, rows in ((1, first), (2, second))}
    o_proj, q_proj = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    assert size[1][q_proj] == pytest.approx(size[2][q_proj]), "nothing before it is quantized"
    # values are linear in the weight of v_proj, which is 3/4 of itself at the first level and 15/16 at the second
    assert size[1][o_proj] < size[2][o_proj]
    name = "model.layers.3.mlp.up_proj.weight"
    np.testing.assert_allclose(output.tensors[name].decode(), model.tensors[name].decode() * 15 / 16, rtol=1e-6)
    assert any("2 levels" in note for note in output.notes)
