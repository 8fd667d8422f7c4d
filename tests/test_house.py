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
        "options": "errors",
        "extras": "errors",
        "patterns": "errors",
        "stopping": "",
        "tokenizing": "errors extras",
        "chat": "arch errors extras store",
        "chat_child": "",
        "catalog": "errors extras",
        "store": "errors options progress",
        "pack": "errors",
        "ir": "catalog errors measure pack progress store",
        "arch": "catalog errors ir store",
        "quantize": "_fit catalog errors extras ir measure options pack passes progress sizes store tokenizing",
        "recover": "errors ir pack progress store",
        "passes": "errors ir store",
        "integer": "errors ir measure pack passes progress quantize store",
        "elastic": "errors ir measure pack store",
        "contracts": "catalog elastic errors integer ir options progress store",
        "registry": "catalog contracts errors ir options store",
        "calibrate": "errors integer ir options passes progress quantize store",
        "spec": "calibrate catalog contracts errors options quantize recover registry",
        "derive": "calibrate ir progress quantize recover spec",
        "limits": "errors options quantize sizes",
        "coverage": "ir",
        "latency": "contracts errors integer ir progress quantize registry store",
        "allocation": "calibrate errors integer ir latency limits options progress quantize registry store",
        "proof": "contracts derive errors integer ir options passes progress recover registry spec store tokenizing "
        "version",
        "conversion": "allocation calibrate contracts derive errors extras ir limits options progress proof registry "
        "spec store version",
        "evaluation": "errors ir native progress quantize registry",
        "planning": "contracts derive elastic errors native registry spec",
        "native": "_native chat errors sizes stopping store streaming tokenizing",
        "serve": "chat errors extras native sizes stopping store streaming",
        "cli": "allocation calibrate catalog chat contracts conversion coverage errors evaluation extras integer ir "
        "latency limits native options planning progress proof quantize registry serve sizes spec streaming version",
        "formats": "arch contracts errors extras ir options pack patterns progress store",
        "backends": "arch contracts elastic errors extras integer ir measure native options pack passes progress "
        "quantize store",
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


def imported_by_name(node: ast.AST) -> str:
    """The module that a call of `import_module` names; empty where it is none, or the name is computed."""
    if not isinstance(node, ast.Call) or not node.args or not ast.unparse(node.func).endswith("import_module"):
        return ""
    name = node.args[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "qdeploy" else [f"qdeploy.{alias.name}" for alias in node.names]
        elif name := imported_by_name(node):
            names = [name]
        for name in names:
            if name.startswith("qdeploy."):
                yield node.lineno, name.split(".")[1]


def test_imports_are_absolute():
    """A relative import would be seen by none of the tests below."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in files(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_make_no_circle():
    left = {room: to - {room} for room, to in ARROWS.items()}
    while leaves := {room for room, to in left.items() if not to & set(left)}:
        left = {room: to for room, to in left.items() if room not in leaves}
    assert not left, sorted(left)


def test_every_import_follows_an_arrow():
    wrong = []
    for path in files(*ROOMS):
        room = room_of(path)
        allowed = ARROWS[room] | {room}
        wrong += [
            f"{path.relative_to(ROOT)}:{line} {room} -> {to}" for line, to in imported_rooms(path) if to not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "qdeploy" else ["qdeploy", *parts])


MODULES = {module_name(path): path for path in files(*ROOMS)}


def modules_imported_by(path: Path, inside_functions: bool) -> set[str]:
    """The project's modules that a file imports when it is imported, or also when its functions run."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if for_types or (function and not inside_functions):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    submodule = f"{child.module}.{alias.name}"
                    yield submodule if submodule in MODULES else child.module
            else:
                yield imported_by_name(child)
                yield from visit(child)

    imported = set(visit(ast.parse(path.read_text()))) & set(MODULES)
    return imported - {module_name(path)}


def circles(inside_functions: bool) -> list[list[str]]:
    """Every set of modules that reach each other by imports."""
    reached = {name: modules_imported_by(path, inside_functions) for name, path in MODULES.items()}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            further = set().union(*(reached[target] for target in targets)) - targets if targets else set()
            if further:
                targets |= further
                changed = True
    in_circles = sorted(name for name, targets in reached.items() if name in targets)
    groups = set()
    for name in in_circles:
        groups.add(frozenset(other for other in in_circles if other in reached[name] and name in reached[other]))
    return sorted(sorted(group) for group in groups)


def test_no_import_circle_anywhere():
    assert circles(inside_functions=False) == []


def test_imports_inside_of_functions_make_circles_within_one_folder_at_most():
    """Files of one folder may ask each other for what they need while they run; rooms and folders never do."""
    for circle in circles(inside_functions=True):
        assert len({MODULES[name].parent for name in circle}) == 1, circle


def test_no_room_imports_the_inside_of_another_format_or_backend():
    """A backend is known by its object; of formats, only the folder that Hugging Face writes serves others, too."""
    shared = {"qdeploy.formats.huggingface.checkpoint"}
    wrong = []
    for path in files(*ROOMS):
        own = module_name(path).split(".")[:3]
        for name in modules_imported_by(path, inside_functions=True) - shared:
            parts = name.split(".")
            inside = len(parts) > 3 and parts[1] in ("formats", "backends")
            if inside and parts[:3] != own:
                wrong.append(f"{path.relative_to(ROOT)} -> {name}")
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
    result = set()
    for path in files(*ROOMS):
        if path.name == "__init__.py":
            name = ".".join(path.parent.relative_to(ROOT).parts)
            result.add(name if name.startswith("qdeploy") else f"qdeploy.{name}")
    assert listed == result


def test_no_room_is_called_utils():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in files(*ROOMS, *OTHERS) if p.stem in vague or vague & set(p.relative_to(ROOT).parts)]


def test_input_is_never_checked_by_assert():
    """An assert may tell the type checker what is known; it may not stand between a file and code that trusts it."""
    wrong = []
    for path in files("formats", "qdeploy/store", "qdeploy/pack"):
        wrong += [f"{path}:{n.lineno}" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]
    assert not wrong


def test_variables_are_named_after_things():
    """What is found, made or given is always something; `found` alone is the keyword of the error family."""
    participles = {"found", "made", "given", "held", "said", "asked", "got"}
    wrong = []
    for path in files(*ROOMS):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        stores = [(n.lineno, n.id) for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        parameters = [(n.lineno, n.arg) for n in nodes if isinstance(n, ast.arg) and n.arg != "found"]
        named = [*stores, *parameters]
        wrong += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in named if name in participles]
    assert not wrong, "\n".join(wrong)


def test_the_formatter_decides_everywhere():
    marked = [path for path in files(*ROOMS, *OTHERS) if "# fmt: " + "skip" in path.read_text()]
    assert not marked


def test_the_drawing_of_the_house_has_every_room():
    """The README's tree names each folder of each room that holds code."""
    tree = (ROOT / "README.md").read_text().partition("## Architecture")[2].partition("**A checkpoint's way")[0]
    folders = {path.parent for path in files(*ROOMS) if path.parent.parent in {ROOT / room for room in ROOMS}}
    assert not {folder.name for folder in folders if f"{folder.name}/" not in tree}
