"""The folder of what a long conversion has finished so far, beside its output, which lives until the output stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from qdeploy.store.staging import prefix


def folder_beside(output: Path) -> Path:
    """Where it is."""
    return output.with_name(f"{prefix(output)}-quantized")


def forget(folder: Path) -> None:
    """Removes it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
