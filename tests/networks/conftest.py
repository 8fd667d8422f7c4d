"""A scratch folder for the wheels; QDEPLOY_WHEELS names one that is kept."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("QDEPLOY_WHEELS") or tmp_path_factory.mktemp("wheels"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
