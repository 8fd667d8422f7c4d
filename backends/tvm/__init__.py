"""TVM: integer-only networks, compiled ahead of time and proven to hold no floating point number.

The graph must be one of integers (`ir/ops/integer.py`), or `integer/integerize` makes it one. It is planned into fused
steps (plan.py), built as TIR (emit.py), scheduled by the names of blocks (schedule.py) and compiled in a child process
(child.py) to a library for TVM's virtual machine and to the bare form: an object file with a plan in C.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.errors import UnsupportedError
from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.results import CheckResult, Row
    from qdeploy.backends.tvm.options import Choice, Lowered, Options
    from qdeploy.integer.layer_shapes import LayerShape
    from qdeploy.ir.model import Model

NAME = "tvm"
TITLE = "integer-only library by TVM, and a bare object file with a plan in C"

__all__ = [
    "NAME",
    "TITLE",
    "CheckResult",
    "Choice",
    "Lowered",
    "Options",
    "check",
    "compare",
    "integer_only",
    "layer_times",
    "logits",
    "logits_limit",
    "lower",
]


def lower(model: Model, target: Path, options: Options, progress: Progress = SILENT) -> Lowered:
    """Compiles a model.

    Args:
        model: A network of integers, or one that `integer/integerize` takes.
        target: An existing, empty folder.
        options: See `Options`.
        progress: Told of planning, compiling and proving.

    Returns:
        The files, a choice per weight, and what `check` needs.

    Raises:
        UnsupportedError: TVM is absent or of another version, an op has no kernel, no such target, or TVM failed.
        ProofError: A floating point number was found in what was compiled.
    """
    from qdeploy.backends.tvm import writing

    return writing.write(model, target, options, progress)


def check(model: Model, target: Path, lowered: Lowered, level: str = "auto") -> list[CheckResult]:
    """Runs the library against the numpy int64 interpreter: equal byte for byte, or ProofError.

    Where this machine does not run the target there is nothing to run, and the result is empty.
    """
    from qdeploy.backends.tvm import checking

    return checking.check(target, lowered, level)


def compare(model: Model, path: str, options: Options, progress: Progress = SILENT) -> Iterator[Row]:
    """Holds an artifact against its source: the compiled network's outputs against the integer graph's."""
    from qdeploy.backends.tvm import checking

    rows: Iterator[Row] = checking.compare(model, Path(path))
    return rows


def integer_only(path: str | Path) -> Mapping[str, Any]:
    """What was proven of an artifact: proof.json, with the instructions of its object file looked at again.

    Returns:
        integer_only, nodes, lines, floats, externs, divisions, and `instructions`: floating point arithmetic in the
        disassembly of the kernels, or None where there is no disassembler or no bare form.
    """
    from qdeploy.backends.tvm.prove import instructions
    from qdeploy.backends.tvm.targets import target
    from qdeploy.backends.tvm.writing import BARE, MANIFEST, PROOF

    folder = Path(path)
    if not (folder / PROOF).is_file():
        raise UnsupportedError("no output of the TVM backend", where=str(path), todo="Convert with --to tvm.")
    proof = json.loads((folder / PROOF).read_text())
    machine = target(json.loads((folder / MANIFEST).read_text())["target"]).machine
    kernels = folder / BARE / "kernels.o"
    found = instructions(kernels, machine) if kernels.is_file() else None
    return {**proof, "integer_only": proof["integer_only"] and not found, "instructions": found}


def layer_times(
    layers: Sequence[tuple[LayerShape, npt.NDArray[np.float32]]],
    options: Sequence[tuple[int, int]],
    *,
    target: str = "host",
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compiles layers alone at every choice of bits, and times them on this machine.

    Args:
        layers: Which, with their weights.
        options: Bits of weights and activations.
        target: One that this machine runs.
        threads: Of TVM's pool.
        progress: Told of layers and rounds.

    Returns:
        {"target": its name, "seconds": for each layer {bits: seconds}}.

    Raises:
        UnsupportedError: TVM is absent, the target is none of this machine, or a layer has no kernel.
    """
    from qdeploy.backends.tvm import targets, timing

    seconds = timing.layer_times(layers, options, name=target, threads=threads, progress=progress)
    return {"target": targets.target(target).name, "seconds": seconds}


def logits(path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Of no meaning here."""
    raise UnsupportedError("integer-only networks of the TVM backend are no decoders", where=path)


def logits_limit(options: Options) -> float:
    """Of no meaning here: results are equal."""
    return 0.0


def __getattr__(name: str) -> object:
    if name in ("Options", "Choice", "Lowered", "CheckResult"):
        from qdeploy.backends.tvm import options

        return getattr(options, name)
    raise AttributeError(name)
