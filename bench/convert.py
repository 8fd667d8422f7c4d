"""CPU seconds and memory of conversion, next to onnxruntime-genai's builder and llama.cpp.

    python bench/synthetic.py --work DIR && python bench/peers.py --work DIR
    python bench/convert.py --work DIR [--runs 3] [--only gptq awq bf16 memory] [--json FILE]

Everything runs on one thread, in turns, from files in the page cache; our proof, checksums and the check of the nodes
count, start-up of every program counts. llama.cpp needs two steps (float16 GGUF, then Q4_0) and both count. Memory is
that of the converting process; `tree` adds the child that runs ONNX Runtime for the check.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import peers as peer_programs
from measure import MB, ONE_THREAD, QDEPLOY, Results, Usage, arguments, interleave, median, run

PARTS = ("gptq", "awq", "bf16", "memory")
FEWER = {"gptq": 8.0, "awq": 4.0, "bf16": 4.0}  # times less CPU than the peer
PEAK = 200 * MB
SEARCHED, PLAIN = ("--quantize", "rtn:int4,group=128"), ("--quantize", "rtn:int4,group=128,clip=none")
ONNX = ("--to", "onnx", "--activations", "int8", "--check", "nodes")
PACKAGE = ("--to", "ir")


class Bench:
    """The jobs: each converts a model of the work folder into an output that is removed before the next run."""

    def __init__(self, work: Path, peers: peer_programs.Peers) -> None:
        self.work, self.peers, self.out = work, peers, work / "converted"

    def model(self, kind: str, scale: int = 1) -> Path:
        """The folder of a model; made if it is missing."""
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("synthetic.py"), "--work", self.work]
        subprocess.run([*command, "--kind", kind, "--scale", str(scale)], check=True, stdout=subprocess.DEVNULL)
        return self.work / f"llama-{kind}-x{scale}"

    def ours(self, kind: str, options: Sequence[str], scale: int = 1, keep: str = "") -> Callable[[], Usage]:
        """Our conversion."""
        source, target = self.model(kind, scale), self.out / (keep or "ours")
        command: list[str | Path] = [*QDEPLOY, "convert", source, target, "--jobs", "1", "--quiet", *options]
        return lambda: self._fresh(target, bool(keep), command)

    def builder(self, kind: str, *extra: str, keep: str = "") -> Callable[[], Usage]:
        """onnxruntime-genai's builder, int4 for the CPU; GPTQ and AWQ codes are kept by it too."""
        source, target = self.model(kind), self.out / (keep or "genai")
        command = [
            *self.peers.builder,
            "-i",
            source,
            "-o",
            target,
            "-p",
            "int4",
            "-e",
            "cpu",
            "-c",
            self.work / "cache",
        ]
        more: list[str | Path] = ["--extra_options", *extra] if extra else []
        return lambda: self._fresh(target, bool(keep), [*command, *more])

    def llama_cpp(self, kind: str) -> Callable[[], Usage]:
        """Two steps: float16 GGUF, then Q4_0."""
        source, middle, target = self.model(kind), self.out / "f16.gguf", self.out / "q4_0.gguf"
        convert: list[str | Path] = [
            self.peers.python,
            self.peers.converter,
            source,
            "--outfile",
            middle,
            "--outtype",
            "f16",
        ]
        quantize: list[str | Path] = [self.peers.quantizer, middle, target, "Q4_0", "1"]

        def job() -> Usage:
            first = self._fresh(middle, True, convert)
            second = self._fresh(target, False, quantize)
            middle.unlink()
            return first + second

        return job

    def _fresh(self, target: Path, keep: bool, command: Sequence[str | Path]) -> Usage:
        self.out.mkdir(parents=True, exist_ok=True)
        remove(target)
        used = run(command, ONE_THREAD)
        if not keep:
            remove(target)
        return used


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def quantized(bench: Bench, results: Results, kind: str, runs: int) -> None:
    """GPTQ or AWQ: to a package and to ONNX, against the builder; then the codes of both outputs."""
    package, onnx, peer = f"{kind} to package", f"{kind} to ONNX", f"{kind}: genai builder"
    jobs = {
        package: bench.ours(kind, PACKAGE, keep="package"),
        onnx: bench.ours(kind, ONNX, keep="onnx"),
        peer: bench.builder(kind),
    }
    compare(results, kind, interleave(jobs, runs), [package, onnx], peer)
    script = Path(__file__).with_name("codes.py")
    command = [sys.executable, script, bench.model(kind), bench.out / "package", bench.out / "onnx"]
    print(answer := run([str(c) for c in command]).output, end="")
    equal, of = json.loads(answer.splitlines()[-1])
    results.bar(f"{kind}: layers whose codes, scales and zero-points are equal, of {of}", equal, of)
    remove(bench.out)


