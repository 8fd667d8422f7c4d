"""The check: the library runs against the numpy int64 interpreter, equal to the last byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qdeploy.backends.tvm import process
from qdeploy.backends.tvm.options import CheckResult, Lowered
from qdeploy.backends.tvm.targets import missing, target
from qdeploy.backends.tvm.writing import LIBRARY
from qdeploy.contracts.results import Row
from qdeploy.errors import ProofError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Array

TRIALS = 2


def check(folder: Path, lowered: Lowered, level: str) -> list[CheckResult]:
    """See `qdeploy.backends.tvm.check`."""
    model = lowered.graph
    if level == "none" or model is None or LIBRARY not in lowered.files or missing(target(lowered.target)):
        return []
    weights = Weights(model)
    with process.Child() as child:
        trials = [
            trial_inputs(model.graph, dict(lowered.axes), seed) for seed in range(1 if level == "nodes" else TRIALS)
        ]
        wanted = [run(model.graph, inputs, weights=weights)[0] for inputs in trials]
        arrays = [[inputs[value.name] for value in model.graph.inputs] for inputs in trials]
        results = run_library(child, folder / LIBRARY, arrays)
    for wants, outputs in zip(wanted, results, strict=True):
        for value, array in zip(model.graph.outputs, outputs, strict=True):
            want = wants[value.name]
            if array.dtype != want.dtype or array.shape != want.shape or array.tobytes() != want.tobytes():
                where = int(np.count_nonzero(array != want)) if array.shape == want.shape else "all"
                raise ProofError(
                    "the compiled network computes something else than the graph means",
                    where=value.name,
                    found=f"{where} of {want.size} numbers differ",
                    allowed="every byte equal",
                )
    return [CheckResult("model", "integer-only, equal byte for byte", 0.0, 0.0)]


def trial_inputs(graph: Graph, axes: dict[str, int], seed: int) -> dict[str, Array]:
    """Random codes of every input; what indexes a table or masks stays 0 or 1."""
    rng = np.random.default_rng(seed)
    indices = {node.inputs[1] for node in graph.nodes if node.op == "Gather"}
    trial: dict[str, Array] = {}
    for value in graph.inputs:
        dtype = element_dtype(value.dtype)
        shape = [n if isinstance(n, int) else axes[n] for n in value.shape]
        narrow = dtype.itemsize > 2 or value.name in indices
        limits = (0, 1) if narrow else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        trial[value.name] = rng.integers(*limits, shape, endpoint=True).astype(dtype)
    return trial


def run_library(child: process.Child, library: Path, trials: list[list[Array]]) -> list[list[Array]]:
    """Runs model.so in a child process: for each trial its inputs in the graph's order, and so its outputs."""
    with tempfile.TemporaryDirectory() as temporary:
        job = Path(temporary)
        named = {f"{trial}.{i}": array for trial, inputs in enumerate(trials) for i, array in enumerate(inputs)}
        np.savez(job / "inputs.npz", **named)  # type: ignore[arg-type]
        child.run(job, {"action": "run", "library": str(library.resolve()), "trials": len(trials)})
        with np.load(job / "outputs.npz") as arrays:
            counts = [sum(name.startswith(f"{trial}.") for name in arrays.files) for trial in range(len(trials))]
            return [[arrays[f"{trial}.{i}"] for i in range(count)] for trial, count in enumerate(counts)]


def compare(model: Model, folder: Path) -> Iterator[Row]:
    """Yields one row: the artifact against the source's integer graph."""
    import json

    from qdeploy.backends.tvm.writing import MANIFEST, integer_model

    manifest = json.loads((folder / MANIFEST).read_text())
    lowered = Lowered((LIBRARY,), (), (), manifest["target"], {}, integer_model(model), manifest["axes"])
    try:
        ran = check(folder, lowered, "auto") if (folder / LIBRARY).is_file() else []
    except ProofError as error:
        yield "(network)", False, float("inf"), None, str(error)
        return
    yield "(network)", bool(ran), 0.0 if ran else float("nan"), None, "" if ran else "this machine cannot run it"
