"""What quantizing a network has done to its time on this machine, in ONNX Runtime, next to the same network in floats.

Both run in turns in a child process (`stopwatch.py`), on the same inputs, for about a second. Networks with states and
those whose floats are more than `LARGEST` are not timed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from qdeploy.backends.onnx.assemble import assemble
from qdeploy.backends.onnx.options import Options
from qdeploy.backends.onnx.proto import MODEL_FILE
from qdeploy.backends.onnx.trial import can_run, encoder_inputs, trial_extents, trial_inputs
from qdeploy.contracts.results import Timing
from qdeploy.errors import QdeployError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT

LARGEST = 1 << 30
"""Bytes of floats."""
SECONDS, TOKENS = 1.0, 64
"""How long both run in turns, and how many tokens a text has."""


def against_floats(floats: Model, model: Model, folder: Path) -> Timing | str:
    """The time of an output and of the network in floats; or why they were not timed.

    Args:
        floats: The network before anything was quantized.
        model: What was lowered.
        folder: Where it lies.
    """
    reason = _untimed(floats)
    if reason:
        return reason
    with tempfile.TemporaryDirectory(prefix="qdeploy-timing-") as scratch:
        job = Path(scratch)
        try:
            (job / "floats").mkdir()
            assemble(floats, job / "floats", Options(), SILENT)
        except QdeployError as error:
            return f"the network in floats is not written: {error.what}"
        count = _save_inputs(floats.graph, model.graph, job)
        command = [sys.executable, "-P", "-m", "qdeploy.backends.onnx.stopwatch"]
        command += [str(job / "floats" / MODEL_FILE), str(folder / MODEL_FILE), str(job), str(count), str(SECONDS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines()[-1:] or ["ONNX Runtime did not run"])[0][:200]
        seconds: list[float] = json.loads(done.stdout)
        return Timing(*seconds)


def _untimed(floats: Model) -> str:
    """Why a network is not timed; empty: it is."""
    graph = floats.graph
    if graph.states or not can_run(graph):
        return "it has states" if graph.states else "it has operators that are not known"
    size = sum(4 * int(np.prod(tensor.shape)) for tensor in floats.tensors.values())
    return f"its floats are more than {LARGEST >> 20} MB" if size > LARGEST else ""


def _save_inputs(floats: Graph, graph: Graph, job: Path) -> int:
    """Writes inputs of both to try, one after the other; returns how many there are."""
    length = min(TOKENS, int(floats.meta.get("context") or TOKENS))  # type: ignore[arg-type]
    texts = [encoder_inputs(floats, 1, length, length)] if "vocab" in floats.meta else []
    tries = texts or [trial_inputs(floats, n) for n in trial_extents(floats)]
    for place, inputs in enumerate(tries):
        np.savez(job / f"{place}.floats.npz", **inputs)  # type: ignore[arg-type]
        np.savez(job / f"{place}.output.npz", **_typed(graph, inputs))  # type: ignore[arg-type]
    return len(tries)


def _typed(graph: Graph, inputs: dict[str, Array]) -> dict[str, Array]:
    """The same inputs as another graph takes them: where it takes codes, any codes."""
    typed = {}
    for value in graph.inputs:
        array, dtype = inputs[value.name], element_dtype(value.dtype)
        if array.dtype.kind == "f" and dtype.kind in "iu":
            typed[value.name] = np.random.default_rng(0).integers(0, 100, array.shape).astype(dtype)
        else:
            typed[value.name] = array.astype(dtype)
    return typed
