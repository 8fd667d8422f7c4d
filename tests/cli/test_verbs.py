"""The command line: what each verb prints, in words and in JSON, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import qdeploy
from qdeploy.cli import VERBS, cli
from qdeploy.errors import BadArgumentError
from qdeploy.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
GPTQ, FLOAT = ROOT / "examples/models/tiny-llama-gptq", ROOT / "examples/models/tiny-llama"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cli") / "out"
    run("convert", GPTQ, target, "--quiet")
    return target


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cli") / "package"
    run("convert", GPTQ, target, "--to", "ir", "--quiet")
    return target


def test_help_lists_every_verb_and_each_has_examples():
    text = run("--help")
    for verb in VERBS:
        assert verb in text
        page = run(verb, "--help")
        assert "Example" in page
        assert f"  qdeploy {verb}" in page


def test_the_version_is_printed():
    assert run("--version").strip() == f"qdeploy {VERSION}"


def test_a_mistyped_verb_is_guessed():
    assert "Did you mean 'convert'?" in run("convrt", code=2)


def test_convert_prints_what_was_proven_and_writes_a_report(tmp_path: Path):
    text = run("convert", GPTQ, tmp_path / "out")
    assert "lossless tensor bytes" in text
    assert "proven" in text
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["lossless"]["tensor bytes"]["proven"] == report["lossless"]["tensor bytes"]["of"] > 0
    row = report["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert row["forms"][0]["lossless"]
    assert row["forms"][0]["reason"]


def test_convert_prints_the_report_as_json(tmp_path: Path):
    printed = json.loads(run("convert", GPTQ, tmp_path / "out", "--to", "ir", "--json"))
    assert printed == json.loads((tmp_path / "out/report.json").read_text())


def test_the_same_conversion_writes_the_same_bytes(output: Path, tmp_path: Path):
    run("convert", GPTQ, tmp_path / "out", "--quiet", "--jobs", "3")
    for path in output.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_verify_says_equal_and_exits_with_0(output: Path, package: Path):
    assert run("verify", GPTQ, output).strip().endswith("equal")
    assert run("verify", GPTQ, package).strip().endswith("equal")
    result = json.loads(run("verify", GPTQ, output, "--text", "To be, or not to be", "--json"))
    assert result["logits"]["same_top1"] == 1
    assert result["logits"]["relative_l2"] < 1e-4


def test_verify_finds_a_changed_byte_and_exits_with_1(output: Path, tmp_path: Path):
    import shutil

    broken = tmp_path / "out"
    shutil.copytree(output, broken)
    data = bytearray((broken / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.onnx.data").write_bytes(data)
    assert "DIFFERENT" in run("verify", GPTQ, broken, code=1)


def test_verify_finds_another_graph(output: Path, tmp_path: Path):
    import shutil

    broken = tmp_path / "out"
    shutil.copytree(output, broken)
    data = (broken / "model.onnx").read_bytes()
    (broken / "model.onnx").write_bytes(data.replace(b"MatMulNBits", b"MatMulNBitz", 1))
    assert "graph" in run("verify", GPTQ, broken, code=1)


def test_verify_follows_a_quantizing_conversion(tmp_path: Path):
    run("convert", FLOAT, tmp_path / "out", "--quantize", "rtn:int4,group=32", "--activations", "int8", "--quiet")
    assert run("verify", FLOAT, tmp_path / "out").strip().endswith("equal")


def test_verify_derives_a_quantized_package_again_and_diff_shows_its_loss(tmp_path: Path):
    run("convert", FLOAT, tmp_path / "package", "--to", "ir", "--quantize", "rtn:int4,group=32", "--quiet")
    assert run("verify", FLOAT, tmp_path / "package").strip().endswith("equal")
    rows = json.loads(run("diff", FLOAT, tmp_path / "package", "--json"))["tensors"]
    assert 15 < min(row["snr_db"] for row in rows if row["snr_db"]) < 30


def test_diff_measures_the_loss_of_a_quantization(tmp_path: Path):
    result = json.loads(run("diff", FLOAT, GPTQ, "--text", "To be, or not to be", "--json"))
    rows = {row["name"]: row for row in result["tensors"]}
    layer = rows["model.layers.0.mlp.up_proj.weight"]
    assert not layer["codes_equal"]
    assert 10 < layer["snr_db"] < 40
    assert layer["max_error"] > 0
    assert result["logits"]["relative_l2"] > 1e-3
    assert "dB" in run("diff", FLOAT, GPTQ)


def test_diff_needs_common_names(testdata: Path):
    result = CliRunner().invoke(cli, ["diff", str(GPTQ), str(testdata / "checkpoints/gguf-q4_0-tinyllama")])
    assert isinstance(result.exception, BadArgumentError)


def test_inspect_tells_encodings_and_size(package: Path, output: Path):
    for path in (GPTQ, package):
        result = json.loads(run("inspect", path, "--json"))
        assert result["model_type"] == "llama"
        assert result["tensors"]["model.layers.0.mlp.up_proj.weight"]["encoding"].startswith("uint4 g128")
    assert "int4 block 128" in run("inspect", output)
    assert "uint4" in run("inspect", GPTQ, "--tensors")


def test_inspect_counts_the_codes():
    result = json.loads(run("inspect", GPTQ, "--histogram", "--json"))
    name = next(n for n in result["histogram"] if n.startswith("uint4"))
    weights = sum(t["parameters"] for t in result["tensors"].values() if t["encoding"] == name)
    assert sum(result["histogram"][name]) == weights
    assert len(result["histogram"][name]) == 16
    assert "█" in run("inspect", GPTQ, "--histogram")


def test_inspect_recomputes_the_checksums_of_a_package(package: Path):
    assert json.loads(run("inspect", package, "--verify-checksums", "--json"))["checksums"] > 50


def test_formats_lists_readers_targets_and_plugins():
    rows = {row["name"]: row for row in json.loads(run("formats", "--json"))}
    assert rows["gptq"] == {**rows["gptq"], "kind": "read", "writes": True, "from": "built-in"}
    assert rows["onnx"]["kind"] == "target"
    assert "gguf" in run("formats")


def test_interrupted_from_the_keyboard_nothing_is_left_broken(tmp_path: Path):
    command = [sys.executable, "-m", "qdeploy", "convert", str(FLOAT), str(tmp_path / "out"), "--to", "ir"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(0.35)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)
    if process.returncode == 130:
        assert "Traceback" not in errors
    if (tmp_path / "out").exists():  # it came too late: then everything is there
        assert qdeploy.verify(FLOAT, tmp_path / "out")["equal"]


def test_progress_is_plain_lines_without_a_terminal(tmp_path: Path):
    command = [sys.executable, "-m", "qdeploy", "convert", str(GPTQ), str(tmp_path / "out"), "--to", "ir"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"})
    assert "\x1b" not in done.stderr + done.stdout
    assert "writing the package" in done.stderr
