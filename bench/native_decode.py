"""Tokens per second, memory and start-up of the native runtime, next to llama.cpp and onnxruntime-genai.

    python bench/peers.py --work DIR
    python bench/native_decode.py --work DIR [--runs 6] [--threads 1 2] [--only int4 ...] [--long] [--json FILE]

Every run is a process of its own, ours and the peer's one right after the other, the order turned every round; every
round gives one ratio and the median of the ratios counts. Decode is single tokens after a short prompt, prefill a
prompt of 128; with --long prompts of 512 to 8192, and decode behind 2048 and 8192 tokens, against llama.cpp with and
without flash attention, the faster of the two. Start-up is the wall time of a process that opens the file, makes one
token and ends, from files in the page cache. Memory is the high-water mark of the process.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import native_setup
import peers as peer_programs
from convert import Bench
from measure import MB, ONE_THREAD, Results, arguments, run
from native_setup import RECIPES
from onnx_decode import models as genai_models

PROMPT, TOKENS = 128, 32
SMALL_PAGES = 8
DECODE = {  # bars by recipe: one thread, two threads
    "int4": (1.4, 1.15),
    "ternary-whole": (1.9, 1.6),
    "int3": (2.4, 1.8),
    "int2": (2.3, 1.4),
}
PREFILL = {"int4": 1.2}
LONG, BEHIND = (512, 1024, 2048, 4096, 8192), (2048, 8192)
Run = dict[str, float]


class Engines:
    """The commands that are run in turn."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.build = bench, native_setup.programs(bench.work)

    def ours(
        self, name: str, threads: int, *, tokens: int = TOKENS, prompt: int = PROMPT, flags: int = 0, behind: int = 16
    ) -> Run:
        """One run of native_run."""
        path = native_setup.model(self.bench, name)
        used = run([self.build / "native_run", path, *map(str, (threads, prompt, tokens, 0, flags, behind))])
        result: Run = json.loads(used.output.splitlines()[-1])
        return result | {"wall": used.wall, "own": used.own}

    def llama(self, kind: str, threads: int, *, tokens: int = TOKENS, prompt: int = PROMPT) -> Run:
        """One run of llama-bench."""
        path = native_setup.peer_model(self.bench, kind)
        sizes = ["-t", str(threads), "-p", str(prompt), "-n", str(tokens), "-r", "1" if tokens == 1 else "2"]
        quick = ["--no-warmup"] if tokens == 1 else []
        used = run([self.bench.peers.bench, "-m", path, *sizes, *quick, "-o", "json"])
        results = {"wall": used.wall, "own": used.own}
        for test in json.loads(used.output[used.output.index("[\n") :]):
            results["prefill" if test["n_prompt"] else "decode"] = statistics.median(test["samples_ts"])
        return results

    def llama_behind(self, kind: str, threads: int, prompt: int, tokens: int, flash: int) -> float:
        """Tokens per second of llama-bench: a prompt of so many tokens, or `tokens` single ones behind it."""
        path = native_setup.peer_model(self.bench, kind)
        sizes = ["-p", "0", "-n", str(tokens), "-d", str(prompt)] if tokens else ["-p", str(prompt), "-n", "0"]
        options = ["-t", str(threads), *sizes, "-r", "1", "-fa", str(flash), "--no-warmup", "-o", "json"]
        used = run([self.bench.peers.bench, "-m", path, *options])
        tests = json.loads(used.output[used.output.index("[\n") :])
        return float(statistics.median(tests[0]["samples_ts"]))

    def genai(self, threads: int) -> Run:
        """One run of onnxruntime-genai with its own builder's int4 model in blocks of 128."""
        folder = genai_models(self.bench, ["bf16"])["genai-bf16"]
        script = Path(__file__).with_name("decode.py")
        used = run([self.bench.peers.python, script, folder, str(threads)], ONE_THREAD)
        result: dict[str, Any] = json.loads(used.output.splitlines()[-1])
        return {"decode": result["decode"], "prefill": result["prefill"], "own": used.own, "wall": used.wall}


def alternate(pair: tuple[Any, Any], rounds: int) -> tuple[list[Run], list[Run]]:
    """Runs both, one right after the other, in turned order."""
    ours: list[Run] = []
    peer: list[Run] = []
    for turn in range(rounds):
        for mine in (True, False)[:: -1 if turn % 2 else 1]:
            (ours if mine else peer).append(pair[0 if mine else 1]())
    return ours, peer


def ratio(ours: list[Run], peer: list[Run], key: str) -> tuple[float, str]:
    """Median of the ratios, and their range."""
    values = [a[key] / b[key] for a, b in zip(ours, peer, strict=True)]
    return statistics.median(values), f"{min(values):.2f} to {max(values):.2f}"


