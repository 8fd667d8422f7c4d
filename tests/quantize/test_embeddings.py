"""Embeddings are rounded to 8 bits where the target reads them by rows; notes say what stays float."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.quantize.embeddings import EMBEDDINGS

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
EMBEDDING = "model.embed_tokens.weight"


def _converted(to: str, folder: Path, *specs: str, **options: object) -> tuple[dict[str, object], str, str]:
    """The report, the encoding of the embedding, and all notes in one text."""
    report = qdeploy.convert(TINY, folder / f"out-{to}", to=to, quantize=list(specs), **options)  # type: ignore[arg-type]
    return report, report["tensors"][EMBEDDING]["encoding"], "\n".join(report["notes"])


@pytest.mark.parametrize("to", ["onnx", "native", "ir"])
def test_embeddings_have_eight_bits_where_rows_are_read(to: str, tmp_path: Path):
    report, encoding, notes = _converted(to, tmp_path, "rtn:int4")
    assert encoding == "uint8 g128 scale f16"
    assert report["tensors"][EMBEDDING]["snr_db"] > 38
    assert f"embeddings are rounded to 8 bits: {EMBEDDING} (131 kB)" in notes
    assert "skip=REGEX" in notes
    assert "only=REGEX" in notes
    assert "stays float: norms and biases" in notes


@pytest.mark.parametrize("to", ["onnx", "native", "ir"])
def test_an_output_with_rounded_embeddings_is_equal_to_its_source(to: str, tmp_path: Path):
    _converted(to, tmp_path, "rtn:int4")
    assert qdeploy.verify(TINY, tmp_path / f"out-{to}")["equal"]


def test_the_record_names_what_was_rounded(tmp_path: Path):
    report, _, _ = _converted("ir", tmp_path, "rtn:int4")
    assert report["options"]["quantize"] == ["rtn:int4", f"{EMBEDDINGS},only=^(model\\.embed_tokens\\.weight)$"]


def test_an_output_of_before_with_float_embeddings_is_still_equal(tmp_path: Path):
    """Its record names the linear layers alone, and what a record does not name is not rounded again."""
    _converted("onnx", tmp_path, "rtn:int4,skip=embed")
    record = tmp_path / "out-onnx" / "report.json"
    report = json.loads(record.read_text())
    report["options"]["quantize"] = ["rtn:int4"]
    record.write_text(json.dumps(report))
    assert qdeploy.verify(TINY, tmp_path / "out-onnx")["equal"]


def test_skip_leaves_an_embedding_float_and_the_note_says_what_quantizes_it(tmp_path: Path):
    _, encoding, notes = _converted("native", tmp_path, "rtn:int4,skip=embed")
    assert encoding == "bf16"
    assert f"stays float: {EMBEDDING} (131 kB)" in notes
    assert "only=REGEX quantizes" in notes


def test_only_rounds_an_embedding_as_it_says(tmp_path: Path):
    _, encoding, _ = _converted("native", tmp_path, "rtn:int4", "rtn:int3,group=32,only=embed_tokens")
    assert encoding.startswith("uint3 g32")


def test_methods_for_named_tensors_touch_no_other(tmp_path: Path):
    _, encoding, notes = _converted("onnx", tmp_path, "rtn:int4,only=lm_head")
    assert encoding == "bf16"
    assert "more (" in notes.partition("stays float:")[2]  # most matrices, the largest named


def test_without_quantize_nothing_is_rounded_or_said(tmp_path: Path):
    _, encoding, notes = _converted("onnx", tmp_path)
    assert encoding == "bf16"
    assert "float" not in notes


def test_a_plan_speaks_of_the_file_that_convert_would_write(tmp_path: Path):
    _converted("native", tmp_path, "rtn:int4")
    planned = qdeploy.plan(TINY, quantize="rtn:int4", threads=1)
    written = qdeploy.plan(tmp_path / "out-native", threads=1)
    assert planned["tensors"] == written["tensors"]
    assert planned["ceiling"] == written["ceiling"]


def test_rows_of_a_rounded_embedding_are_those_of_the_source_within_half_a_step(tmp_path: Path):
    _converted("ir", tmp_path, "rtn:int4,clip=none")
    source, package = qdeploy.load(TINY), qdeploy.load(tmp_path / "out-ir")
    exact, rounded = (m.tensors[EMBEDDING].decode(slice(0, 64)) for m in (source, package))
    step = np.abs(exact).reshape(64, -1, min(128, exact.shape[1])).max(-1).repeat(min(128, exact.shape[1]), -1) / 127
    assert (np.abs(exact - rounded) <= step).all()
