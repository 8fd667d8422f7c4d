"""Plug-ins that misbehave: whatever they raise, answer or are called, the user gets one error that names them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qdeploy
from qdeploy import registry
from qdeploy.catalog.rows import ADDED
from qdeploy.cli import cli
from qdeploy.contracts.backends import Backend, BackendRow
from qdeploy.contracts.formats import FormatRow, Looks, Sniff
from qdeploy.contracts.results import Choice, Lowered
from qdeploy.errors import AmbiguousError, BadArgumentError, QdeployError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer, ComputedRows, plain
from qdeploy.options import TargetOptions, option
from qdeploy.spec import options_class, target_options

GPTQ = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama-gptq"
BRAND = "a-distribution"


def reader(read: Callable[[Any], Any], name: str = "toy") -> SimpleNamespace:
    return SimpleNamespace(NAME=name, TITLE="a toy", WRITES=False, sniff=lambda f: Sniff(100, "magic"), read=read)


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise error

    return fail


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.toy").write_bytes(b"TOY1")
    return tmp_path / "a.toy"


def add_reader(read: Callable[[Any], Any], name: str = "toy") -> None:
    registry.add_format(FormatRow(name, reader(read, name), BRAND, looks=(Looks(magic=(b"TOY1",)),)))


@pytest.mark.parametrize("error", [KeyError("weights"), RecursionError("deep"), SystemExit(0), AssertionError()])
def test_a_reader_that_fails_is_named(error: BaseException, file: Path, tmp_path: Path):
    add_reader(raising(error))
    for work in (lambda: qdeploy.load(file), lambda: qdeploy.convert(file, tmp_path / "out", to="ir")):
        with pytest.raises(UnsupportedError, match="plug-in toy failed") as caught:
            work()
        assert type(error).__name__ in caught.value.what and BRAND in caught.value.where
        assert "Report it to whoever brings the plug-in" in caught.value.todo
    assert not (tmp_path / "out").exists()


def test_a_reader_that_fails_ends_with_two_and_without_a_trace(file: Path):
    add_reader(raising(KeyError("weights")))
    ended = CliRunner().invoke(cli, ["inspect", str(file)])
    assert isinstance(ended.exception, QdeployError) and ended.exception.exit_code == 2


@pytest.mark.parametrize("answer", [None, {}, "a model", Model("toys", "", {})], ids=lambda a: type(a).__name__)
def test_a_reader_that_gives_something_else_is_named(answer: Any, file: Path):
    add_reader(lambda folder: answer)
    with pytest.raises(UnsupportedError, match="reader toy gave"):
        qdeploy.load(file)


def test_tensors_that_fail_when_they_are_read_are_the_plugins(file: Path, tmp_path: Path):
    buffer = Buffer("data", "F32", (2, 2), ComputedRows(raising(IndexError("off by one"))))
    add_reader(lambda folder: Model("toy", str(folder.path), {"w": plain(buffer, "f32")}))
    with pytest.raises(UnsupportedError, match=r"plug-in toy failed while its tensors were read: IndexError: off"):
        qdeploy.convert(file, tmp_path / "out", to="ir")


def test_two_plugins_that_claim_one_file_are_both_named(file: Path):
    add_reader(raising(RuntimeError()), "toy")
    add_reader(raising(RuntimeError()), "other")
    with pytest.raises(AmbiguousError) as caught:
        qdeploy.load(file)
    assert "toy: magic" in caught.value.found and "other: magic" in caught.value.found


def test_a_row_that_a_program_adds_is_not_taken_for_a_built_in_one():
    registry.add_format(FormatRow("toy", reader(raising(RuntimeError()))))
    assert registry.FORMATS.get("toy").origin == ADDED
    registry.FORMATS.remove("toy")
    broken = SimpleNamespace(NAME="toy", TITLE="", WRITES=False, sniff=raising(RuntimeError("no")), read=min)
    registry.add_format(FormatRow("toy", broken))
    assert "RuntimeError: no" in registry.open_model(GPTQ).notes[0]


@pytest.mark.parametrize("name", ["", "two words", "a:b", "a,b", "a=b"])
def test_a_name_that_no_command_line_can_say_is_refused(name: str):
    with pytest.raises(BadArgumentError, match="not the name of a format"):
        registry.add_format(FormatRow(name, "no_such_package"))


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        (Looks(magic=(b"TOY1",)), "not a tuple of Looks"),
        ((("magic", b"TOY1"),), "not a tuple of Looks"),
        ((Looks(methods="toy"),), "wrong type"),  # type: ignore[arg-type]
        ((Looks(magic=("TOY1",)),), "wrong type"),  # type: ignore[arg-type]
        ((Looks(suffixes=(1,)),), "wrong type"),  # type: ignore[arg-type]
        ((Looks(tensors="(unclosed"),), "not a regular expression"),
        ((Looks(tensors=None),), "not a regular expression"),  # type: ignore[arg-type]
    ],
)
def test_conditions_that_mean_something_else_than_they_seem_to_are_refused(looks: Any, said: str):
    with pytest.raises(BadArgumentError, match=said):
        FormatRow("toy", "no_such_package", looks=looks)


def entry_points(folder: Path, brand: str, lines: str) -> None:
    info = folder / f"{brand}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {brand}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(lines)


def test_a_name_that_two_distributions_bring_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "toy_rows_of_two.py").write_text(
        "from qdeploy.contracts.formats import FormatRow, Looks\n"
        "ROW = FormatRow('toy', 'toy_none', looks=(Looks(suffixes=('.toy',)),))\n"
    )
    entry_points(tmp_path, "first", "[qdeploy.formats]\ntoy = toy_rows_of_two:ROW\n")
    entry_points(
        tmp_path,
        "second",
        "[qdeploy.formats]\ntoy = toy_rows_of_two:ROW\ngguf = toy_rows_of_two:ROW\n"
        "[qdeploy.backends]\nir = toy_none\n[qdeploy.quantizers]\nrtn = toy_none\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    notes = registry.open_model(GPTQ).notes
    assert len(notes) == 2 and all("its name is taken" in note for note in notes)
    listed = json.loads(CliRunner().invoke(cli, ["formats", "--json"]).stdout)
    taken = {(row["kind"], row["name"]) for row in listed if "the name is taken" in row["title"]}
    assert taken == {("read", "toy"), ("read", "gguf"), ("target", "ir"), ("quantize", "rtn")}


@dataclass(frozen=True)
class ToyOptions(TargetOptions):
    shade: str = option("dark", "Of the toy.", choices=("dark", "light"))


class Toy(Backend):
    name, title, options = "toy", "a toy", ToyOptions

    def lower(self, model: Any, folder: Path, options: TargetOptions, progress: Any = None) -> Any:
        (folder / "toy.txt").write_text("toy")
        return Lowered(("toy.txt",), (), ())

    def check(self, model: Any, folder: Path, lowered: Lowered, level: Any = "auto") -> Any:
        return []

    def compare(self, model: Any, path: str, options: TargetOptions, progress: Any = None) -> Any:
        yield "w", True, 0.0, None, ""


def add_backend(**changed: Any) -> None:
    registry.add_backend(BackendRow("toy", type("Changed", (Toy,), changed)(), BRAND))


def outside(self: Any, model: Any, folder: Path, options: Any, progress: Any = None) -> Lowered:
    (folder.parent / "outside.txt").write_text("escaped")
    return Lowered(("../outside.txt",), (), ())


def linked(self: Any, model: Any, folder: Path, options: Any, progress: Any = None) -> Lowered:
    os.symlink("/etc/hostname", folder / "toy.txt")
    return Lowered(("toy.txt",), (), ())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lower": raising(ZeroDivisionError("by nothing"))}, "failed while it wrote the output: ZeroDivisionError"),
        ({"lower": raising(SystemExit(0))}, "failed while it wrote the output: SystemExit"),
        ({"lower": lambda *a, **k: None}, "gave a wrong answer"),
        ({"lower": lambda *a, **k: Lowered((), ("w",), ())}, "gave a wrong answer"),  # type: ignore[arg-type]
        ({"lower": lambda *a, **k: Lowered((), (), (3,))}, "gave a wrong answer"),  # type: ignore[arg-type]
        ({"lower": lambda *a, **k: Lowered(("never.txt",), (), ())}, "did not write into the folder"),
        ({"lower": lambda *a, **k: Lowered(("/etc/hostname",), (), ())}, "did not write into the folder"),
        ({"lower": outside}, "did not write into the folder"),
        ({"lower": linked}, "did not write into the folder"),
        ({"check": raising(TypeError("no"))}, "failed while it checked its output"),
        ({"check": lambda *a, **k: None}, "gave a wrong answer"),
        ({"check": lambda *a, **k: [1.0]}, "gave a wrong answer"),
        ({"options": object}, "not those of a target"),
        ({"options": dict}, "not those of a target"),
        ({"options": ToyOptions()}, "not those of a target"),
        ({"file": SimpleNamespace(name="../toy.txt", recording=lambda options, record: options)}, "wrong answer"),
        ({"file": SimpleNamespace(name="toy.txt", recording=raising(KeyError("x")))}, "while it recorded"),
    ],
)
def test_a_backend_that_misbehaves_is_named_and_leaves_nothing(changed: dict[str, Any], said: str, tmp_path: Path):
    add_backend(**changed)
    with pytest.raises(UnsupportedError, match=said) as caught:
        qdeploy.convert(GPTQ, tmp_path / "out" / "toy", to="toy")
    assert BRAND in caught.value.where
    assert not (tmp_path / "out" / "toy").exists()


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        (raising(IndexError("far")), "failed while it compared its output"),
        (lambda *a, **k: None, "gave a wrong answer"),
        (lambda *a, **k: [("w", True)], "gave a wrong answer"),
        (lambda *a, **k: [("w", 1, 0.0, None, "")], "gave a wrong answer"),
        (lambda *a, **k: [], "nothing was compared"),
    ],
)
def test_what_a_comparison_cannot_mean_is_never_equal(compare: Any, said: str, tmp_path: Path):
    add_backend(compare=compare)
    qdeploy.convert(GPTQ, tmp_path / "out", to="toy")
    with pytest.raises(UnsupportedError, match=said):
        qdeploy.verify(GPTQ, tmp_path / "out")


def options(name: str, default: Any, **more: Any) -> type[TargetOptions]:
    body = {"__annotations__": {name: type(default)}, name: option(default, "Of the toy.", **more)}
    return dataclass(frozen=True)(type("Clashing", (TargetOptions,), body))


@pytest.mark.parametrize(
    "clashing",
    [
        options("quantize", ()),
        options("check", "auto"),
        options("format", ""),
        options("calibrate", ""),
        options("force", False),
        options("to", ""),
        options("shade", "", flag="json"),
        options("shade", "", flag="layout"),
        options("jobs", "many"),
    ],
    ids=lambda settings: ",".join(f"{k.name}/{k.flag}" for k in qdeploy.options.options_of(settings)),
)
def test_an_option_with_the_name_of_another_takes_only_its_own_target_away(clashing: type[TargetOptions]):
    add_backend(options=clashing)
    with pytest.raises(UnsupportedError, match="has the name of another option"):
        options_class("toy")
    assert "toy" not in target_options() and "onnx" in target_options()
    shown = CliRunner().invoke(cli, ["convert", "--help"])
    assert shown.exit_code == 0 and "--layout" in shown.stdout
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(cli, ["formats", "--json"]).stdout)}
    assert rows["toy"]["title"].startswith("not available: an option")


def test_a_target_may_share_an_option_of_the_same_type():
    add_backend(options=options("jobs", 1, least=1, most=8))
    assert options_class("toy")().jobs == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["title", "ops"])
def test_a_list_is_shown_although_one_plugin_fails(part: str):
    failing: Any = property(raising(RuntimeError("half written"))) if part == "title" else raising(RuntimeError("half"))
    add_backend(**{part: failing})
    ended = CliRunner().invoke(cli, ["formats", *(["--ops"] if part == "ops" else []), "--json"])
    assert ended.exit_code == 0
    assert "half" in ended.output and "Add" in CliRunner().invoke(cli, ["formats", "--ops"]).output


def test_packages_that_a_target_needs_are_asked_for_before_anything_is_read(tmp_path: Path):
    registry.add_backend(BackendRow("toy", Toy(), BRAND, packages=("no_such_package",)))
    with pytest.raises(UnsupportedError, match="the target toy needs a package that is not installed") as caught:
        qdeploy.convert(tmp_path / "nothing", tmp_path / "out", to="toy")
    assert "no_such_package" in caught.value.todo


def test_an_output_of_a_target_that_is_not_installed_is_named(tmp_path: Path):
    add_backend()
    qdeploy.convert(GPTQ, tmp_path / "out", to="toy", shade="light")
    registry.BACKENDS.remove("toy")
    for work in (lambda: qdeploy.verify(GPTQ, tmp_path / "out"), lambda: qdeploy.load(tmp_path / "out")):
        with pytest.raises(UnsupportedError, match="a target that is not installed") as caught:
            work()
        assert caught.value.found == "toy"


def test_a_checkpoint_beside_a_report_of_another_program_is_read(tmp_path: Path):
    shutil.copytree(GPTQ, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/report.json").write_text(json.dumps({"target": "accuracy", "score": 0.9}))
    assert registry.artifact_backend(tmp_path / "checkpoint") is None
    assert qdeploy.load(tmp_path / "checkpoint").format == "gptq"


def test_choices_of_a_plugin_stand_in_the_report(tmp_path: Path):
    def lower(self: Any, model: Any, folder: Path, options: Any, progress: Any = None) -> Lowered:
        np.save(folder / "w.npy", np.zeros(1))
        return Lowered(("w.npy",), (Choice("w", "zeros", "all of them", False, 8),), ("a note",))

    add_backend(lower=lower)
    report = qdeploy.convert(GPTQ, tmp_path / "out", to="toy")
    assert report["tensors"]["w"]["forms"][0]["form"] == "zeros" and "a note" in report["notes"]
