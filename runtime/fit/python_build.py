"""Builds `qdeploy._fit`: the loops that fit plane ladders, apart from the runtime, which devices carry without them."""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Wno-psabi"]


def declarations(header: str) -> str:
    """The text between the marks, without the comments."""
    return re.sub(r"/\*.*?\*/", "", header.split("/* [cdef] */")[1], flags=re.S)


ffi = FFI()
ffi.cdef(declarations((HERE / "fit.h").read_text()))
ffi.set_source(
    "qdeploy._fit",
    '#include "fit.h"\n',
    source_extension=".cpp",
    sources=[f"runtime/fit/{name}.cpp" for name in ("fit", "plain", "avx2", "avx512")],
    include_dirs=["runtime/fit"],
    depends=[str(p.relative_to(HERE.parent.parent)) for p in sorted(HERE.glob("*")) if p.suffix in (".h", ".inl")],
    extra_compile_args=FLAGS,
    py_limited_api=True,
)
