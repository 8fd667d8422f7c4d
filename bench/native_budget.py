"""What moving the budget takes: memory given back, the loader's rate against plain reads, and decoding meanwhile.

    python bench/native_budget.py --work DIR [--runs 5] [--threads 1] [--json FILE]

The model is the synthetic Llama at 4 bits in planes; it shrinks to half of its stack and grows again, with the file's
pages dropped from the page cache before. Every run is a process of its own.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import native_setup
import peers as peer_programs
from convert import Bench
from measure import Results, arguments, run

PAGES = {"huge pages (the default)": 0, "ordinary pages": 8}


def main() -> None:
    parser = arguments(__doc__)
    peer_programs.add_option(parser)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    bench = Bench(options.work.absolute(), peer_programs.found(options))
    program, model = native_setup.programs(bench.work) / "native_budget", native_setup.model(bench, "int4")
    results, rows = Results("native_budget.py", options.json), []
    for title, flags in PAGES.items():
        result: list[dict[str, Any]] = []
        for _ in range(options.runs or 5):
            used = run([program, model, str(options.threads), str(flags)])
            result.append(json.loads(used.output.splitlines()[-1]))
        middle = {key: statistics.median(r[key] for r in result) for key in result[0]}
        rate = statistics.median(r["grow_mb_s"] / r["read_mb_s"] for r in result)
        results.bar(f"{title}: shrinking by half, ms", middle["shrink_ms"], 10, at_least=False)
        results.bar(f"{title}: growing, of the rate of plain reads", rate, 0.7)
        results.bar(f"{title}: a step while it grows, over a quiet one", middle["slower"], 1.25, at_least=False)
        rows.append([title, *middle.values()])
    results.table(f"{options.threads} thread(s), medians", ["pages", *middle], rows)


if __name__ == "__main__":
    main()
