"""The hostile list: every attack by its name, on each reader that it applies to.

Each is refused by an error of the family that says where, without a crash, a hang or a foreign exception, in less
memory than four times the file and 100 MB; half of the refusals cost less than 100 ms of CPU beyond start-up. What is
not an attack after all (a name that is only a name) is read.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

import qdeploy
from qdeploy.calibrate.calibrate import read_data
from qdeploy.errors import BadArgumentError, QdeployError
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder
from qdeploy.store.pickled import read_torch
from tests.hostile import attacks_files as files
from tests.hostile import attacks_gguf as ggufs
from tests.hostile import attacks_graphs as graphs
from tests.hostile import attacks_safetensors as tensors
from tests.hostile.measuring import Outcome, attempt

GROWTH, BEYOND = 4, 100 << 20
MEDIAN, EACH = 0.1, 5.0
"""Seconds of CPU: of a half of the refusals at most, and of each."""

Act = Callable[[Path], object]


def convert(source: Path) -> object:
    """All that a conversion reads, checks and proves."""
    output = source.parent / "output"
    try:
        return qdeploy.convert(source, output, to="ir", check="none")
    except QdeployError:
        assert not output.exists()
        raise


def convert_to_onnx(source: Path) -> object:
    """A conversion that folds constants and runs what it wrote."""
    return qdeploy.convert(source, source.parent / "output", to="onnx")


def open_native(source: Path) -> object:
    """Opens a native file, and decodes with it."""
    from qdeploy.native import Runtime

    with Runtime(source, threads=1, context=16) as model:
        return model.decode([1])


def inspect_native(source: Path) -> object:
    """What plan and verify read of a native file."""
    from qdeploy.backends.native.reading import ModelFile

    file = ModelFile(source)
    for index in file.matrices().values():
        file.rows(index, 0, 16)
    return file.damaged_pages()


def interpret(source: Path) -> object:
    """Runs a network of integers."""
    model = qdeploy.load(source)
    return run(model.graph, _codes(model), {}, Weights(model))


def _codes(model: qdeploy.Model) -> dict[str, object]:
    from qdeploy.backends.onnx.trial import trial_codes

    return dict(trial_codes(model.graph))


def read_pickle(source: Path) -> object:
    return read_torch(Folder(source), source.name)


REFUSED: dict[str, tuple[dict[str, tensors.Build], Act]] = {
    "safetensors": (tensors.SAFETENSORS, convert),
    "gptq": (tensors.GPTQ_LAYERS, convert),
    "folder": (tensors.INDEXES, convert),
    "gguf": (ggufs.GGUF, convert),
    "onnx": (graphs.ONNX, convert),
    "tflite": (graphs.TFLITE, convert),
    "package": (files.PACKAGE, convert),
    "integers": (files.NETWORK, interpret),
    "native": (files.NATIVE, open_native),
    "native-in-numpy": (files.NATIVE, inspect_native),
    "npz": (files.ARCHIVE, lambda path: read_data(str(path))),
    "pickle": (files.PICKLE, read_pickle),
}
READ: dict[str, tuple[dict[str, tensors.Build], Act]] = {
    "safetensors": (tensors.HARMLESS, convert),
    "gptq": (tensors.SCALES, convert),
    "gguf": (ggufs.GGUF_HARMLESS, convert),
    "pickle": (files.PICKLE_HARMLESS, read_pickle),
}
SURVIVED: dict[str, tuple[dict[str, tensors.Build], Act]] = {"onnx": (graphs.ONNX_HARMLESS, convert_to_onnx)}
"""Bombs in constants: carried as they are, or refused; never evaluated."""

_outcomes: dict[tuple[str, str], Outcome] = {}


def outcome(reader: str, attack: str, work: Path, group: dict[str, tuple[dict[str, tensors.Build], Act]]) -> Outcome:
    """What becomes of an attack; each is tried once."""
    if (reader, attack) not in _outcomes:
        builds, act = group[reader]
        folder = work / f"{reader}-{len(list(work.iterdir()))}"
        folder.mkdir()
        source = builds[attack](folder)
        tried = attempt(lambda: act(source))
        size = sum(f.lstat().st_size for f in folder.rglob("*")) if source.is_dir() else source.lstat().st_size
        assert tried.ours, f"{tried.kind}\n{tried.text}"
        assert tried.peak <= GROWTH * size + BEYOND, f"{tried.peak >> 20} MB for a file of {size} bytes"
        assert tried.cpu <= EACH, f"{tried.cpu:.2f} s of CPU"
        _outcomes[reader, attack] = tried
    return _outcomes[reader, attack]


def named(group: dict[str, tuple[dict[str, tensors.Build], Act]]) -> list[tuple[str, str]]:
    return [(reader, attack) for reader, (builds, _) in group.items() for attack in builds]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of the attacks are made; all readers are imported before anything is measured."""
    folder = tmp_path_factory.mktemp("attacks")
    for source in (tensors.GPTQ, files._packages() / "n.tflite"):
        qdeploy.convert(source, folder / f"warm-{source.name}", to="onnx", check="none")
    with contextlib.suppress(QdeployError):
        qdeploy.load(ggufs.GGUF["empty"](folder))
    (folder / "secret.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(("reader", "attack"), named(REFUSED), ids=lambda value: value.replace(" ", "-"))
def test_an_attack_is_refused(reader: str, attack: str, work: Path):
    tried = outcome(reader, attack, work, REFUSED)
    assert tried.kind != "read", "it was read"
    assert len(tried.text.splitlines()) <= 3 and len(tried.text) < 8000
    assert tried.text.replace("\n", "").isprintable()


@pytest.mark.parametrize(("reader", "attack"), named(READ), ids=lambda value: value.replace(" ", "-"))
def test_what_is_only_a_name_or_a_number_is_read(reader: str, attack: str, work: Path):
    tried = outcome(reader, attack, work, READ)
    assert tried.kind == "read", tried.text
    assert not Path("/tmp/slipped").exists()


@pytest.mark.parametrize(("reader", "attack"), named(SURVIVED), ids=lambda value: value.replace(" ", "-"))
def test_a_bomb_is_carried_or_refused_and_never_goes_off(reader: str, attack: str, work: Path):
    outcome(reader, attack, work, SURVIVED)


def test_half_of_the_refusals_cost_less_than_a_tenth_of_a_second(work: Path):
    for reader, attack in named(REFUSED):
        outcome(reader, attack, work, REFUSED)
    seconds = [_outcomes[key].cpu for key in named(REFUSED)]
    assert len(seconds) >= 150
    assert statistics.median(seconds) < MEDIAN, f"median {statistics.median(seconds):.3f} s"


@pytest.mark.parametrize("size", [0, -1, -5, 1 << 70, 1, "1B"])
def test_budgets_that_cannot_be_are_refused(size: int | str):
    from qdeploy.native import Runtime, UnderFloorError

    path = tensors.ROOT / "tests/golden/decoder-elastic.qd"
    if size == 0:  # no limit
        Runtime(path, threads=1, context=16, memory=size).close()
        return
    with pytest.raises(BadArgumentError) as caught:
        Runtime(path, threads=1, context=16, memory=size)
    assert isinstance(caught.value, UnderFloorError) == (size in (1, "1B"))


def test_nothing_is_left_beside_an_attack(work: Path):
    for reader, attack in named(REFUSED)[:60]:
        outcome(reader, attack, work, REFUSED)
    assert not [name for name in os.listdir(work) if name.startswith(".qdeploy")]
