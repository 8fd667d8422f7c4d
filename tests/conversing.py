"""The example model with a chat template, for the tests that converse with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import qdeploy

TINY = Path(__file__).resolve().parents[1] / "examples" / "models" / "tiny-llama-gptq"


def model_with_template(folder: Path, template: str) -> Path:
    """Converts the example model with this chat template for the native runtime; returns the file."""
    source = Path(shutil.copytree(TINY, folder / "model"))
    (source / "chat_template.jinja").write_text(template)
    qdeploy.convert(source, folder / "tiny.qd", to="native", check="none")
    return folder / "tiny.qd"
