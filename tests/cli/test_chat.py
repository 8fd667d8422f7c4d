"""`qdeploy chat`: a conversation that goes on after errors and interruptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qdeploy
from tests.conversing import model_with_template

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
TEMPLATE = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}BOT:"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_template(tmp_path_factory.mktemp("chat"), TEMPLATE)


def talk(model: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qdeploy", "chat", str(model), "--threads", "1", *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def test_an_answer_depends_on_what_was_said_before(tiny: Path):
    alone = talk(tiny, "hello\n", "-t", "0", "-n", "8")
    both = talk(tiny, "hello\nhello\n/reset\nhello\n", "-t", "0", "-n", "8")
    assert alone.returncode == both.returncode == 0
    answer, rest = alone.stdout, both.stdout.removeprefix(alone.stdout)
    assert both.stdout.startswith(answer) and rest.endswith(answer) and rest.removesuffix(answer) not in ("", answer)


def test_the_memory_is_moved_and_what_cannot_be_is_said(tiny: Path):
    done = talk(tiny, "/memory 2MB\n/memory 1kB\n/nothing\n/memory\nhello\n/quit\nnever\n", "-n", "4")
    assert done.returncode == 0 and done.stderr.count("held, of which weights") == 2
    assert "least" in done.stderr and "/nothing" in done.stderr and len(done.stdout.splitlines()) >= 1


def test_a_model_without_a_template_is_refused(tmp_path: Path):
    qdeploy.convert(TINY, tmp_path / "plain.qd", to="native", check="none")
    done = talk(tmp_path / "plain.qd", "hello\n")
    assert done.returncode == 2 and "chat template" in done.stderr
