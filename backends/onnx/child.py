"""The process that runs ONNX Runtime for `checking.py`: `python -m qdeploy.backends.onnx.child FOLDER`.

The folder holds cases.json, [{model, arrays, runs}], and one .npz per case with `<run>.in.<name>` and
`<run>.want.<name>`. Caches are carried from run to run; in the first they are empty. Prints the greatest relative L2
error of each case as a JSON list. Exit code 3: onnxruntime is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> int:
    """Runs all cases of a job folder."""
    try:
        import onnxruntime
    except ImportError:
        return 3
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI, products of codes would saturate
    errors = []
    for case in json.loads((folder / "cases.json").read_text()):
        session = onnxruntime.InferenceSession(case["model"], options, providers=["CPUExecutionProvider"])
        with np.load(folder / case["arrays"]) as arrays:
            errors.append(_worst(session, arrays, case["runs"]))
    print(json.dumps(errors))
    return 0


def _worst(session: Any, arrays: Mapping[str, Any], runs: int) -> float:
    names = [output.name for output in session.get_outputs()]
    carried: dict[str, Any] = {}
    worst = 0.0
    for run in range(runs):
        feed = {i.name: _input(i, f"{run}.in.{i.name}", arrays, carried) for i in session.get_inputs()}
        carried = dict(zip(names, session.run(names, feed), strict=True))
        for name in names:
            if f"{run}.want.{name}" in arrays:
                worst = max(worst, relative_error(carried[name], arrays[f"{run}.want.{name}"]))
    return worst


def _input(declared: Any, key: str, arrays: Mapping[str, Any], carried: Mapping[str, Any]) -> Any:
    if key in arrays:
        return arrays[key]
    if carried:
        return carried[declared.name.replace("past_key_values", "present")]
    _, heads, _, size = declared.shape
    return np.zeros((1, heads, 0, size), np.float32)


def relative_error(actual: Any, want: Any) -> float:
    """|found - want| / |want| in L2; infinite where it is not a number."""
    norm = float(np.linalg.norm(want.astype(np.float64)))
    error = float(np.linalg.norm(actual.astype(np.float64) - want)) / (norm or 1.0)
    return error if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
