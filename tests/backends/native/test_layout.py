"""The writer's structs and the runtime's are the same: the C++ compiler says so."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qdeploy.backends.native import layout

SOURCE = Path(__file__).resolve().parents[3] / "runtime" / "src"
ENUMS = {
    "SectionId": (layout.SectionId, ""),
    "TermKind": (layout.TermKind, ""),
    "NumberKind": (layout.NumberKind, ""),
    "Op": (layout.Op, ""),
    "Activation": (layout.Activation, ""),
    "ValueKind": (layout.ValueKind, ""),
}


def camel(name: str) -> str:
    fixed = {
        "RMS_NORM": "RmsNorm",
        "L2_NORM": "L2Norm",
        "BF16": "BF16",
        "F16": "F16",
        "E8M0": "E8M0",
        "E4M3": "E4M3",
        "E5M2": "E5M2",
        "U8": "U8",
        "I8": "I8",
        "F32": "F32",
    }
    return "k" + fixed.get(name, "".join(part.capitalize() for part in name.split("_")))


def claims() -> str:
    lines = ['#include "format.h"', "#include <cstddef>", "using namespace qd::format;"]
    for name, dtype in layout.STRUCTS.items():
        lines.append(f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name}");')
        for field, (_, at) in dtype.fields.items():
            lines.append(f'static_assert(offsetof({name}, {field}) == {at}, "{name}.{field}");')
            size = dtype.fields[field][0].itemsize
            lines.append(f'static_assert(sizeof({name}::{field}) == {size}, "{name}.{field}");')
    for members, _ in ENUMS.values():
        lines += [f'static_assert({camel(m.name)} == {m.value}, "{m.name}");' for m in members]
    constants = {"kPage": layout.PAGE, "kRows": layout.ROWS, "kTile": layout.TILE, "kVersion": layout.VERSION}
    lines += [f'static_assert({name} == {value}, "{name}");' for name, value in constants.items()]
    return "\n".join(lines) + "\n"


def test_structs_are_those_of_the_runtime(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "claims.cpp").write_text(claims())
    command = [compiler, "-std=c++17", "-fsyntax-only", "-I", str(SOURCE), str(tmp_path / "claims.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
