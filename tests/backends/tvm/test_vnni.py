"""Kernels of x86-64-v4+vnni, run on any x86 with AVX2: their one instruction beyond it by its definition in LLVM IR."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulated_vnni import NARROW, emulated
from integer_networks import Net, random_inputs, resnet8

from qdeploy.backends.tvm.plan import plan
from qdeploy.backends.tvm.targets import missing, target
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run

HERE = Path(__file__).resolve().parent
RUN = HERE.parents[2] / "examples" / "bare" / "run.c"
TARGET = "x86-64-v4+vnni"


def convolution(bits: int, dtype: str) -> tuple[Model, str]:
    """Odd extents, zero points, more than one block of channels, and channels that fill none."""
    net = Net(("batch", 20, 9, 7), dtype)
    h = net.requantize(net.conv("x", 40, 20, x_zero=3, strides=[2, 1], bits=bits), 2**-9, 40, dtype=dtype, zero=2)
    last = net.conv(h, 33, 40, 1, bits=bits, pads=[0] * 4, x_zero=2)
    return net.model(last), last


def layer(bits: int, dtype: str) -> tuple[Model, str]:
    """Rows of 50 numbers."""
    net = Net(("batch", 11, 50), dtype)
    last = net.linear("x", 35, 50, bits=bits, x_zero=-4 if dtype == "I8" else 0)
    return net.model(last), last


def whole(bits: int, dtype: str) -> tuple[Model, str]:
    """A residual network."""
    net = resnet8(bits, dtype)
    return net.model(net.last), net.last  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("network", "bits", "dtype"),
    [
        *itertools.product([convolution, layer], [8, 4], ["U8", "I8"]),
        (whole, 8, "I8"),
        (whole, 4, "U8"),
    ],
)
def test_what_vnni_computes_is_what_the_interpreter_does(
    compiled: Callable[..., Any],
    tmp_path: Path,
    network: Callable[[int, str], tuple[Model, str]],
    bits: int,
    dtype: str,
):
    if missing(target(NARROW)):
        pytest.skip(f"VNNI WAS NOT TESTED: this machine does not run {NARROW}")
    model, output = network(bits, dtype)
    compiled(model, forms=("bare",), target=TARGET)
    bare, job = tmp_path / "out" / "bare", tmp_path / "job"
    text = subprocess.run(["objdump", "-d", bare / "kernels.o"], check=True, capture_output=True, text=True).stdout
    assert "vpdpbusd" in text
    job.mkdir()
    plan(model.graph, Weights(model), target(TARGET).kernel, {"batch": 1}).save(job)
    command = [sys.executable, HERE / "emulated_vnni.py", job, bare / "kernels.o"]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) > 0
    command = ["gcc", "-std=c11", "-O2", "-I.", str(RUN), "model.c", "weights.S", "kernels.o", "-o", "run"]
    subprocess.run(command, cwd=bare, check=True)
    inputs = random_inputs(model.graph)
    inputs["x"].tofile(bare / "in.bin")
    subprocess.run(["./run", "in.bin", "out.bin"], cwd=bare, check=True)
    wanted, _ = run(model.graph, inputs)
    assert (bare / "out.bin").read_bytes() == wanted[output].tobytes()


def test_nothing_wide_is_left_in_the_emulated_code():
    text = """declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>) #1
  %1 = tail call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %c, <64 x i8> %a, <64 x i8> %b)
attributes #1 = { nounwind "target-cpu"="x86-64-v4" "target-features"="+avx512vnni" }
!2 = !{!"tvm_target", !"{\\22kind\\22:\\22llvm\\22,\\22mcpu\\22:\\22x86-64-v4\\22,\\22mattr\\22:[\\22+avx512vnni\\22]}"}
"""
    output, calls = emulated(text)
    assert calls == 1 and "declare" not in output
    assert "avx512" not in output and "x86-64-v4" not in output
