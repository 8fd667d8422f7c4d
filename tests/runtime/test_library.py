"""The library as C and C++ programs see it: no races, no leaks, no damaged file that crashes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import qdeploy
from qdeploy.native import Runtime
from tests.runtime.conftest import RUNTIME, Build, need, run
from tests.runtime.random_llama import write_random_llama

ROOT = RUNTIME.parent
WRAPPED = ("-Wl,--wrap=sysconf,--wrap=fopen,--wrap=mmap,--wrap=munmap,--wrap=madvise",)
CLANG = {"CLANGXX": "clang++-14"}
TINY = ROOT / "examples" / "models" / "tiny-llama-gptq"


def test_damaged_files_are_refused_or_run_and_nothing_leaks(build: Build):
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert "ok" in run(build("test/api_test", *flags), "17")


def test_a_budget_that_moves_while_tokens_flow_is_no_race(build: Build):
    assert "ok" in run(build("test/api_test", "-O1", "-g", "-fsanitize=thread"), "97")


def test_texts_end_for_a_reason_and_no_session_is_larger_than_the_machine(build: Build):
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert run(build("test/generate_test", *flags)).endswith("ok\n")


MENDED = re.findall(r"^    TEST\((\w+)\)", (RUNTIME / "test" / "faults_test.cpp").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", MENDED)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_mended_fault_stays_mended(build: Build, name: str, sanitizer: str):
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}"] + ["-fno-sanitize-recover=all"] * (sanitizer != "thread")
    assert run(build("test/faults_test", *flags), name).endswith("ok\n")


@pytest.mark.parametrize(("page", "huge"), [(4 << 10, 2 << 20), (16 << 10, 32 << 20), (64 << 10, 512 << 20)])
def test_pages_of_any_size_and_a_system_that_refuses(build: Build, page: int, huge: int):
    assert run(build("test/pages_test", "-O1", "-g", link=WRAPPED), str(page), str(huge)).endswith("ok\n")


def test_locked_memory_is_counted_as_it_is_held(build: Build):
    assert run(build("test/pages_test", "-O1", "-g", link=WRAPPED), "locked").endswith("ok\n")


def test_a_32_bit_machine_refuses_what_it_cannot_hold(build: Build):
    compiler = "arm-linux-gnueabihf-g++"
    if shutil.which(compiler) is None or shutil.which("qemu-arm") is None:
        pytest.skip(f"{compiler} and qemu-arm are not installed")
    for program, arguments in (("test/faults_test", ()), ("test/api_test", ("997",))):
        output = build(program, "-O2", "-static", "-Wno-psabi", compiler=compiler)
        assert run("qemu-arm", output, *arguments, seconds=600).endswith("ok\n")


@pytest.mark.parametrize("cpu", ["cortex-a53", "max"])
def test_the_library_runs_on_arm(build: Build, cpu: str):
    program = build("test/api_test", "-O2", "-static", compiler="aarch64-linux-gnu-g++")
    assert "ok" in run(need("qemu-aarch64"), "-cpu", cpu, program, "997", seconds=600)


def test_the_fuzzer_finds_nothing_in_a_moment(tmp_path: Path):
    need("clang++-14")
    output = subprocess.run(
        [RUNTIME / "fuzz" / "run.sh", "20", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | CLANG,
        timeout=600,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    assert int(re.findall(r"number_of_executed_units: (\d+)", output.stderr)[0]) > 100
    assert not list((tmp_path / "found").iterdir())


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
    message = run(tmp_path / "b" / "generate", tmp_path / "tiny.qd", "0", "20", "1", "2", "3")
    assert len(message.split()) == 20
    with Runtime(tmp_path / "tiny.qd", threads=1) as model:  # the first half of it, since the budget falls then
        assert list(model.generate_ids([1, 2, 3], 10)) == [int(token) for token in message.split()[:10]]
    low = subprocess.run(
        [tmp_path / "b" / "generate", tmp_path / "tiny.qd", "1000", "5", "1"], capture_output=True, text=True
    )
    assert low.returncode == 2 and "budget" in low.stderr.lower()
