"""The house: which room may know which, how large a file may grow, and that everything is shipped."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("qdeploy", "formats", "backends")
OTHERS = ("tests", "bench", "examples")
FILE_LINES, FUNCTION_LINES = 500, 60

# Room -> the rooms that it may import. Files directly in qdeploy/ are rooms of their own name.
ARROWS = {
    room: set(may_import.split())
    for room, may_import in {
        "errors": "",
        "version": "",
        "progress": "",
        "measure": "",
        "streaming": "",
        "sizes": "errors",
        "store": "errors progress",
        "pack": "errors",
        "ir": "errors measure pack progress store",
        "arch": "errors ir store",
        "quantize": "errors ir measure pack progress store",
        "passes": "errors ir store",
        "integer": "errors ir measure pack passes progress quantize store",
        "elastic": "errors ir measure pack store",
        "registry": "errors ir store",
        "calibrate": "errors integer ir passes progress",
        "derive": "calibrate ir progress quantize",
        "latency": "errors integer ir progress quantize registry store",
        "limits": "errors sizes",
        "coverage": "ir",
        "allocation": "calibrate errors integer ir latency limits progress quantize registry store",
        "proof": "derive errors ir progress registry store version",
        "conversion": "allocation calibrate derive errors ir progress proof registry store version",
        "planning": "derive elastic errors native registry",
        "native": "_native errors sizes streaming",
        "cli": "allocation conversion errors ir latency limits native planning progress proof registry sizes version",
        "formats": "arch errors ir pack progress store",
        "backends": "arch elastic errors integer ir measure native pack passes progress store",
        "__init__": "allocation conversion errors ir latency native planning proof version",
        "__main__": "cli",
    }.items()
}


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] != "qdeploy":
        return parts[0]
    return parts[1] if len(parts) > 2 else path.stem


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "qdeploy" else [f"qdeploy.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("qdeploy."):
                yield node.lineno, name.split(".")[1]


def test_every_import_follows_an_arrow():
    wrong = []
    for path in files(*ROOMS):
        room = room_of(path)
        allowed = ARROWS[room] | {room}
        wrong += [
            f"{path.relative_to(ROOT)}:{line} {room} -> {to}" for line, to in imported_rooms(path) if to not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_nothing_heavy_is_imported_by_importing_the_package():
    code = (
        "import sys; import qdeploy; "
        "print([m for m in ('numpy', 'click', 'rich', 'onnx', 'importlib.metadata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_needs_neither_numpy_nor_a_scan_of_distributions():
    code = (
        "import sys\nfrom qdeploy.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'rich', 'onnx', 'importlib.metadata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in files(*ROOMS, *OTHERS)])
def test_files_and_functions_stay_readable(path: Path):
    source = path.read_text()
    assert source.count("\n") <= FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{node.name} is too long"


def test_the_median_file_has_at_most_200_lines():
    sizes = sorted(p.read_text().count("\n") for p in files(*ROOMS))
    assert sizes[len(sizes) // 2] <= 200


def test_every_package_folder_is_shipped():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = set()
    for path in files(*ROOMS):
        if path.name == "__init__.py":
            name = ".".join(path.parent.relative_to(ROOT).parts)
            found.add(name if name.startswith("qdeploy") else f"qdeploy.{name}")
    assert listed == found


def test_no_room_is_called_utils():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in files(*ROOMS, *OTHERS) if p.stem in vague or vague & set(p.relative_to(ROOT).parts)]


def test_input_is_never_checked_by_assert():
    """An assert may tell the type checker what is known; it may not stand between a file and code that trusts it."""
    wrong = []
    for path in files("formats", "qdeploy/store", "qdeploy/pack"):
        wrong += [f"{path}:{n.lineno}" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]
    assert not wrong