def speed(results: Results, engines: Engines, only: list[str], threads: int, rounds: int) -> None:
    """Decode, prefill and memory of every recipe."""
    rows = []
    for name in only:
        kind = RECIPES[name].peer
        pairs = {kind: lambda kind=kind: engines.llama(kind, threads)}
        if name.startswith("int4"):
            pairs["genai block 128"] = lambda: engines.genai(threads)
        for peer_name, peer_run in pairs.items():
            ours, peer = alternate((lambda name=name: engines.ours(name, threads), peer_run), rounds)
            decode, spread = ratio(ours, peer, "decode")
            prefill, _ = ratio(ours, peer, "prefill")
            middle = [statistics.median(r[key] for r in runs) for runs in (ours, peer) for key in ("decode", "prefill")]
            memory = [max(r["own"] for r in runs) / MB for runs in (ours, peer)]
            rows.append([f"{name} / {peer_name}", decode, spread, prefill, *middle, *memory])
            bars(results, name, peer_name, threads, decode, prefill)
    columns = [
        "ours / peer",
        "decode ratio",
        "range",
        "prefill ratio",
        "decode tok/s",
        "prefill",
        "peer's",
        "prefill",
        "MB",
        "peer's MB",
    ]
    results.table(f"{threads} thread(s), {rounds} rounds", columns, rows)


def bars(results: Results, name: str, peer: str, threads: int, decode: float, prefill: float) -> None:
    """What is promised of a pair."""
    title = f"{name} against {peer}, {threads} thread(s)"
    if peer.startswith("genai"):
        if name == "int4":
            results.bar(f"{title}: decode", decode, 1.15 if threads == 1 else 1.0)
            results.bar(f"{title}: prefill", prefill, 1.0)
        return
    if name in DECODE:
        results.bar(f"{title}: decode", decode, DECODE[name][threads > 1])
    if name in PREFILL and threads == 1:
        results.bar(f"{title}: prefill", prefill, PREFILL[name])


def long(results: Results, engines: Engines, threads: int, rounds: int) -> None:
    """Prefill of long prompts, and decode behind them, at 4 bits."""
    rows = []
    for prompt, tokens in (*((size, 0) for size in LONG), *((size, TOKENS // 2) for size in BEHIND)):
        ours, peer = [], []
        for _ in range(rounds):
            mine = engines.ours("int4", threads, tokens=tokens, prompt=0 if tokens else prompt, behind=prompt)
            ours.append(mine["decode" if tokens else "prefill"])
            peer.append(max(engines.llama_behind("Q4_0", threads, prompt, tokens, flash) for flash in (0, 1)))
        result = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
        title = f"{'decode behind' if tokens else 'prefill of'} {prompt} tokens"
        rows.append([title, result, statistics.median(ours), statistics.median(peer)])
        results.bar(f"{title} against Q4_0, {threads} thread(s)", result, 1.5 if tokens else 1.3)
    results.table(f"Long prompts, {threads} thread(s)", ["", "ratio", "ours tok/s", "llama.cpp tok/s"], rows)


def start(results: Results, engines: Engines, rounds: int) -> None:
    """Process start to first token, and memory against what the library says."""
    rows = []
    for flags, title, limit in ((0, "huge pages (the default)", 0.75), (SMALL_PAGES, "ordinary pages", 1.0)):
        pair = (
            lambda flags=flags: engines.ours("int4", 1, tokens=0, prompt=0, flags=flags),
            lambda: engines.llama("Q4_0", 1, tokens=1, prompt=0),
        )
        ours, peer = alternate(pair, rounds)
        result, spread = ratio(ours, peer, "wall")
        walls = [statistics.median(r["wall"] for r in runs) for runs in (ours, peer)]
        rows.append([title, result, spread, *walls])
        results.bar(f"start to first token, {title}: wall time", result, limit, at_least=False)
        over = max(r["own"] / r["peak"] for r in ours)
        results.bar(f"peak memory over what the library counts, {title}", over, 1.1, at_least=False)
    results.table("Start to first token", ["pages", "ratio", "range", "ours s", "llama.cpp s"], rows)


def main() -> None:
    parser = arguments(__doc__)
    peer_programs.add_option(parser)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=[*RECIPES, "start"], default=[*RECIPES, "start"])
    parser.add_argument("--long", action="store_true", help="long prompts alone")
    options = parser.parse_args()
    peers = peer_programs.found(options)
    native_setup.require(peers)
    results = Results("native_decode.py", options.json)
    engines = Engines(Bench(options.work.absolute(), peers))
    if options.long:
        for threads in options.threads:
            long(results, engines, threads, options.runs or 2)
        return
    only = [name for name in RECIPES if name in options.only]
    for threads in options.threads:
        speed(results, engines, only, threads, options.runs or 6)
    if "start" in options.only:
        start(results, engines, options.runs or 6)


if __name__ == "__main__":
    main()
