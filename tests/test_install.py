"""An installation without a C++ compiler: everything but the native runtime, which is named where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.install
ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "examples/models/tiny-llama-gptq"


def _wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The wheel of the files that git knows, built where `environment` says what compilers there are."""
    source = folder / "source"
    source.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        if not name.startswith(("tests/", "bench/", "examples/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel"]
    return subprocess.run(
        [*command, "--outdir", str(folder / "dist"), str(source)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
    )


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` puts into site-packages where every compiler fails."""
    folder = tmp_path_factory.mktemp("install")
    environment = {"CC": "false", "CXX": "false", "QDEPLOY_NATIVE": ""}
    done = _wheel(folder, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the native runtime was not built and is left out" in done.stdout + done.stderr
    (wheel,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    assert not list((folder / "site").rglob("_native*"))
    return folder / "site"


_ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
from qdeploy.cli import main
main(sys.argv[1:])
"""
"""Without the finders by which this environment finds the project that is worked on."""


def _run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _ALONE, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site.parent, timeout=300)


def test_everything_in_python_works(without_compiler: Path, tmp_path: Path):
    for to in ("ir", "onnx", "native"):
        done = _run(without_compiler, "convert", TINY, tmp_path / to, "--to", to)
        assert done.returncode == 0, done.stderr
        assert _run(without_compiler, "verify", TINY, tmp_path / to).returncode == 0
    assert _run(without_compiler, "inspect", tmp_path / "native").returncode == 0


@pytest.mark.parametrize("verb", [("run", "-p", "hi"), ("bench",), ("plan",)])
def test_what_needs_the_runtime_says_what_is_missing(without_compiler: Path, tmp_path: Path, verb: tuple[str, ...]):
    assert _run(without_compiler, "convert", TINY, tmp_path / "m.qd", "--to", "native").returncode == 0
    done = _run(without_compiler, verb[0], tmp_path / "m.qd", *verb[1:])
    assert done.returncode == 2
    assert "the native runtime is not built" in done.stderr and "Install a C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3


def test_where_the_runtime_is_asked_for_it_is_an_error(tmp_path: Path):
    done = _wheel(tmp_path, CC="false", CXX="false", QDEPLOY_NATIVE="1")
    assert done.returncode != 0 and not list(tmp_path.rglob("*.whl"))
