"""Targets by name: what LLVM is told, how the inner product is formed there, and what a CPU must have to run it.

The inner product of a convolution takes a *feed*: activations in the type that the target's instruction multiplies.

    int16 pairs   vpmaddwd on operands widened to int16: exact (the 8-bit form, vpmaddubsw, saturates and is not used)
    u8 quads      vpdpbusd (AVX-512 VNNI), usdot (i8mm); signed activations are fed as x + 128
    s8 quads      sdot (dotprod); unsigned activations are fed as x - 128
    int16 single  no instruction named: LLVM vectorises
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeploy.errors import UnsupportedError

LANES = 16
"""Output channels of a block of packed weights, on every target."""


@dataclass(frozen=True)
class Kernel:
    """The inner product of a target.

    Attributes:
        intrinsic: Name in `intrinsics.py`; empty: none.
        feed: The type of the activations that it takes: int16, uint8 or int8.
        group: Input channels that it multiplies at once.
        positions: Most output positions of a tile.
        blocks: Blocks of 16 output channels of a tile.
        filtering: Whether convolutions of 3 x 3 go by minimal filtering (winograd.py): it multiplies int16, so it
            pays where the inner product does, too.
    """

    intrinsic: str
    feed: str
    group: int
    positions: int
    blocks: int = 1
    filtering: bool = False

    @property
    def offset(self) -> tuple[int, int]:
        """What is added to unsigned and to signed 8-bit activations to make the feed of them."""
        return {"int16": (0, 0), "uint8": (0, 128), "int8": (-128, 0)}[self.feed]


PORTABLE = Kernel("", "int16", 1, 4)


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        name: As the user gives it.
        llvm: TVM's description of it.
        machine: `platform.machine()` of what runs it.
        flags: What /proc/cpuinfo of such a machine must list.
        kernel: The inner product.
        compiler: The C compiler of the target, for shared libraries.
    """

    name: str
    llvm: Mapping[str, Any]
    machine: str
    flags: frozenset[str] = frozenset()
    kernel: Kernel = PORTABLE
    compiler: str = "g++"
    options: tuple[str, ...] = field(default=())


_ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
_V3 = frozenset({"avx2", "bmi2", "fma"})
_V4 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"})
_AVX2 = Kernel("avx2_madd", "int16", 2, 5, filtering=True)
_VNNI = Kernel("vnni_dot", "uint8", 4, 8, 2)

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", {"kind": "llvm", "mcpu": "x86-64-v3"}, "x86_64", _V3, _AVX2),
        Target("x86-64-v4", {"kind": "llvm", "mcpu": "x86-64-v4"}, "x86_64", _V3 | _V4, _AVX2),
        Target(
            "x86-64-v4+vnni",
            {"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
            "x86_64",
            _V3 | _V4 | {"avx512_vnni"},
            _VNNI,
        ),
        Target(
            "aarch64", {**_ARM, "mcpu": "generic"}, "aarch64", frozenset({"asimd"}), PORTABLE, "aarch64-linux-gnu-g++"
        ),
        Target(
            "aarch64+dotprod",
            {**_ARM, "mcpu": "generic", "mattr": ["+dotprod"]},
            "aarch64",
            frozenset({"asimd", "asimddp"}),
            Kernel("arm_sdot", "int8", 4, 5),
            "aarch64-linux-gnu-g++",
        ),
        Target(
            "aarch64+i8mm",
            {**_ARM, "mcpu": "generic", "mattr": ["+dotprod", "+i8mm"]},
            "aarch64",
            frozenset({"asimd", "asimddp", "i8mm"}),
            Kernel("arm_usdot", "uint8", 4, 5),
            "aarch64-linux-gnu-g++",
        ),
        Target(
            "riscv64",
            {
                "kind": "llvm",
                "mtriple": "riscv64-unknown-linux-gnu",
                "mcpu": "generic-rv64",
                "mattr": ["+m", "+a", "+f", "+d", "+c"],
                "mabi": "lp64d",
            },
            "riscv64",
            frozenset(),
            PORTABLE,
            "riscv64-linux-gnu-g++",
        ),
        Target("wasm32", {"kind": "llvm", "mtriple": "wasm32-unknown-unknown"}, "wasm32", frozenset(), PORTABLE, ""),
    )
}
"""Every target but `host`, which is the best of these that this machine runs."""


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        UnsupportedError: No such target, or `host` on a machine that none of them describes.
    """
    if name == "host":
        return _host()
    if name not in TARGETS:
        raise UnsupportedError("no such target of the TVM backend", found=name, allowed=", ".join(["host", *TARGETS]))
    return TARGETS[name]


def require(chosen: Target) -> None:
    """Raises UnsupportedError where this machine does not run what is compiled for a target."""
    absent = missing(chosen)
    if absent:
        raise UnsupportedError(
            "this machine does not run what is compiled for this target",
            where=chosen.name,
            found=f"{platform.machine()} without {', '.join(absent)}",
            todo="Run it on such a machine, or compile for the target host.",
        )


def missing(chosen: Target) -> list[str]:
    """What this machine lacks to run a target; empty: nothing."""
    if platform.machine() != chosen.machine:
        return [chosen.machine]
    return sorted(chosen.flags - _flags())


def _host() -> Target:
    fitting = [t for t in TARGETS.values() if not missing(t)]
    if not fitting:
        raise UnsupportedError("no target describes this machine", found=platform.machine(), allowed=", ".join(TARGETS))
    return fitting[-1]


def _flags() -> set[str]:
    """The features that the kernel reports of this CPU, in its spelling."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return {
        flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split(":")[1].split()
    }
