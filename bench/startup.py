"""Start-up: `import qdeploy` and `qdeploy inspect` next to `import numpy`, `--help` next to a click program.

    python bench/startup.py [--runs 25] [--json FILE]

Wall milliseconds of whole processes, in turns; the peer runs in the same interpreter and environment as ours. One
round is run before, unmeasured, so that byte code and files are in place.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from measure import Results, RunError, Usage, arguments, run

PYTHON = sys.executable
TINY = Path(__file__).resolve().parents[1] / "examples/models/tiny-llama-gptq"
CLICK = "import click\n@click.command()\ndef hello(): click.echo('hello')\nhello()"
PAIRS = (
    ("import qdeploy", "import numpy", 1.3),
    ("qdeploy --help", "click hello", 2.5),
    ("qdeploy --version", "click hello", 2.5),
    ("qdeploy inspect", "import numpy", 1.8),
)


def commands(work: Path) -> dict[str, list[str]]:
    """What is started, by name."""
    hello = work / "hello.py"
    hello.parent.mkdir(parents=True, exist_ok=True)
    hello.write_text(CLICK + "\n")
    program = shutil.which("qdeploy", path=str(Path(PYTHON).parent))
    if program is None:
        raise RunError(f"qdeploy is not installed beside {PYTHON}")
    return {
        "python -c pass": [PYTHON, "-c", "pass"],
        "import numpy": [PYTHON, "-c", "import numpy"],
        "import qdeploy": [PYTHON, "-c", "import qdeploy"],
        "click hello": [PYTHON, str(hello)],
        "qdeploy --help": [program, "--help"],
        "qdeploy --version": [program, "--version"],
        "qdeploy convert --help": [program, "convert", "--help"],
        "qdeploy formats": [program, "formats"],
        "qdeploy inspect": [program, "inspect", str(TINY)],
    }


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    results, started = Results("startup.py", options.json), commands(options.work)
    taken: dict[str, list[Usage]] = {name: [] for name in started}
    for turn in range(1 + (options.runs or 25)):
        for name, command in started.items():
            used = run(command)
            if turn:
                taken[name].append(used)
    rows = []
    for name, runs in taken.items():
        walls, cpus = ([1000 * getattr(r, what) for r in runs] for what in ("wall", "cpu"))
        rows.append([name, len(runs), min(walls), statistics.median(walls), statistics.median(cpus)])
    results.table("Start of a process", ["command", "n", "wall ms, least", "wall ms, median", "CPU ms, median"], rows)
    for ours, peer, limit in PAIRS:
        ratio = statistics.median(a.wall / b.wall for a, b in zip(taken[ours], taken[peer], strict=True))
        results.bar(f"{ours} / {peer}: wall, median of rounds", ratio, limit, at_least=False)


if __name__ == "__main__":
    main()
