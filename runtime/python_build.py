"""Builds `qdeploy._native`: the runtime's sources and its C surface, for any Python from 3.11 on (stable ABI).

What Python sees is cut out of `include/qdeploy.h` between its two [cdef] marks, so the header is the only description;
the sources are those of `sources.txt`, which CMake reads, too. The generated file is C++ like the rest.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]


def declarations(header: str) -> str:
    """The text between the marks, without the macros that only compilers need."""
    return re.sub(r"\bQD_API\b", "", header.split("/* [cdef]")[1].split("*/", 1)[1])


def sources() -> list[str]:
    """Paths relative to the project's root, as setuptools wants them."""
    lines = (HERE / "sources.txt").read_text().split()
    return [f"runtime/{line}" for line in lines]


ffi = FFI()
ffi.cdef(declarations((HERE / "include" / "qdeploy.h").read_text()))
ffi.set_source(
    "qdeploy._native",
    '#include "qdeploy.h"\n',
    source_extension=".cpp",
    sources=sources(),
    include_dirs=["runtime/include"],
    depends=[str(p.relative_to(ROOT)) for p in sorted(HERE.rglob("*")) if p.suffix in (".h", ".inl", ".txt")],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    py_limited_api=True,
)
