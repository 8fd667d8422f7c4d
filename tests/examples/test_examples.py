"""Every example runs, and the examples in the documentation are true."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qdeploy
import qdeploy.conversion
import qdeploy.planning
import qdeploy.proof.compare

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples/models/tiny-llama-gptq"


@pytest.mark.parametrize(
    "module", [qdeploy.conversion, qdeploy.planning, qdeploy.proof.compare], ids=lambda m: m.__name__
)
def test_the_examples_in_docstrings_are_true(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "out/model.onnx").exists()


def test_the_generating_example_writes_like_its_training_text(tmp_path: Path):
    qdeploy.convert(TINY, tmp_path / "out")
    command = [sys.executable, ROOT / "examples/generate.py", tmp_path / "out", "ROMEO:", "--tokens", "40"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith("ROMEO:")
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 5
    assert {"the", "and", "i", "to", "of", "you", "my", "a", "not", "be"} & set(words)


def test_the_models_of_the_repository_are_small():
    size = sum(path.stat().st_size for path in (ROOT / "examples/models").rglob("*") if path.is_file())
    assert size < 4_000_000
