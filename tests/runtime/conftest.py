"""Builds the runtime's own test programs with a compiler of choice; what is not installed is skipped loudly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
FLAGS = [
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-I{RUNTIME / 'include'}",
    f"-I{RUNTIME / 'src'}",
    "-pthread",
]

Build = Callable[..., Path]


def need(program: str) -> str:
    """The path of a program, or a skip; in CI an error."""
    result = shutil.which(program)
    if result:
        return result
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{program} is not installed, and CI must not skip")
    pytest.skip(f"{program} is not installed")


def need_header(name: str) -> None:
    """Skips where the system has no such header; in CI an error."""
    if (Path("/usr/include") / name).exists():
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{name} is not installed, and CI must not skip")
    pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build(program, *flags, compiler=..., under=..., link=...): runtime/<program>.cpp with the library's sources.

    An object that another program has been linked from is not compiled again.
    """
    outputs: dict[tuple[str, ...], Path] = {}

    def compiled(source: Path, compiler: str, flags: tuple[str, ...]) -> Path:
        key = (compiler, str(source), *flags)
        if key not in outputs:
            outputs[key] = tmp_path_factory.mktemp("objects") / f"{source.stem}.o"
            command = [need(compiler), *FLAGS, *flags, "-c", str(source), "-o", str(outputs[key])]
            subprocess.run(command, check=True)
        return outputs[key]

    def compile_program(
        program: str, *flags: str, compiler: str = "g++", under: str = "src", link: tuple[str, ...] = ()
    ) -> Path:
        key = (compiler, program, *flags, *link)
        if key not in outputs:
            listed = (RUNTIME / "sources.txt").read_text().split()
            sources = [RUNTIME / f"{program}.cpp", *(RUNTIME / line for line in listed if line.startswith(under))]
            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(lambda source: compiled(source, compiler, flags), sources))
            outputs[key] = tmp_path_factory.mktemp("build") / Path(program).name
            command = [need(compiler), *flags, "-pthread", *map(str, objects), *link, "-o", str(outputs[key])]
            subprocess.run(command, check=True)
        return outputs[key]

    return compile_program


def run(*command: str | Path, seconds: int = 300) -> str:
    """Output of a program that must end well."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
