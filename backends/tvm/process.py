"""Starting the child process, and making one error of whatever becomes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdeploy import errors


def run(folder: Path, job: Mapping[str, Any], threads: int = 0) -> None:
    """Runs a job (child.py) in a folder of its own.

    Args:
        folder: Where job.json is written, and everything that belongs to the job.
        job: See there.
        threads: Of TVM's pool; 0: as many as it likes.

    Raises:
        QdeployError: What the child raised.
        UnsupportedError: The process died.
    """
    (folder / "job.json").write_text(json.dumps(dict(job)))
    environment = {**os.environ, **({"TVM_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run([sys.executable, "-m", "qdeploy.backends.tvm.child", str(folder)], capture_output=True,
                          text=True, check=False, env=environment)  # fmt: skip
    if done.returncode == 3 and (folder / "error.json").is_file():
        facts = json.loads((folder / "error.json").read_text())
        raise getattr(errors, facts.pop("kind"))(facts.pop("what"), **facts)
    if done.returncode:
        raise errors.UnsupportedError(
            f"TVM did not {job['action']} this network", where=str(job.get("target", job.get("library", ""))),
            found=_reason(done), todo="This is an error of ours: please report it with the model's graph.",
        )  # fmt: skip


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended: the signal that killed it, or the last error that it named, else the last thing it said."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    said = (named or lines or ["nothing was said"])[-1][:300]
    return f"killed by {signal.Signals(-done.returncode).name}: {said}" if done.returncode < 0 else said
