"""Tokens per second in onnxruntime-genai: our ONNX models next to those of its own builder.

    python bench/synthetic.py --work DIR && python bench/peers.py --work DIR
    python bench/onnx_decode.py --work DIR [--runs 8] [--threads 1 2] [--only bf16 gptq head4 head16] [--json FILE]

Both models of a pair come from the same source and run in the same engine, one right after the other, each in a
process of its own (`decode.py`); every round gives one ratio, and the median of the ratios counts. The builder
quantizes the head of a GPTQ checkpoint again (int4, blocks of 32), ours stays float16 as it is in the source; so
there are rows with both heads quantized like that, and with both left alone.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import peers as peer_programs
from convert import ONNX, SEARCHED, Bench
from measure import MB, ONE_THREAD, Results, arguments, run

BLOCKS = ("block_size=128", "accuracy_level=4")
FLOAT_HEAD = ("nodes_to_exclude=/lm_head/MatMul",)
HEAD = ("--quantize", "rtn:int4,group=32,only=lm_head")
PAIRS = {
    "bf16": ("ours-bf16", "genai-bf16"),
    "gptq": ("ours-gptq", "genai-gptq"),
    "head4": ("ours-gptq-head4", "genai-gptq"),
    "head16": ("ours-gptq", "genai-gptq-head16"),
}
TITLES = {
    "bf16": "bf16 to int4 g128, head included: ours / builder block 128",
    "gptq": "GPTQ import, heads as they come (ours float16, builder int4)",
    "head4": "GPTQ import, both heads quantized to int4 in blocks of 32",
    "head16": "GPTQ import, both heads left as floats",
}
PROMISED = ("bf16", "gptq")
Run = dict[str, Any]


def models(bench: Bench, only: list[str]) -> dict[str, Path]:
    """Converts what is not there yet."""
    bench.out = bench.work / "decode"
    outputs = {
        "ours-bf16": lambda name: bench.ours("bf16", (*ONNX, *SEARCHED), keep=name),
        "genai-bf16": lambda name: bench.builder("bf16", *BLOCKS, keep=name),
        "ours-gptq": lambda name: bench.ours("gptq", ONNX, keep=name),
        "genai-gptq": lambda name: bench.builder("gptq", *BLOCKS, keep=name),
        "ours-gptq-head4": lambda name: bench.ours("gptq", (*ONNX, *HEAD), keep=name),
        "genai-gptq-head16": lambda name: bench.builder("gptq", *BLOCKS, *FLOAT_HEAD, keep=name),
    }
    wanted = {name for pair in only for name in PAIRS[pair]}
    for name in sorted(wanted):
        if not (bench.out / name / "genai_config.json").exists():
            outputs[name](name)()
    return {name: bench.out / name for name in wanted}


def settle(folders: dict[str, Path]) -> None:
    """Reads every file into the page cache afresh.

    How much of a mapped file counts as resident after one access depends on how its pages came into the cache, so on
    the program that wrote it; afterwards that is the same for all.
    """
    os.sync()
    for folder in folders.values():
        for path in folder.iterdir():
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while file.read(1 << 20):
                    pass


def alternate(
    bench: Bench, folders: dict[str, Path], only: list[str], threads: int, rounds: int
) -> dict[str, list[Run]]:
    """Every pair once per round, one model right after the other, each in its own process; by "pair model"."""
    taken: dict[str, list[Run]] = {f"{pair} {name}": [] for pair in only for name in PAIRS[pair]}
    script = Path(__file__).with_name("decode.py")
    for turn in range(rounds):
        for pair in only:
            for name in PAIRS[pair][:: -1 if turn % 2 else 1]:
                used = run([bench.peers.python, script, folders[name], str(threads)], ONE_THREAD)
                result: Run = json.loads(used.output.splitlines()[-1])
                taken[f"{pair} {name}"].append(result | {"anon": used.anon, "load1": used.load})
    return taken


def report(results: Results, only: list[str], taken: dict[str, list[Run]], threads: int) -> None:
    """Tables of medians and of the ratios of each round; bars."""
    names = {
        "decode": "decode tok/s",
        "prefill": "prefill tok/s",
        "load": "load s",
        "peak": "peak MB",
        "anon": "anon MB",
    }
    names |= {"load1": "load"}
    rows = []
    for name, runs in taken.items():
        middle = {key: statistics.median(r[key] for r in runs) for key in names}
        middle |= {key: max(r[key] for r in runs) / MB for key in ("peak", "anon")}
        rows.append([name, len(runs), *(middle[key] for key in names)])
    results.table(f"{threads} thread(s)", ["pair, model", "n", *names.values()], rows)
    rows = []
    for pair in only:
        ours, peer = (taken[f"{pair} {name}"] for name in PAIRS[pair])
        ratios = {key: [a[key] / b[key] for a, b in zip(ours, peer, strict=True)] for key in ("decode", "prefill")}
        middle = {key: statistics.median(values) for key, values in ratios.items()}
        memory = max(r["peak"] for r in ours) / max(r["peak"] for r in peer)
        spread = f"{min(ratios['decode']):.2f} to {max(ratios['decode']):.2f}"
        rows.append([TITLES[pair], middle["decode"], spread, middle["prefill"], memory])
        if pair in PROMISED:
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
    result = peer_programs.found(options)
    result.require(result.python)
    bench, results = Bench(options.work.absolute(), result), Results("onnx_decode.py", options.json)
    folders = models(bench, options.only)
    settle(folders)
    for threads in options.threads:
        taken = alternate(bench, folders, options.only, threads, options.runs or 8)
        report(results, options.only, taken, threads)


if __name__ == "__main__":
    main()
