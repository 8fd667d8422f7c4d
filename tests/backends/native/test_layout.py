"""The constants, enumerators and structs of the writer are those of the runtime, by its headers and by the compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from qdeploy.backends.native import layout
from qdeploy.backends.native.naming import MAGIC

SOURCE = Path(__file__).resolve().parents[3] / "runtime" / "src"
ENUMS: dict[str, type[IntEnum]] = {
    "SectionId": layout.SectionId,
    "GraphKind": layout.GraphKind,
    "TermKind": layout.TermKind,
    "NumberKind": layout.NumberKind,
    "TensorKind": layout.TensorKind,
    "ValueKind": layout.ValueKind,
    "Role": layout.Role,
    "Op": layout.Op,
    "Activation": layout.Activation,
}
ROWS = {"TermKind": ("terms.def", "QD_TERM"), "NumberKind": ("numbers.def", "QD_NUMBER"), "Op": ("ops.def", "QD_OP")}
"""Enumerators that stand in rows of tables."""
CONSTANTS = {
    "kVersion": layout.VERSION,
    "kPage": layout.PAGE,
    "kRows": layout.ROWS,
    "kTile": layout.TILE,
    "kMaxPlanes": layout.MAX_PLANES,
    "kMaxRank": layout.MAX_RANK,
    "kNone": layout.NONE,
}
TYPES = {
    **{f"uint{bits}_t": f"<u{bits // 8}" for bits in (16, 32, 64)},
    "uint8_t": "|u1",
    "char": "|u1",
    "float": "<f4",
    "double": "<f8",
}


def header() -> str:
    """format.h without comments."""
    return re.sub(r"//.*", "", (SOURCE / "format.h").read_text())


def table(name: str, macro: str) -> dict[str, int]:
    """Enumerator -> number of the rows of a table; a row is a call of the macro, or the file that begins with one."""
    text = re.sub(r"//.*", "", (SOURCE / name).read_text())
    for file in re.findall(r'#include "(.+)"', text):
        text += (SOURCE / file).read_text()
    return {constant: int(number) for number, constant in re.findall(rf"^{macro}\((\d+), (\w+),", text, re.MULTILINE)}


def enumerators(name: str) -> dict[str, int]:
    if name in ROWS:
        return table(*ROWS[name])
    body = re.search(rf"enum {name} : \w+ \{{(.*?)\}};", header(), re.DOTALL)
    assert body is not None
    result, number = {}, -1
    for part in filter(None, (p.strip() for p in body[1].split(","))):
        constant, _, value = (piece.strip() for piece in part.partition("="))
        number = int(value) if value else number + 1
        result[constant] = number
    return {key: value for key, value in result.items() if not re.fullmatch(rf"k{name.removesuffix('Kind')}\w*s", key)}


def same_name(constant: str, member: str) -> bool:
    return constant.removeprefix("k").lower() == member.replace("_", "").lower()


@pytest.mark.parametrize("name", ENUMS)
def test_enumerators_are_those_of_the_runtime(name: str):
    theirs = {v: k for k, v in enumerators(name).items() if k not in ("kSections", "kRoles", "kActivations")}
    ours = {int(member): member.name for member in ENUMS[name]}
    assert ours.keys() == theirs.keys()
    assert all(same_name(theirs[number], ours[number]) for number in ours)


def test_constants_are_those_of_the_runtime():
    result = dict(re.findall(r"constexpr uint32_t (\w+) = (\w+);", header()))
    assert {name: int(value.rstrip("u"), 0) for name, value in result.items()} == CONSTANTS
    magic = re.search(r"kMagic\[8\] = \{(.*?)\};", header())
    assert magic is not None
    assert "".join(re.findall(r"'(.*?)'", magic[1])).encode().decode("unicode_escape").encode() == MAGIC


def test_features_are_those_of_the_runtime():
    rows = re.findall(r'^QD_FEATURE\((\d+), \w+, "(.+)"\)', (SOURCE / "features.def").read_text(), re.MULTILINE)
    assert {1 << int(bit): name for bit, name in rows} == {f.value: (f.name or "").lower() for f in layout.Feature}


def fields(name: str) -> list[tuple[str, str, int]]:
    """Name, type and count of the fields of a struct, in order."""
    body = re.search(rf"struct {name} \{{(.*?)\n?\}};", header(), re.DOTALL)
    assert body is not None
    results = []
    for statement in filter(None, (s.strip() for s in body[1].split(";"))):
        kind, names = statement.split(None, 1)
        for field in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\w+)\])?", field.strip())
            assert match is not None, statement
            size = match[2] or "1"
            results.append((match[1], kind, len(layout.SectionId) if size == "kSections" else int(size)))
    return results


@pytest.mark.parametrize("name", layout.STRUCTS)
def test_structs_have_the_fields_of_the_runtime(name: str):
    ours, end = layout.STRUCTS[name], 0
    theirs = fields(name)
    assert [field for field, _, _ in theirs] == list(ours.names or ())
    for field, kind, count in theirs:
        dtype, at = (ours.fields or {})[field][:2]
        assert at == end
        base, shape = dtype.subdtype or (dtype, ())
        expected = layout.STRUCTS.get(kind)
        assert base == expected if expected is not None else base.str == TYPES[kind]
        assert shape == ((count,) if count > 1 else ())
        end += dtype.itemsize
    assert end == ours.itemsize


def claims() -> str:
    lines = ['#include "format.h"', "#include <cstddef>", "using namespace qd::format;"]
    for name, dtype in layout.STRUCTS.items():
        lines.append(f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name}");')
        for field, (_, at) in (dtype.fields or {}).items():
            lines.append(f'static_assert(offsetof({name}, {field}) == {at}, "{name}.{field}");')
    for name in ENUMS:
        lines += [f'static_assert({key} == {value}, "{key}");' for key, value in enumerators(name).items()]
    return "\n".join(lines) + "\n"


def test_the_compiler_lays_the_structs_out_so(tmp_path: Path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "claims.cpp").write_text(claims())
    command = [compiler, "-std=c++17", "-fsyntax-only", "-I", str(SOURCE), str(tmp_path / "claims.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
