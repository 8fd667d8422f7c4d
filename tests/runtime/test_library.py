"""The library as C and C++ programs see it: no races, no leaks, no damaged file that crashes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import qdeploy
from tests.runtime.conftest import RUNTIME, Build, need, run
from tests.runtime.random_llama import write_random_llama

ROOT = RUNTIME.parent
TINY = ROOT / "examples" / "models" / "tiny-llama-gptq"


def test_damaged_files_are_refused_or_run_and_nothing_leaks(build: Build):
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert "ok" in run(build("test/api_test", *flags), "17")


def test_a_budget_that_moves_while_tokens_flow_is_no_race(build: Build):
    assert "ok" in run(build("test/api_test", "-O1", "-g", "-fsanitize=thread"), "97")


@pytest.mark.parametrize("cpu", ["cortex-a53", "max"])
def test_the_library_runs_on_arm(build: Build, cpu: str):
    program = build("test/api_test", "-O2", "-static", compiler="aarch64-linux-gnu-g++")
    assert "ok" in run(need("qemu-aarch64"), "-cpu", cpu, program, "997", seconds=600)


def test_the_fuzzer_finds_nothing_in_a_moment(build: Build, tmp_path: Path):
    program = build("fuzz/open_fuzz", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", compiler="clang++-14")
    run(program, "-max_total_time=20", f"-artifact_prefix={tmp_path}/", "-rss_limit_mb=1500")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built and installed by CMake."""
    work = tmp_path_factory.mktemp("cmake")
    cmake = need("cmake")
    run(
        cmake,
        "-S",
        RUNTIME,
        "-B",
        work / "build",
        f"-DCMAKE_INSTALL_PREFIX={work / 'prefix'}",
        "-DCMAKE_BUILD_TYPE=Release",
    )
    run(cmake, "--build", work / "build", "-j", "2", seconds=900)
    run(cmake, "--install", work / "build")
    return work / "prefix"


def test_ten_thousand_budgets_from_two_threads_and_a_replay(installed: Path, tmp_path: Path):
    source, model = write_random_llama(tmp_path / "llama"), tmp_path / "llama.qd"
    qdeploy.convert(source, model, to="native", quantize="rtn:int8,group=64")
    libraries = [next(installed.rglob("libqdeploy.a")), "-lstdc++", "-lm", "-pthread"]
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{installed / 'include'}"]
    run(need("gcc"), *flags, RUNTIME / "test" / "stress.c", *libraries, "-o", tmp_path / "stress")
    assert run(tmp_path / "stress", model, "10000").endswith("ok\n")


def test_a_c_program_finds_the_library_and_halves_its_budget_on_the_way(installed: Path, tmp_path: Path):
    qdeploy.convert(TINY, tmp_path / "tiny.qd", to="native")
    cmake = need("cmake")
    source = ROOT / "examples" / "embed"
    run(cmake, "-S", source, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}")
    run(cmake, "--build", tmp_path / "b")
    said = run(tmp_path / "b" / "generate", tmp_path / "tiny.qd", "0", "20", "1", "2", "3")
    assert len(said.split()) == 20
    low = subprocess.run(
        [tmp_path / "b" / "generate", tmp_path / "tiny.qd", "1000", "5", "1"], capture_output=True, text=True
    )
    assert low.returncode == 2 and "budget" in low.stderr.lower()
