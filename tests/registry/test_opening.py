"""Opening a path: only readers that can be meant are imported, and a broken plug-in costs a note."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdeploy import registry
from qdeploy.cli import main
from qdeploy.contracts.clues import PACKAGE, Clues
from qdeploy.contracts.formats import FormatRow, Looks, Sniff
from qdeploy.errors import AmbiguousError, BadArgumentError, UnsupportedError
from qdeploy.formats import BUILT_IN
from qdeploy.ir.model import Model
from qdeploy.store.folder import Folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/models"
GPTQ, FLOAT = EXAMPLES / "tiny-llama-gptq", EXAMPLES / "tiny-llama"
READERS = {"gguf", "onnx", "tflite", "networks", "package"}


def fmt(name: str, sniff: Any, read: Any = lambda folder: None) -> SimpleNamespace:
    return SimpleNamespace(NAME=name, TITLE="a toy", WRITES=False, sniff=sniff, read=read)


def opened_modules(path: Path) -> set[str]:
    code = (
        "import sys\nfrom qdeploy.cli import main\n"
        f"try: main(['inspect', {str(path)!r}, '--json'])\nexcept SystemExit as end: assert not end.code\n"
        "print('MODULES', *sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.rpartition("MODULES")[2].split())


def test_opening_a_gptq_folder_imports_no_reader_that_cannot_be_meant():
    modules = opened_modules(GPTQ)
    assert "qdeploy.formats.huggingface.gptq" in modules
    others = ("awq", "autoround", "bitstack", "safetensors")
    assert not {f"qdeploy.formats.huggingface.{name}" for name in others} & modules
    assert not {m for m in modules if m.startswith("qdeploy.formats.") and m.split(".")[2] in READERS}
    assert not {m for m in modules if m.startswith(("qdeploy.backends.", "qdeploy.quantize", "qdeploy.contracts.back"))}
    assert not {"rich", "ml_dtypes", "importlib.metadata", "onnx", "hashlib", "qdeploy.ir.decode"} & modules
    assert not {module for module in modules if module.startswith("qdeploy.ir.views")}


def test_opening_a_float_folder_imports_no_quantized_reader():
    modules = opened_modules(FLOAT)
    assert "qdeploy.formats.huggingface.safetensors" in modules
    assert not {f"qdeploy.formats.huggingface.{name}" for name in ("gptq", "awq", "autoround", "bitstack")} & modules


@pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
def test_every_row_says_what_its_checkpoints_look_like(row: FormatRow):
    assert row.looks
    assert row.name == row.load().NAME


def test_a_package_is_nothing_else(tmp_path: Path):
    shutil.copytree(GPTQ, tmp_path / "both")
    (tmp_path / "both" / PACKAGE).write_text("{}")
    result = registry.sniffing.Candidates(registry.FORMATS.rows(), Folder(tmp_path / "both"))
    assert [row.name for row in result.best()] == ["package"]


@pytest.mark.parametrize(
    ("looks", "fits"),
    [
        (Looks(), True),
        (Looks(methods=("gptq",)), True),
        (Looks(methods=("awq",)), False),
        (Looks(methods=("",)), False),
        (Looks(suffixes=(".safetensors",)), True),
        (Looks(suffixes=(".gguf",)), False),
        (Looks(files=("config.json",)), True),
        (Looks(files=("hawq.json",)), False),
        (Looks(without=("config.json",)), False),
        (Looks(keys=("model_type", "quantization_config")), True),
        (Looks(keys=("no_such_key",)), False),
        (Looks(tensors=r'\.qweight"'), True),
        (Looks(tensors=r'\.qweight_0"'), False),
        (Looks(magic=(b"GGUF",)), False),
        (Looks(methods=("gptq",), suffixes=(".gguf",)), False),
    ],
)
def test_all_conditions_of_a_row_must_be_met(looks: Looks, fits: bool):
    assert looks.fit(Clues(Folder(GPTQ))) is fits


def test_magic_and_name_of_a_single_file_are_seen(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"TOY1 and more")
    clues = Clues(Folder(tmp_path / "a.bin"))
    assert Looks(magic=(b"TOY1",)).fit(clues) and Looks(files=("a.bin",)).fit(clues)
    assert not Looks(magic=(b"TOY2",)).fit(clues)


def raising(error: BaseException) -> Any:
    def sniff(folder: Folder) -> Sniff:
        raise error

    return sniff


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_package.reader", "no_such_package"),
        (fmt("toy", raising(ZeroDivisionError("oh"))), "ZeroDivisionError: oh"),
        (fmt("toy", raising(SystemExit(3))), "SystemExit"),
        (fmt("toy", lambda folder: None), "not a Sniff"),
        (fmt("toy", lambda folder: 100), "not a Sniff"),
        (fmt("toy", lambda folder: Sniff(1000, "most surely")), "from 0 to 100"),
        (fmt("toy", lambda folder: Sniff(True, "yes")), "from 0 to 100"),
        (fmt("toy", lambda: Sniff(100)), "TypeError"),
        (SimpleNamespace(NAME="toy"), "is not a qdeploy.contracts.formats.Format"),
        (42, "is not a qdeploy.contracts.formats.Format"),
    ],
)
def test_a_broken_plugin_costs_a_note(target: Any, said: str):
    registry.add_format(FormatRow("toy", target, "a-distribution"))
    model = registry.open_model(GPTQ)
    assert model.format == "gptq"
    assert len(model.notes) == 1
    assert "toy of a-distribution" in model.notes[0] and said in model.notes[0]


@pytest.mark.parametrize("body", ["import no_such_package", "raise ValueError('oh')", "raise SystemExit(1)", "1 +"])
def test_a_plugin_whose_module_cannot_be_imported_costs_a_note(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "toy_reader_of_a_test.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("toy_reader_of_a_test", None)
    registry.add_format(FormatRow("toy", "toy_reader_of_a_test", "a-distribution"))
    assert "toy" in registry.open_model(GPTQ).notes[0]


def test_a_plugin_that_cannot_be_meant_is_not_imported_at_all():
    registry.add_format(FormatRow("toy", "no_such_package", "a-distribution", looks=(Looks(suffixes=(".toy",)),)))
    assert registry.open_model(GPTQ).notes == []


def test_a_reader_that_gives_no_model_is_named():
    registry.add_format(FormatRow("toy", fmt("toy", lambda f: Sniff(100), lambda f: "a model"), "a-distribution"))
    with pytest.raises(AmbiguousError):
        registry.open_model(GPTQ)
    with pytest.raises(UnsupportedError, match="gave no model"):
        registry.open_model(GPTQ, "toy")


def test_a_plugin_reads_what_it_claims(tmp_path: Path):
    (tmp_path / "a.toy").write_bytes(b"TOY1")
    toy = fmt("toy", lambda folder: Sniff(100, "magic"), lambda folder: Model("toy", str(folder.path), {}))
    registry.add_format(FormatRow("toy", toy, "a-distribution", looks=(Looks(magic=(b"TOY1",)),)))
    assert registry.open_model(tmp_path / "a.toy").format == "toy"
    with pytest.raises(BadArgumentError, match="there already"):
        registry.add_format(FormatRow("toy", toy, "another"))
    registry.FORMATS.remove("toy")
    with pytest.raises(UnsupportedError, match="no reader knows"):
        registry.open_model(tmp_path / "a.toy")


def test_what_was_passed_over_is_said_where_nobody_reads(tmp_path: Path):
    (tmp_path / "a.toy").write_bytes(b"TOY1")
    registry.add_format(FormatRow("toy", fmt("toy", raising(RuntimeError("half written"))), "a-distribution"))
    with pytest.raises(UnsupportedError) as caught:
        registry.open_model(tmp_path / "a.toy")
    assert "half written" in caught.value.found


def distribution(folder: Path, entry_points: str) -> None:
    info = folder / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-brand\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))


def test_entry_points_of_installed_distributions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distribution(tmp_path, "[qdeploy.formats]\ntoy = toy_reader:FORMAT\ngptq = toy_reader:FORMAT\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = registry.FORMATS.rows()
    assert (rows["toy"].origin, rows["toy"].target) == ("toy-brand", "toy_reader:FORMAT")
    assert rows["gptq"].origin == "built-in", "a plug-in shadows nothing"
    assert "toy" in registry.open_model(GPTQ).notes[0]


def test_formats_lists_a_broken_plugin_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    groups = ("formats", "backends", "quantizers")
    distribution(tmp_path, "".join(f"[qdeploy.{group}]\n{group[0]} = toy_none\n" for group in groups))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["formats"])
    assert not ended.value.code
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("not available: ") == 3 and "toy-brand" in text


def test_an_entry_point_may_name_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Then the module of the row is all that is imported of a plug-in whose checkpoints look otherwise."""
    (tmp_path / "toy_rows_of_a_test.py").write_text(
        "from qdeploy.contracts.backends import BackendRow\nfrom qdeploy.contracts.formats import FormatRow, Looks\n"
        "READ = FormatRow('toy', 'toy_none', looks=(Looks(suffixes=('.toy',)),))\n"
        "WRITE = BackendRow('toys', 'toy_none', magic=b'TOYS')\n"
    )
    distribution(
        tmp_path,
        "[qdeploy.formats]\ntoy = toy_rows_of_a_test:READ\n[qdeploy.backends]\ntoys = toy_rows_of_a_test:WRITE\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.open_model(GPTQ).notes == []
    (tmp_path / "a.toy").write_bytes(b"TOY1")
    with pytest.raises(UnsupportedError) as caught:
        registry.open_model(tmp_path / "a.toy")
    assert "toy of toy-brand was passed over" in caught.value.found and "toy_none" in caught.value.found
    (tmp_path / "a.toys").write_bytes(b"TOYS1")
    with pytest.raises(UnsupportedError, match="toy_none"):
        registry.artifact_backend(tmp_path / "a.toys")
