"""What the benchmarks of the native runtime share: its programs, built with CMake, and the models that they run.

Models come from the synthetic Llama in bfloat16: ours by round-to-nearest in groups of 128, llama.cpp's by its own
`llama-quantize --pure`, which quantizes the embedding and the head, too; so do we. Ternary is llama.cpp's file,
converted: the same bits in both engines.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from convert import Bench
from measure import QDEPLOY
from peers import Peers

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"native_run": ".c", "native_budget": ".cpp", "native_kernels": ".cpp"}
EMBEDDING = "only=embed_tokens"
WHOLE = ("--layout", "whole")


@dataclass(frozen=True)
class Recipe:
    """A model of ours, and llama.cpp's type that it is measured against."""

    bits: int
    peer: str
    options: tuple[str, ...] = ()


RECIPES = {
    "int4": Recipe(4, "Q4_0"),
    "int4-whole": Recipe(4, "Q4_0", WHOLE),
    "int3": Recipe(3, "Q3_K"),
    "int2": Recipe(2, "Q2_K"),
    "ternary": Recipe(0, "TQ2_0"),
    "ternary-whole": Recipe(0, "TQ2_0", WHOLE),
}


def programs(work: Path) -> Path:
    """Builds the library and the programs; returns the folder that they lie in."""
    build = work / "native" / "build"
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", ROOT / "runtime", "-B", build, "-DCMAKE_BUILD_TYPE=Release"], **quiet)
    subprocess.run(["cmake", "--build", build, "--target", "qdeploy_static", "-j", "2"], **quiet)
    for name, suffix in PROGRAMS.items():
        compiler = ["cc", "-std=gnu11"] if suffix == ".c" else ["c++", "-std=c++17"]
        source, target = ROOT / "bench" / f"{name}{suffix}", build / name
        flags = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{ROOT / 'runtime/include'}"]
        subprocess.run([*compiler, *flags, "-c", source, "-o", f"{target}.o"], check=True)
        subprocess.run(["c++", f"{target}.o", build / "libqdeploy.a", "-pthread", "-o", target], check=True)
    return build


def model(bench: Bench, name: str) -> Path:
    """The file of a recipe; converted if it is missing."""
    recipe, target = RECIPES[name], bench.work / "native" / f"{name}.qd"
    if target.exists():
        return target
    source: Path
    if recipe.bits:
        source, spec = bench.model("bf16"), f"rtn:int{recipe.bits},group=128"
        how = ("--quantize", spec, "--quantize", f"{spec},{EMBEDDING}")
    else:
        source, how = peer_model(bench, recipe.peer), ()
    print(f"converting {target.name}", file=sys.stderr)
    command = [*QDEPLOY, "convert", source, target, "--to", "native", "--quiet", *how, *recipe.options]
    subprocess.run(command, check=True)
    return target


def peer_model(bench: Bench, kind: str) -> Path:
    """llama.cpp's file of a type; quantized if it is missing."""
    folder = bench.work / "native"
    folder.mkdir(parents=True, exist_ok=True)
    target, middle = folder / f"{kind}.gguf", folder / "bf16.gguf"
    if target.exists():
        return target
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if not middle.exists():
        source = bench.model("bf16")
        convert = [bench.peers.python, bench.peers.converter, source, "--outfile", middle, "--outtype", "bf16"]
        subprocess.run(convert, **quiet)
    subprocess.run([bench.peers.quantizer, "--pure", middle, target, kind, "2"], **quiet)
    return target


def require(peers: Peers) -> None:
    """Ends the program where the peers are not built."""
    peers.require(peers.python, peers.quantizer, peers.bench)
