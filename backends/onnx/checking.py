"""The proof by running: what was written, in ONNX Runtime, against the numpy meaning of the source.

One node per distinct form always (`nodes`): a tiny model with the bytes that lie in the data file for a few rows of one
weight of that form, for one token and for several, since those take different kernels. Small models, or all with
`full`, also run as a whole: a prompt, and a second step that goes on from its caches.

ONNX Runtime is only ever loaded in a child process (`child.py`): it costs more memory than a conversion.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qdeploy.backends.onnx.options import Lowered, Options
from qdeploy.backends.onnx.proto import DATA_FILE, MODEL_FILE
from qdeploy.backends.onnx.sampling import Arrays, Case, node_cases
from qdeploy.backends.onnx.trial import (
    can_run,
    encoder_inputs,
    is_half,
    rounds,
    shares,
    source_file,
    token_ids,
    trial_codes,
    trial_extents,
    trial_inputs,
    unknown_domains,
)
from qdeploy.contracts.results import CheckResult
from qdeploy.errors import BadFileError, ProofError
from qdeploy.extras import missing
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model, ReplacedTensors
from qdeploy.ir.tensor import Array, Buffer, ComputedRows, QTensor, plain
from qdeploy.progress import SILENT
from qdeploy.quantize.networks import META as WEIGHT_ONLY

EXACT_FULL, INT8_FULL = 1e-3, 0.15
"""Relative L2 error allowed of all layers together, with float32 activations and with 8-bit ones (see sampling.py)."""
ROUNDED_FULL, HALF_FULL = 5e-2, 2e-2
"""The same where the network itself quantizes activations (the last bit of a sum can move a code by one), and where it
computes in 16-bit floats."""
FAST_FULL = 0.1
"""The same for networks of integers on 8-bit kernels, over codes of the whole range: each result may be one code off.
On operators over integers alone (strict) nothing may be."""
FULL_BELOW = 256 << 20
"""Models whose data file is smaller run as a whole without being asked to."""
_REPORT = "This is a defect of the conversion; please report it with the checkpoint."

Level = Literal["auto", "nodes", "full", "none"]


def check(model: Model, target: Path, lowered: Lowered, level: Level = "auto") -> list[CheckResult]:
    """Runs what was written and compares.

    Args:
        model: The source.
        target: The folder that `lower` wrote.
        lowered: What `lower` returned.
        level: "nodes": one node per form; "full": the whole model as well; "auto": full below 256 MB; "none": nothing.

    Raises:
        ProofError: A result is further off than allowed, or ONNX Runtime does not load or run the model.
        BadFileError: ONNX Runtime does not load or run the source either, and says that it is wrong.
        UnsupportedError: ONNX Runtime is not installed.
    """
    if level == "none":
        return []
    with tempfile.TemporaryDirectory(prefix="qdeploy-check-") as scratch:
        job = Path(scratch)
        cases = list(node_cases(model, target, lowered, job))
        small = (target / DATA_FILE).stat().st_size < FULL_BELOW
        unknown = unknown_domains(model.graph) if level != "nodes" else []
        if not unknown and (level == "full" or (level == "auto" and small)):
            cases.append(_whole_case(model, target, lowered, job))
        results = _run(job, cases, source_file(model)) if cases else []
    if unknown:
        why = f"ONNX Runtime has no operators of {', '.join(unknown)}"
        results.append(CheckResult("model", "model", 0.0, 0.0, why))
    for result in results:
        if not result.error <= result.limit:  # NaN fails
            raise ProofError(
                "ONNX Runtime computes something else than the source means",
                where=f"{result.name} ({result.kind})",
                found=f"relative error {result.error:.2e}",
                allowed=f"<= {result.limit:.0e}",
                todo=_REPORT,
            )
    return results


# ---- the whole model -------------------------------------------------------------------------------------------------


class _Undecoded(Mapping[str, Array]):
    """A model's tensors as nodes take them, decoded at each use: only one is in memory at a time."""

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors

    def __getitem__(self, name: str) -> Array:
        return as_value(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _whole_case(model: Model, target: Path, lowered: Lowered, job: Path) -> Case:
    """The whole model; where numpy cannot run it, its source in ONNX Runtime, or at least that this loads it."""
    source = source_file(model)
    if not can_run(model.graph):
        return Case("model", "loads", 0.0, target / MODEL_FILE, ()) if source is None else _beside(model, target, job)
    try:
        return _model_case(model, target, lowered)
    except BadFileError:
        if source is None or len(trial_extents(model.graph)) == 1:
            raise
        return _beside(model, target, job)  # the extents of its free axes are not found by trying


def _beside(model: Model, target: Path, job: Path) -> Case:
    """The output beside its source, both in ONNX Runtime, on the first inputs that the source runs on.

    Where weights were rounded, what stands beside it is the same network with the floats that their codes mean.
    """
    graph, source = model.graph, source_file(model)
    if WEIGHT_ONLY in graph.meta:
        from qdeploy.backends.onnx.assemble import assemble

        (job / "widened").mkdir()
        assemble(_widened(model), job / "widened", Options(), SILENT)
        source = job / "widened" / MODEL_FILE
    tries = [(extent, last) for last in (False, True) for extent in trial_extents(graph)]
    runs = tuple((trial_inputs(graph, *how), dict[str, Array]()) for how in tries)
    limit = HALF_FULL if is_half(graph) else EXACT_FULL
    return Case("model", "model", limit, target / MODEL_FILE, runs, shares(graph), source)


def _widened(model: Model) -> Model:
    """A network whose rounded weights are floats."""
    listed: Any = model.graph.meta[WEIGHT_ONLY]
    floats = {name: _floats(model.tensors[name]) for name in listed}
    graph = replace(model.graph, meta={key: value for key, value in model.graph.meta.items() if key != WEIGHT_ONLY})
    return replace(model, tensors=ReplacedTensors(model.tensors, floats), build_graph=lambda _: graph)


def _floats(tensor: QTensor) -> QTensor:
    rows = ComputedRows(lambda start, stop: tensor.decode(slice(start, stop)))
    return QTensor(tensor.shape, "F32", plain(Buffer("data", "F32", tensor.shape, rows), "f32").terms)


def _model_case(model: Model, target: Path, lowered: Lowered) -> Case:
    from qdeploy.ir.run import run

    graph, weights = model.graph, _Undecoded(model)
    if graph.meta.get("kind") == "integer":
        codes = trial_codes(graph)
        limit = FAST_FULL if lowered.int8 else 0.0
        return Case("model", "model", limit, target / MODEL_FILE, ((codes, run(graph, codes, {}, weights)[0]),))
    network = graph.meta.get("kind") == "network"
    states: dict[str, Any] = {}
    runs = []
    texts = graph.meta.get("texts", False)
    if network and not graph.states and not texts:
        runs.append(_trial_run(graph, weights))
    for inputs in () if runs else _decoder_inputs(model) if graph.states else (_encoder_inputs(model),):
        names = {value.name for value in graph.inputs}
        outputs, states = run(graph, {k: v for k, v in inputs.items() if k in names}, states, weights)
        runs.append((inputs, outputs))
    coarse = ROUNDED_FULL if rounds(graph) else HALF_FULL if is_half(graph) else EXACT_FULL
    limit = INT8_FULL if lowered.int8 else coarse
    return Case("model", "model", limit, target / MODEL_FILE, tuple(runs), shares(graph))


def _trial_run(graph: Graph, weights: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """Inputs that the network runs on, and what it gives: networks that were made for one length say so nowhere."""
    from qdeploy.ir.guard import Guard
    from qdeploy.ir.run import run

    *first, last = trial_extents(graph)
    for extent in first:
        with suppress(BadFileError):
            inputs = trial_inputs(graph, extent)
            return inputs, run(graph, inputs, {}, weights, guard=Guard())[0]
    inputs = trial_inputs(graph, last)
    return inputs, run(graph, inputs, {}, weights, guard=Guard())[0]


def _decoder_inputs(model: Model) -> list[Arrays]:
    """A prompt of 9 tokens, then 3 more."""
    ids = token_ids(model.graph, (1, 12))
    return [
        {"input_ids": ids[:, start:stop], "attention_mask": np.ones((1, stop), np.int64)}
        for start, stop in ((0, 9), (9, 12))
    ]


def _encoder_inputs(model: Model) -> Arrays:
    """Two texts, the second of them padded, or whatever else the graph takes: two of it."""
    inputs = encoder_inputs(model.graph, 2, 9, 7)
    if "vocab" in model.graph.meta and "attention_mask" in inputs:
        inputs["attention_mask"][1, 6:] = 0
    return inputs


# ---- the child -------------------------------------------------------------------------------------------------------


def _run(job: Path, cases: list[Case], source: Path | None) -> list[CheckResult]:
    listed = []
    for place, case in enumerate(cases):
        arrays = {
            f"{step}.{kind}.{name}": array
            for step, run in enumerate(case.runs)
            for kind, part in zip(("in", "want"), run, strict=True)
            for name, array in part.items()
        }
        np.savez(job / f"{place}.npz", **arrays)  # type: ignore[arg-type]
        whole = source is not None and case.name == "model"
        listed.append(
            {
                "model": str(case.model),
                "source": str(case.beside or source) if whole or case.beside else "",
                "arrays": f"{place}.npz",
                "runs": len(case.runs),
                "shares": list(case.shares),
                "beside": case.beside is not None,
            }
        )
    (job / "cases.json").write_text(json.dumps(listed))
    command = [sys.executable, "-P", "-m", "qdeploy.backends.onnx.child", str(job)]  # -P: nothing of the working folder
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise missing("onnxruntime", "the check (or --check none)")
    if done.returncode == -signal.SIGXCPU:
        why = "ONNX Runtime takes far longer than a network of its size is worth"
        return [CheckResult(case.name, case.kind, 0.0, case.limit, why) for case in cases]
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it was killed"]
        raise ProofError(
            "ONNX Runtime does not run what was written", where=str(cases[0].model.parent), found=last[0], todo=_REPORT
        )
    return [_result(case, answer, source) for case, answer in zip(cases, json.loads(done.stdout), strict=True)]


def _result(case: Case, answer: float | Mapping[str, str], source: Path | None) -> CheckResult:
    """Of what the child says of a case: its error, or why it could not be run."""
    if not isinstance(answer, Mapping):
        return CheckResult(case.name, case.kind, answer, case.limit)
    if "refuses" in answer:
        raise BadFileError(
            "ONNX Runtime refuses the network, in the source as in the output",
            where=str(source),
            found=answer["refuses"],
            todo="--check none carries it as it is.",
        )
    return CheckResult(case.name, case.kind, 0.0, case.limit, f"ONNX Runtime cannot: {answer['lacks']}")
