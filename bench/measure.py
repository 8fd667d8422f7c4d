"""Programs measured from outside: CPU seconds, wall seconds, peak memory; and the table that is made of it.

CPU seconds are user + system of the process and of every child that it waited for (`wait4`). Memory is polled in
/proc every 20 ms: `tree` is the largest sum of the resident memory of a process and its descendants, `own` the high-
water mark of the first process alone (the kernel keeps it, so polling late loses nothing), `anon` the largest sum
without mapped files. Candidates are run in turns, so that a slow minute of the machine hits all of them; what counts
are ratios.

This module imports nothing large: a child starts as a copy of this process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MB = 1e6
POLL_SECONDS = 0.02
QDEPLOY = [sys.executable, "-m", "qdeploy"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RunError(Exception):
    """A measured program ended with an error."""


@dataclass(frozen=True)
class Usage:
    """What one run took: seconds and bytes."""

    user: float
    system: float
    wall: float
    own: int
    tree: int
    anon: int
    load: float
    output: str = field(default="", repr=False)

    @property
    def cpu(self) -> float:
        """CPU seconds."""
        return self.user + self.system

    def __add__(self, other: Usage) -> Usage:
        """Two steps of one job: times add up, memory is the larger."""
        peaks = (max(self.own, other.own), max(self.tree, other.tree), max(self.anon, other.anon))
        times = (self.user + other.user, self.system + other.system, self.wall + other.wall)
        return Usage(*times, *peaks, max(self.load, other.load), other.output)


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Usage:
    """Runs a program to its end.

    Raises:
        RunError: It ended with an error; the message holds the end of what it printed.
    """
    os.sync()  # what the last run wrote is not this run's business
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [str(c) for c in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        own = tree = anon = 0
        ended = os.pidfd_open(child.pid)
        while not select.select([ended], [], [], POLL_SECONDS)[0]:
            peak, rss, private = _memory(child.pid)
            own, tree, anon = max(own, peak), max(tree, rss), max(anon, private)
        wall = time.perf_counter() - begin
        os.close(ended)
        _, status, spent = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode(errors="replace")
    if child.returncode:
        raise RunError(f"{' '.join(map(str, command))}\nended with {child.returncode}:\n{output[-2000:]}")
    return Usage(spent.ru_utime, spent.ru_stime, wall, own, max(tree, own), anon, load, output)


def interleave(jobs: Mapping[str, Callable[[], Usage]], rounds: int) -> dict[str, list[Usage]]:
    """Runs every job once per round, in turns; says on stderr how far it is."""
    taken: dict[str, list[Usage]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name, job in jobs.items():
            used = job()
            taken[name].append(used)
            print(
                f"[{turn + 1}/{rounds}] {name}: {used.cpu:.2f} CPU s, {used.wall:.2f} s, {used.own / MB:.0f} MB",
                file=sys.stderr,
            )
    return taken


def median(runs: Sequence[Usage], what: str) -> float:
    """The median of one field over some runs."""
    return float(statistics.median(getattr(r, what) for r in runs))


@dataclass
class Bar:
    """A promise: `value` must be at least (or at most) `limit`."""

    name: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def passed(self) -> bool:
        """Whether the promise holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'PASS' if self.passed else 'MISS'}  {self.name}: {self.value:.4g} (promised {sign} {self.limit:g})"


@dataclass
class Results:
    """Tables and bars of one script, printed and saved as they come."""

    script: str
    json_path: Path | None = None
    tables: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table as Markdown and keeps it."""
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(r) for r in rows]})
        cells = [list(columns), *([_text(v) for v in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        print(f"\n{title}\n\n" + "\n".join(lines), flush=True)
        self._save()

    def usage(self, title: str, taken: Mapping[str, Sequence[Usage]]) -> None:
        """A table of resource use, one row per job."""
        columns = ("job", "n", "CPU s", "of which user", "wall s", "own MB", "tree MB", "anon MB", "load")
        self.table(title, columns, [_usage_row(name, runs) for name, runs in taken.items()])

    def bar(self, name: str, value: float, limit: float, at_least: bool = True) -> None:
        """Prints whether a promise holds, and keeps it."""
        self.bars.append(Bar(name, value, limit, at_least))
        print(self.bars[-1], flush=True)
        self._save()

    def _save(self) -> None:
        if self.json_path:
            bars = [{**asdict(bar), "passed": bar.passed} for bar in self.bars]
            results = {"script": self.script, "machine": machine(), "tables": self.tables, "bars": bars}
            self.json_path.write_text(json.dumps(results, indent=1) + "\n")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has: --work, --json, --runs."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    default = Path(tempfile.gettempdir()) / "qdeploy-bench"
    parser.add_argument("--work", type=Path, default=default, help="folder for models and outputs [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results here too")
    parser.add_argument("--runs", type=int, help="runs per job")
    return parser


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, versions, date, load."""
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line), "")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": name,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def _usage_row(name: str, runs: Sequence[Usage]) -> list[Any]:
    memory = [round(max(getattr(r, what) for r in runs) / MB) for what in ("own", "tree", "anon")]
    times = [round(median(runs, what), 3) for what in ("cpu", "user", "wall")]
    return [name, len(runs), *times, *memory, round(median(runs, "load"), 1)]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _memory(pid: int) -> tuple[int, int, int]:
    """High-water mark of the process; resident and anonymous memory of it and its descendants; bytes."""
    peak = resident = private = 0
    pending = [pid]
    while pending:
        at = pending.pop()
        try:
            lines = Path(f"/proc/{at}/status").read_text().splitlines()
            for task in os.listdir(f"/proc/{at}/task"):
                pending += map(int, Path(f"/proc/{at}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        resident += sizes.get("VmRSS", 0)
        private += sizes.get("RssAnon", 0)
        if at == pid:
            peak = sizes.get("VmHWM", 0)
    return peak, resident, private
