"""The process that runs ONNX Runtime for `checking.py`: `python -m qdeploy.backends.onnx.child FOLDER`.

The folder holds cases.json, [{model, source, arrays, runs, shares, beside}], and one .npz per case with
`<run>.in.<name>` and `<run>.want.<name>`. Caches are carried from run to run; in the first they are empty. Prints a
JSON list: of each case the greatest relative L2 error (against the outputs of the source, where it is "beside"), or,
where ONNX Runtime runs neither the model nor its source, {"lacks": what it said of an operator, type or version that it
does not have} or {"refuses": what else it said}. Exit code 3: onnxruntime is not installed.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LEAST_SHARE = 1e-3
"""Parts of 1 below this are held to an absolute error."""
_SHOWN = 200
"""Characters of the library's own words that are shown, from the end."""
_LACKING = ("NOT_IMPLEMENTED", "not a registered function/op", "under development", "bad_alloc", "allocate memory")
"""What the library says of what it does not have; of all else it says that the model is wrong."""


MEMORY, SECONDS = 4 << 30, 120
_PER_BYTE, _PER_SECOND = 8, 4 << 20
"""What a network may take: address space, and CPU, at least and by the bytes of its files."""


def main(folder: Path) -> int:
    """Runs all cases of a job folder."""
    try:
        import onnxruntime
    except ImportError:
        return 3
    _limit(json.loads((folder / "cases.json").read_text()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI, products of codes would saturate

    def opened(model: str) -> Any:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    answers = []
    for case in json.loads((folder / "cases.json").read_text()):
        with np.load(folder / case["arrays"]) as arrays:
            answers.append(_tried(opened, case, arrays))
    print(json.dumps(answers))
    return 0


def _limit(cases: list[dict[str, Any]]) -> None:
    """Bounds this process by what the models are worth; where it takes more CPU, the system ends it (SIGXCPU)."""
    folders = {Path(path).parent for case in cases for path in (case["model"], case["source"]) if path}
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir() if file.is_file())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, used + MEMORY + _PER_BYTE * size),
        (resource.RLIMIT_CPU, SECONDS + size // _PER_SECOND),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _tried(opened: Callable[[str], Any], case: Mapping[str, Any], arrays: Mapping[str, Any]) -> float | dict[str, str]:
    """The error of a case, or why ONNX Runtime cannot run it where it cannot run the source either."""
    try:
        if case["beside"]:
            return _beside(opened(case["source"]), opened(case["model"]), arrays, case)
        return _worst(opened(case["model"]), arrays, case)
    except Exception as error:  # whatever the library raises: the source says whose fault it is
        if not case["source"]:
            raise
        try:
            _worst(opened(case["source"]), arrays, case)
        except KeyError:  # its inputs have other names: nothing is known of it
            raise error from None
        except Exception:
            kind = "lacks" if any(words in str(error) for words in _LACKING) else "refuses"
            return {kind: str(error)[-_SHOWN:]}
        raise


def _beside(source: Any, session: Any, arrays: Mapping[str, Any], case: Mapping[str, Any]) -> float | dict[str, str]:
    """The error against what the source gives for the first inputs that it runs on."""
    names, refusal = [output.name for output in session.get_outputs()], ""
    for run in range(case["runs"]):
        feed = {i.name: arrays[f"{run}.in.{i.name}"] for i in session.get_inputs()}
        try:
            want = source.run(names, feed)
        except Exception as error:  # whatever the library raises: other inputs are tried
            refusal = str(error)
            continue
        least = [_LEAST_SHARE if name in case["shares"] else 0.0 for name in names]
        return max(map(_difference, session.run(names, feed), want, least), default=0.0)
    return {"lacks": f"no inputs that the source runs on: {refusal[-_SHOWN:]}"}


def _difference(actual: Any, want: Any, least: float) -> float:
    """The error of an output; of sequences, maps and texts, whether they are equal."""
    if isinstance(want, np.ndarray) and want.dtype.kind in "fiub":
        return relative_error(actual, want.astype(np.float64), least)
    return 0.0 if str(actual) == str(want) else float("inf")


def _worst(session: Any, arrays: Mapping[str, Any], case: Mapping[str, Any]) -> float:
    names = [output.name for output in session.get_outputs()]
    carried: dict[str, Any] = {}
    worst = 0.0
    for run in range(case["runs"]):
        feed = {i.name: _input(i, f"{run}.in.{i.name}", arrays, carried) for i in session.get_inputs()}
        carried = dict(zip(names, session.run(names, feed), strict=True))
        for name in names:
            if f"{run}.want.{name}" in arrays:
                least = _LEAST_SHARE if name in case["shares"] else 0.0
                worst = max(worst, relative_error(carried[name], arrays[f"{run}.want.{name}"], least))
    return worst


def _input(declared: Any, key: str, arrays: Mapping[str, Any], carried: Mapping[str, Any]) -> Any:
    if key in arrays:
        return arrays[key]
    if carried:
        return carried[declared.name.replace("past_key_values", "present").replace("past_state", "present_state")]
    if declared.name.startswith("past_state"):
        return np.zeros((1, *declared.shape[1:]), np.float32)
    _, heads, _, size = declared.shape
    return np.zeros((1, heads, 0, size), np.float32)


def relative_error(actual: Any, want: Any, least: float = 0.0) -> float:
    """|found - want| / |want| in L2, with `least` per element for a smaller |want|; infinite where it is no number."""
    norm = max(float(np.linalg.norm(want.astype(np.float64))), least * float(np.sqrt(want.size)))
    error = float(np.linalg.norm(actual.astype(np.float64) - want)) / (norm or 1.0)
    return error if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
