"""What all tests share: the folder of real checkpoints, and a guard on how packages are imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real checkpoints: QDEPLOY_TESTDATA, or shared/data beside the project."""
    folder = Path(os.environ.get("QDEPLOY_TESTDATA", _BESIDE))
    if not folder.is_dir():
        text = f"the folder of real checkpoints is missing: {folder} (set QDEPLOY_TESTDATA)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(text)
        pytest.skip(text)
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The mapped packages are only ever imported by their real names."""
    wrong = sorted({"formats", "backends"} & set(sys.modules))
    if wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        raise pytest.UsageError(f"imported as a top-level module: {', '.join(wrong)}; use qdeploy.{wrong[0]}")
