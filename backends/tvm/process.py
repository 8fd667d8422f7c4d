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


class Child:
    """A process that imports TVM while its job is still being made; as a context it ends with it."""

    def __init__(self, threads: int = 0) -> None:
        """Starts the process; `threads` of TVM's pool, 0: as many as it likes."""
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # it forks, and multiplies no matrices
        if threads:
            environment["TVM_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-P", "-m", "qdeploy.backends.tvm.child"]  # not what lies in the working folder
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, process_group=0
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # and all that it has forked
        self._process.communicate()

    def run(self, folder: Path, job: Mapping[str, Any]) -> None:
        """Runs a job, the only one of this process.

        Args:
            folder: Where job.json is written, and everything that belongs to the job.
            job: See child.py.

        Raises:
            QdeployError: What the child raised.
            UnsupportedError: The process died.
        """
        (folder / "job.json").write_text(json.dumps(dict(job)))
        _, complaints = self._process.communicate(str(folder))
        code = self._process.returncode
        if code == 3 and (folder / "error.json").is_file():
            facts = json.loads((folder / "error.json").read_text())
            raise getattr(errors, facts.pop("kind"))(facts.pop("what"), **facts)
        if code:
            raise errors.UnsupportedError(
                f"TVM did not {job['action']} this network",
                where=str(job.get("target", job.get("library", ""))),
                found=_reason(code, complaints),
                todo="This is an error of ours: please report it with the model's graph.",
            )


def run(folder: Path, job: Mapping[str, Any], threads: int = 0) -> None:
    """Runs a job in a process of its own; see `Child`."""
    with Child(threads) as child:
        child.run(folder, job)


def _reason(code: int, complaints: str) -> str:
    """Why a process ended: the signal that killed it, or the last error that it named, else its last line."""
    lines = [line for line in complaints.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    complaint = (named or lines or ["it gave no message"])[-1][:300]
    return f"killed by {signal.Signals(-code).name}: {complaint}" if code < 0 else complaint
