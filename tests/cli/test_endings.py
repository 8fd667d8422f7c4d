"""How a verb ends: exit codes, what an error looks like, and what is said of packages that are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import qdeploy.cli
from qdeploy.cli import VERBS, main
from qdeploy.cli.convert import NOT_RUN

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples/models/tiny-llama"


def ends(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def without(modules: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A verb in an interpreter that has no such packages."""
    code = (
        "import importlib.abc, sys\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] in {modules.split()!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from qdeploy.cli import main\n"
        f"main({[str(a) for a in arguments]!r})\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AssertionError, RecursionError])
def test_a_defect_ends_in_three_lines_and_code_3(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: Any, **__: Any) -> None:
        raise kind("no \x1b[31m such \udcff thing")

    monkeypatch.setattr("qdeploy.proof.survey.survey", broken)
    assert ends("inspect", TINY) == 3
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 3 and "internal error, please report" in said
    assert "Traceback" not in said and "\x1b[31m such" not in said


@pytest.mark.parametrize("verb", VERBS)
def test_debug_is_an_option_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]):
    assert ends(verb, "--help") == 0
    assert "--debug" in capsys.readouterr().out


def test_debug_behind_the_verb_shows_the_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QDEPLOY_DEBUG", "")
    assert ends("inspect", "nowhere", "--debug") == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and said.count("no such file or folder") >= 1


def test_what_the_system_refuses_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "secret.bin")

    monkeypatch.setattr("qdeploy.proof.survey.survey", refused)
    assert ends("inspect", TINY) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_name_of_a_megabyte_is_cut_and_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = json.loads((TINY / "config.json").read_text()) | {"model_type": "\x1b]0;x\x07" * 200_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"w\x1b[31m" + "n" * 100_000: np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    assert ends("convert", tmp_path, tmp_path.parent / "out") == 2
    assert ends("inspect", tmp_path, "--tensors") == 0
    said = capsys.readouterr()
    assert len(said.out) + len(said.err) < 40_000
    assert "\x1b[31m" not in said.out + said.err and "\x07" not in said.out + said.err


@pytest.mark.parametrize(
    ("modules", "extra", "arguments"),
    [
        ("onnx", "onnx", ("convert", TINY, "out")),
        ("onnxruntime", "onnx", ("verify", "{onnx}", "{onnx}", "--text", "x")),
        ("tokenizers", "text", ("run", "{qd}", "-p", "once")),
        ("tflite flatbuffers", "tflite", ("inspect", "{tflite}")),
        ("matplotlib", "plot", ("plan", "{qd}", "--plot", "x.png")),
        ("tvm", "tvm", ("convert", TINY, "out", "--to", "tvm")),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_missing_package_is_one_sentence_with_the_command(
    modules: str, extra: str, arguments: tuple[Any, ...], tmp_path: Path
):
    made = {"qd": tmp_path / "m.qd", "onnx": tmp_path / "onnx", "tflite": tmp_path / "n.tflite"}
    if "{qd}" in arguments:
        qdeploy.convert(TINY, made["qd"], to="native", check="none")
    if "{onnx}" in arguments:
        qdeploy.convert(TINY, made["onnx"], check="none")
    made["tflite"].write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    words = [str(a).format(**made) if "{" in str(a) else str(a) for a in arguments]
    words = [str(tmp_path / "out") if word == "out" else word for word in words]
    if "{onnx}" in arguments:
        words[1] = str(TINY)
    done = without(modules, *words)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'qdeploy[{extra}]'" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_output_that_nothing_can_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("qdeploy.backends.onnx.checking.check", lambda *_: [])
    assert ends("convert", TINY, tmp_path / "out") == NOT_RUN == 4
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "nothing here can run" in report["not_run"] and report["not_run"] in report["notes"]
    assert report["not_run"] in capsys.readouterr().out
    assert ends("convert", TINY, tmp_path / "accepted", "--check", "none") == 0
    assert "not_run" not in json.loads((tmp_path / "accepted/report.json").read_text())


@pytest.mark.parametrize(("to", "continued"), [("ir", True), ("native", False), ("onnx", False)])
def test_an_interruption_promises_a_resume_to_packages_alone(
    to: str, continued: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdeploy.conversion.run", interrupted)
    assert ends("convert", TINY, "nowhere", "--to", to) == 130
    assert ("continues" in capsys.readouterr().err) == continued


@pytest.mark.parametrize("verb", ["run", "chat", "bench", "serve"])
def test_a_checkpoint_where_a_native_file_belongs_is_told_how_to_become_one(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(32))
    for path in (TINY, tmp_path / "model.gguf"):
        arguments = {"run": ("-p", "x"), "serve": ("--port", "0")}.get(verb, ())
        assert ends(verb, path, *arguments) == 2
        assert f"qdeploy convert {path} model.qd --to native" in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.parametrize("arguments", [("chat", "m.qd"), ("run", "m.qd", "--chat", "-p", "x")])
@pytest.mark.parametrize("modules", ["jinja2", "jinja2 tokenizers"])
def test_a_conversation_names_the_extra_that_brings_all_it_needs(modules: str, arguments: tuple[str, ...]):
    ended = without(modules, *arguments)
    assert ended.returncode == 2
    assert "a conversation needs a package" in ended.stderr and "qdeploy[chat]" in ended.stderr
