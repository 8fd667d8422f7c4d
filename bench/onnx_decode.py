"""Tokens per second in onnxruntime-genai: our ONNX models next to those of its own builder.

    python bench/synthetic.py --work DIR && python bench/peers.py --work DIR
    python bench/onnx_decode.py --work DIR [--runs 6] [--threads 1 2] [--only bf16 gptq] [--json FILE]

Both models of a pair come from the same source and run in the same engine, one after the other, each in a process of
its own (`decode.py`); every round gives one ratio, and the median of the ratios counts. The builder quantizes the
head of a GPTQ checkpoint again (int4, blocks of 32), ours stays float16 as it is in the source; so there is a row
with the builder's head left alone as well.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import peers as peer_programs
from convert import ONNX, SEARCHED, Bench
from measure import MB, ONE_THREAD, Results, arguments, run

BLOCKS = ("block_size=128", "accuracy_level=4")
FLOAT_HEAD = ("nodes_to_exclude=/lm_head/MatMul",)
PAIRS = {
    "bf16": ("ours-bf16", "genai-bf16"),
    "gptq": ("ours-gptq", "genai-gptq"),
    "head": ("ours-gptq", "genai-gptq-head"),
}
TITLES = {
    "bf16": "bf16 to int4 g128, head included: ours / builder block 128",
    "gptq": "GPTQ import, heads as they come: ours / builder (int4 head)",
    "head": "GPTQ import, float heads: ours / builder with its head excluded",
}
Run = dict[str, Any]


def models(bench: Bench, only: list[str]) -> dict[str, Path]:
    """Converts what is not there yet."""
    bench.out = bench.work / "decode"
    made = {
        "ours-bf16": lambda name: bench.ours("bf16", (*ONNX, *SEARCHED), keep=name),
        "genai-bf16": lambda name: bench.builder("bf16", *BLOCKS, keep=name),
        "ours-gptq": lambda name: bench.ours("gptq", ONNX, keep=name),
        "genai-gptq": lambda name: bench.builder("gptq", *BLOCKS, keep=name),
        "genai-gptq-head": lambda name: bench.builder("gptq", *BLOCKS, *FLOAT_HEAD, keep=name),
    }
    wanted = {name for pair in only for name in PAIRS[pair]}
    for name in sorted(wanted):
        if not (bench.out / name / "genai_config.json").exists():
            made[name](name)()
    return {name: bench.out / name for name in wanted}


def alternate(bench: Bench, folders: dict[str, Path], threads: int, rounds: int) -> dict[str, list[Run]]:
    """Every model once per round, each in its own process."""
    taken: dict[str, list[Run]] = {name: [] for name in sorted(folders)}
    script = Path(__file__).with_name("decode.py")
    for turn in range(rounds):
        names = sorted(folders, reverse=bool(turn % 2))
        for name in names:
            used = run([bench.peers.python, script, folders[name], str(threads)], ONE_THREAD)
            taken[name].append(json.loads(used.output.splitlines()[-1]) | {"load1": used.load})
    return taken


def report(results: Results, only: list[str], taken: dict[str, list[Run]], threads: int) -> None:
    """Tables of medians and of the ratios of each round; bars."""
    names = {"decode": "decode tok/s", "prefill": "prefill tok/s", "load": "load s", "peak": "peak MB", "load1": "load"}
    rows = []
    for name, runs in taken.items():
        middle = {key: statistics.median(r[key] for r in runs) for key in names}
        middle["peak"] = max(r["peak"] for r in runs) / MB
        rows.append([name, len(runs), *(middle[key] for key in names)])
    results.table(f"{threads} thread(s)", ["model", "n", *names.values()], rows)
    rows = []
    for pair in only:
        ours, peer = (taken[name] for name in PAIRS[pair])
        ratios = {key: [a[key] / b[key] for a, b in zip(ours, peer, strict=True)] for key in ("decode", "prefill")}
        middle = {key: statistics.median(values) for key, values in ratios.items()}
        memory = max(r["peak"] for r in ours) / max(r["peak"] for r in peer)
        spread = f"{min(ratios['decode']):.2f} to {max(ratios['decode']):.2f}"
        rows.append([TITLES[pair], middle["decode"], spread, middle["prefill"], memory])
        results.bar(f"{TITLES[pair]}, {threads} thread(s): decode", middle["decode"], 1.0)
        results.bar(f"{TITLES[pair]}, {threads} thread(s): peak memory", memory, 1.0, at_least=False)
    columns = ["ratio, median of rounds", "decode", "of which min to max", "prefill", "peak memory"]
    results.table(f"Ratios with {threads} thread(s)", columns, rows)


def main() -> None:
    parser = arguments(__doc__)
    peer_programs.add_option(parser)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS))
    options = parser.parse_args()
    found = peer_programs.found(options)
    found.require(found.python)
    bench, results = Bench(options.work.absolute(), found), Results("onnx_decode.py", options.json)
    folders = models(bench, options.only)
    for threads in options.threads:
        taken = alternate(bench, folders, threads, options.runs or 6)
        report(results, options.only, taken, threads)


if __name__ == "__main__":
    main()
