"""Runs two models in ONNX Runtime in turns and prints the median seconds of each; the child process of `timing.py`.

python -P -m qdeploy.backends.onnx.stopwatch FIRST SECOND FOLDER TRIES SECONDS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_LEAST = 3


def main(first: str, second: str, folder: str, tries: str, seconds: str) -> int:
    """Prints [seconds of the first model, seconds of the second]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one would keep the other from its cores
    sessions = [onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]) for path in (first, second)]
    feeds = _running(sessions, Path(folder), int(tries))
    spent: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + float(seconds)
    while time.perf_counter() < end or len(spent[0]) < _LEAST:
        for session, feed, times in zip(sessions, feeds, spent, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - start)
    print(json.dumps([statistics.median(times) for times in spent]))
    return 0


def _running(sessions: list[Any], folder: Path, tries: int) -> list[dict[str, Any]]:
    """The first inputs that both run on."""
    problem: Exception = ValueError("no inputs")
    for place in range(tries):
        feeds = [dict(np.load(folder / f"{place}.{name}.npz")) for name in ("floats", "output")]
        try:
            for session, feed in zip(sessions, feeds, strict=True):
                session.run(None, feed)
        except Exception as error:  # whatever the library raises: other inputs are tried
            problem = error
            continue
        return feeds
    raise problem


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
