"""All kernels give the same bits, on every machine; none reads or writes where it may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runtime.conftest import RUNTIME, Build, need, need_header, run

_PROGRAM = "test/kernels_test"
_TILES = "test/attention_test"


def fingerprint(output: str) -> str:
    """The hash of all results that the program prints last."""
    return re.findall(r"hash (\w+)", output)[-1]


@pytest.fixture(scope="module")
def here(build: Build) -> str:
    return fingerprint(run(build(_PROGRAM, "-O2", under="src/kernels")))


def test_every_kernel_equals_the_scalar_one_bit_for_bit(here: str):
    assert here


def test_no_kernel_leaves_its_memory_or_the_language(build: Build, here: str):
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert fingerprint(run(build(_PROGRAM, *flags, under="src/kernels"))) == here


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_arm_gives_the_same_bits(build: Build, here: str, cpu: str):
    program = build(_PROGRAM, "-O2", "-static", compiler="aarch64-linux-gnu-g++", under="src/kernels")
    assert fingerprint(run(need("qemu-aarch64"), "-cpu", cpu, program, seconds=600)) == here


def test_a_machine_without_avx_is_served_and_gives_the_same_bits(build: Build, here: str):
    program = build(_PROGRAM, "-O2", "-static", under="src/kernels")
    assert fingerprint(run(need("qemu-x86_64"), "-cpu", "Westmere", program, seconds=600)) == here


def test_avx512_gives_the_same_bits_where_no_machine_has_it(build: Build, here: str):
    need_header("simde/x86/avx512.h")
    flags = ("-O2", "-mavx2", "-mf16c", "-DQD_SIMDE", "-DSIMDE_ENABLE_NATIVE_ALIASES", "-Wno-psabi")
    output = run(build(_PROGRAM, *flags, under="src/kernels"), seconds=600)
    assert fingerprint(output) == here
    assert "avx512vnni\n" in output  # and not "(not here)"


def test_attention_in_tiles_is_attention_with_the_same_bits_everywhere(build: Build):
    here = fingerprint(run(build(_TILES, "-O2")))
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert fingerprint(run(build(_TILES, *flags))) == here
    arm = build(_TILES, "-O2", "-static", compiler="aarch64-linux-gnu-g++")
    assert fingerprint(run(need("qemu-aarch64"), "-cpu", "cortex-a53", arm, seconds=600)) == here


def test_sources_are_listed_once_and_all_of_them():
    listed = (RUNTIME / "sources.txt").read_text().split()
    results = [str(p.relative_to(RUNTIME)) for p in sorted(Path(RUNTIME / "src").rglob("*.cpp"))]
    assert sorted(listed) == results and len(set(listed)) == len(listed)