def floats(bench: Bench, results: Results, runs: int) -> None:
    """bf16 to int4 by rounding, against llama.cpp's two steps; with clip search apart."""
    package, onnx, peer = "bf16 to package", "bf16 to ONNX", "bf16: llama.cpp f16 + Q4_0"
    searched = "bf16 to ONNX, clip search"
    jobs = {
        package: bench.ours("bf16", (*PACKAGE, *PLAIN)),
        onnx: bench.ours("bf16", (*ONNX, *PLAIN)),
        peer: bench.llama_cpp("bf16"),
        searched: bench.ours("bf16", (*ONNX, *SEARCHED)),
    }
    compare(results, "bf16", interleave(jobs, runs), [package, onnx], peer, [searched])
    remove(bench.out)


def compare(
    results: Results,
    kind: str,
    taken: dict[str, list[Usage]],
    ours: list[str],
    peer: str,
    apart: Sequence[str] = (),
) -> None:
    """Prints the table of one kind of source with the ratios, and its bars."""
    results.usage(f"{kind}: one conversion", taken)
    ratios = {name: median(taken[peer], "cpu") / median(taken[name], "cpu") for name in (*ours, *apart)}
    columns = ("cpu", "user", "wall", "own")
    rows = [[name, *(median(taken[peer], c) / median(taken[name], c) for c in columns)] for name in ratios]
    results.table(f"{peer}, divided by ours", ("job", "CPU", "user CPU alone", "wall", "memory"), rows)
    for name in ours:
        results.bar(f"{name}: times less CPU", ratios[name], FEWER[kind])
        results.bar(
            f"{name}: peak MB of the converting process", max(r.own for r in taken[name]) / MB, PEAK / MB, False
        )


def memory(bench: Bench, results: Results) -> None:
    """Models of four times the size: the peak must not grow."""
    for kind, extra in {"gptq": (), "awq": (), "bf16": PLAIN}.items():
        jobs = {
            f"{kind} x{scale} to {target}": bench.ours(kind, (*options, *extra), scale)
            for scale in (1, 4)
            for target, options in {"package": PACKAGE, "ONNX": ONNX}.items()
        }
        taken = interleave(jobs, 1)
        results.usage(f"{kind}: a model four times as large", taken)
        for name, runs in taken.items():
            if "x4" in name:
                results.bar(f"{name}: peak MB of the converting process", runs[0].own / MB, PEAK / MB, False)
        shutil.rmtree(bench.model(kind, 4))
    remove(bench.out)


def main() -> None:
    parser = arguments(__doc__)
    peer_programs.add_option(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options: argparse.Namespace = parser.parse_args()
    result = peer_programs.found(options)
    result.require(result.python, result.converter, result.quantizer)
    bench, results = Bench(options.work.absolute(), result), Results("convert.py", options.json)
    runs = options.runs or 3
    for kind in ("gptq", "awq"):
        if kind in options.only:
            quantized(bench, results, kind, runs)
    if "bf16" in options.only:
        floats(bench, results, runs)
    if "memory" in options.only:
        memory(bench, results)


if __name__ == "__main__":
    main()
