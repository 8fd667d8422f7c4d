"""Numbers that are none, in a model file whose checksums fit: the runtime answers, and stays within its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qdeploy.backends.native.checksum import crc32c, page_checksums
from qdeploy.backends.native.layout import Op, SectionId
from qdeploy.backends.native.reading import ModelFile
from qdeploy.errors import BadFileError

pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)

from qdeploy.native import Runtime

GOLDEN = Path(__file__).parents[1] / "golden"


def rewritten(source: Path, target: Path, edit: Callable[[ModelFile, bytearray], None]) -> None:
    """Writes a file again, changed, with the checksums that fit."""
    file, data = ModelFile(source), bytearray(source.read_bytes())
    edit(file, data)
    resident = int(file.header["resident_at"])
    pages = file.header["sections"][SectionId.PAGES]
    sums = page_checksums(np.frombuffer(bytes(data[resident:]), np.uint8))
    data[int(pages["at"]) : int(pages["at"]) + 4 * len(sums)] = np.asarray(sums, "<u4").tobytes()
    end = int(file.header["front_end"])
    data[12:16] = crc32c(bytes(data[512:end])).to_bytes(4, "little")
    data[508:512] = crc32c(bytes(data[:508])).to_bytes(4, "little")
    target.write_bytes(data)


def with_biases(source: Path, target: Path, biases: list[float]) -> None:
    """Writes the file again with other biases of the experts' scores."""

    def edit(file: ModelFile, data: bytearray) -> None:
        for node in file.section(SectionId.NODES):
            if node["op"] == Op.ROUTE:
                record = file.section(SectionId.TENSORS)[node["tensors"][0]]
                at = int(file.header["resident_at"]) + int(record["at"])
                data[at : at + int(record["bytes"])] = np.array(biases, "<f4").tobytes()

    rewritten(source, target, edit)


@pytest.mark.parametrize("tokens", [1, 3, 32])
@pytest.mark.parametrize("none", [np.nan, -np.inf])
def test_an_expert_is_chosen_once_although_all_scores_are_no_numbers(tmp_path: Path, tokens: int, none: float):
    """Else a token's group of rows is longer than the room that was planned for it."""
    with_biases(GOLDEN / "latent.qd", tmp_path / "none.qd", [none] * 4)
    with_biases(GOLDEN / "latent.qd", tmp_path / "first.qd", [4e4, 3e4, 2e4, 1e4])
    logits = []
    for name in ("none.qd", "first.qd"):
        with Runtime(tmp_path / name, threads=1, context=64) as model:
            logits.append(model.decode(list(range(tokens))))
    np.testing.assert_array_equal(*logits)


def test_a_node_that_writes_where_it_reads_is_refused(tmp_path: Path):
    def edit(file: ModelFile, data: bytearray) -> None:
        values = file.section(SectionId.VALUES).copy()
        node = next(node for node in file.section(SectionId.NODES) if node["op"] == Op.LINEAR)
        values["slot"][node["outputs"][0]] = values["slot"][node["inputs"][0]] + 1
        at = int(file.header["sections"][SectionId.VALUES]["at"])
        data[at : at + values.nbytes] = values.tobytes()

    rewritten(GOLDEN / "latent.qd", tmp_path / "overlap.qd", edit)
    with pytest.raises(BadFileError, match="it writes where it reads"):
        Runtime(tmp_path / "overlap.qd")
