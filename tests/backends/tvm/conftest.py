"""What needs TVM is skipped where it is not installed, but never on the build server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qdeploy.backends.tvm import BACKEND
from qdeploy.backends.tvm.options import Lowered, Options
from qdeploy.ir.model import Model

sys.path.insert(0, str(Path(__file__).parent))  # for integer_networks, however pytest is started


@pytest.fixture(scope="session")
def tvm() -> None:
    """TVM is there."""
    if find_spec("tvm") is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("the tests of the TVM backend need TVM: pip install 'qdeploy[tvm]'")
        pytest.skip("TVM IS NOT INSTALLED: none of the backend was tested (pip install 'qdeploy[tvm]')")


@pytest.fixture
def compiled(tvm: None, tmp_path: Path) -> Callable[..., Lowered]:
    """Compiles a model into tmp_path / "out" and checks it there."""

    def compile_(model: Model, **options: Any) -> Lowered:
        out = tmp_path / "out"
        out.mkdir()
        lowered = BACKEND.lower(model, out, Options(**{"forms": ("library",), **options}))
        lowered_checks = BACKEND.check(model, out, lowered)
        assert bool(lowered_checks) == ("library" in lowered.files or "model.so" in lowered.files)
        return lowered

    return compile_
