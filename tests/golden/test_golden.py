"""Released files are read for ever, and give the logits that they gave, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from qdeploy.backends.native.layout import NumberKind, SectionId, TermKind
from qdeploy.backends.native.reading import ModelFile
from tests.golden.playing import played, recordings

pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)

from qdeploy.native import Runtime, isas

FILES = sorted(Path(__file__).parent.glob("*.qd"))


def recorded(path: Path) -> Mapping[str, np.ndarray]:
    return np.load(path.with_suffix(".npz"))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_released_file_gives_the_logits_that_it_gave(path: Path, isa: str):
    wanted, names = recorded(path), []
    for name, logits in recordings(path, isa, threads=1 + len(isa) % 2):
        np.testing.assert_array_equal(logits.view(np.uint32), wanted[name].view(np.uint32), err_msg=name)
        names.append(name)
    assert sorted(names) == sorted(wanted.files)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_budget_gives_the_logits_of_its_rung(path: Path):
    wanted = recorded(path)
    with Runtime(path, threads=1, context=32) as model:
        floor, ceiling = model.stats["floor"], model.stats["ceiling"]
        for part in range(5):
            model.memory = floor + (ceiling - floor) * part // 4
            model.wait()
            logits = played(model)
            np.testing.assert_array_equal(logits, wanted[f"int8-f16-{model.stats['rung']}"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_released_file_reads_back_in_python(path: Path):
    file = ModelFile(path)
    assert not file.damaged_pages()
    for matrix, record in enumerate(file.section(SectionId.MATRICES)):
        rows = file.rows(matrix, 0, -(-int(record["rows"]) // 16))
        assert rows.shape == (record["rows"], record["columns"]) and np.isfinite(rows).all()


def test_every_kind_of_term_and_number_is_in_a_released_file():
    terms = [ModelFile(path).section(SectionId.TERMS) for path in FILES]
    kinds = {int(kind) for records in terms for kind in records["kind"]}
    assert kinds == set(TermKind)
    planes = {int(p) for t in terms for k, p in zip(t["kind"], t["planes"], strict=True) if k == TermKind.PLANES}
    assert planes == set(range(1, 9))
    numbers = {int(kind) for records in terms for kind in records["element"]}
    for part in ("scale", "zero", "offset"):
        numbers |= {int(k) for t in terms for level in ("kind", "super_kind") for k in t[part][level]}
    assert numbers == set(NumberKind)
