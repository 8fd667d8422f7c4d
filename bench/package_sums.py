"""What comparing a package with its checksums on first read costs, beside --no-verify.

    python bench/package_sums.py --work DIR [--runs 5] [--json FILE]

A Llama with an embedding of 512 MiB becomes a package, which is converted to its source files, to ONNX and to another
package, with the comparison and without it, in turns. Needs 3 GB of disk.
"""

from __future__ import annotations

import shutil
import statistics

from measure import ONE_THREAD, QDEPLOY, Results, Usage, arguments, run
from memory import write

SIZE = 512 << 20
LIMIT = 2.0
"""Times as much CPU as without the comparison, at most: SHA-256 reads every byte once."""
TARGETS = {"source": (), "onnx": ("--check", "none"), "ir": ()}


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    runs = options.runs or 5
    results, work = Results("package_sums.py", options.json), options.work.absolute() / "package_sums"
    shutil.rmtree(work, ignore_errors=True)
    write(work / "model", "llama", SIZE)
    run([*QDEPLOY, "convert", work / "model", work / "package", "--to", "ir", "--quiet"], ONE_THREAD)
    rows = []
    for to, more in TARGETS.items():
        used: dict[str, list[Usage]] = {"compared": [], "not": []}
        for _ in range(runs):
            for kind, extra in (("compared", ()), ("not", ("--no-verify",))):
                shutil.rmtree(work / "out", ignore_errors=True)
                command = [*QDEPLOY, "convert", work / "package", work / "out", "--to", to, "--quiet", *more, *extra]
                used[kind].append(run(command, ONE_THREAD))
        compared, plain = (statistics.median(u.cpu for u in used[kind]) for kind in ("compared", "not"))
        rows.append((to, compared, plain, compared / plain, SIZE / 1e6 / max(1e-9, compared - plain)))
    shutil.rmtree(work)
    results.table("Conversion of a package", ["to", "CPU s", "--no-verify", "ratio", "MB/s compared"], rows)
    for to, _, _, ratio, _ in rows:
        results.bar(f"{to}: CPU with the comparison over CPU without", ratio, LIMIT, at_least=False)


if __name__ == "__main__":
    main()
