"""The bare form: linked without any library of TVM's, run on x86 and (emulated) on ARM, equal byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_networks import random_inputs, resnet8

from qdeploy.backends.tvm.bare import allocate
from qdeploy.backends.tvm.program import Buffer, Program, Step
from qdeploy.ir.run import run

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "bare" / "run.c"
ARM = "aarch64-linux-gnu-"
TARGETS = {
    "x86-64-v3": ("", []),
    "aarch64": (ARM, ["qemu-aarch64", "-cpu", "max"]),
    "aarch64+dotprod": (ARM, ["qemu-aarch64", "-cpu", "max"]),
    "aarch64+i8mm": (ARM, ["qemu-aarch64", "-cpu", "max"]),
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_computes_what_the_interpreter_does(compiled: Callable[..., Any], tmp_path: Path, target: str):
    prefix, emulator = TARGETS[target]
    compiler = f"{prefix}gcc"
    needed = [compiler, *emulator[:1]]
    if absent := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    net = resnet8(4 if target == "aarch64+i8mm" else 8)
    model = net.model(net.last)
    compiled(model, forms=("bare",), target=target)
    folder = tmp_path / "out" / "bare"
    command = [
        compiler,
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
        "-I.",
        str(EXAMPLE),
        "model.c",
        "weights.S",
        "kernels.o",
        "-o",
        "run",
    ]
    subprocess.run(command, cwd=folder, check=True)
    inputs = random_inputs(model.graph)
    inputs["x"].tofile(folder / "in.bin")
    subprocess.run([*emulator, "./run", "in.bin", "out.bin"], cwd=folder, check=True)
    wanted, _ = run(model.graph, inputs)
    assert (folder / "out.bin").read_bytes() == wanted[net.last].tobytes()
    sizes = subprocess.run([f"{prefix}size", "kernels.o"], cwd=folder, check=True, capture_output=True, text=True)
    assert int(sizes.stdout.splitlines()[1].split()[0]) < 65536
    undefined = subprocess.run(
        [f"{prefix}nm", "-u", "kernels.o"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert set(undefined.stdout.split()) - {"U"} <= {"memset", "memcpy"}


def test_no_two_living_arrays_share_a_byte():
    rng = np.random.default_rng(3)
    for _ in range(50):
        program = Program(["x"], [], {"x": Buffer((8,), "int8")})
        for place in range(12):
            name = f"b{place}"
            sources = tuple(rng.choice(list(program.buffers), rng.integers(1, 3)))
            program.buffers[name] = Buffer((int(rng.integers(1, 400)),), "int8")
            program.steps.append(Step("elementwise", sources, name))
        program.outputs = ["b11"]
        places, size = allocate(program)
        last = {n: i for i, s in enumerate(program.steps) for n in (*s.inputs, s.output)} | {"b11": 99}
        spans = [
            (n, i, last[n], places[n], places[n] + program.buffers[n].nbytes)
            for i, n in ((i, s.output) for i, s in enumerate(program.steps))
        ]
        for one in spans:
            assert one[4] <= size
            for other in spans:
                living = one[1] < other[1] <= one[2]
                assert not living or other[4] <= one[3] or one[4] <= other[3]
