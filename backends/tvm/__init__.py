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

from qdeploy.contracts.backends import Backend, IntegerProof, LayerTimer, LayerTimes, Level, Widths
from qdeploy.errors import UnsupportedError
from qdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.backends.tvm.options import Lowered, Options
    from qdeploy.contracts import results
    from qdeploy.integer.layer_shapes import LayerShape
    from qdeploy.ir.model import Model
    from qdeploy.options import TargetOptions


class Tvm(Backend):
    """Networks of integers, compiled by TVM."""

    name = "tvm"
    title = "integer-only library by TVM, and a bare object file with a plan in C"

    @property
    def options(self) -> type[Options]:
        """See `Options`."""
        from qdeploy.backends.tvm.options import Options

        return Options

    def lower(self, model: Model, folder: Path, options: TargetOptions, progress: Progress = SILENT) -> Lowered:
        """Compiles a model.

        Args:
            model: A network of integers, or one that `integer/integerize` takes.
            folder: An existing, empty folder.
            options: See `Options`.
            progress: Told of planning, compiling and proving.

        Returns:
            The files, a choice per weight, and what `check` needs.

        Raises:
            UnsupportedError: TVM is absent or of another version, an op has no kernel, no such target, or TVM failed.
            ProofError: A floating point number was found in what was compiled.
        """
        from qdeploy.backends.tvm import writing

        return writing.write(model, folder, self.options.of(options), progress)

    def check(
        self, model: Model, folder: Path, lowered: results.Lowered, level: Level = "auto"
    ) -> list[results.CheckResult]:
        """Runs the library against the numpy int64 interpreter: equal byte for byte, or ProofError.

        Where this machine does not run the target there is nothing to run, and the result is empty.
        """
        from qdeploy.backends.tvm import checking
        from qdeploy.backends.tvm.options import Lowered

        return checking.check(folder, Lowered.of(lowered), level)

    def ops(self) -> frozenset[str]:
        """The ops that it lowers itself."""
        from qdeploy.backends.tvm.plan import lowered_ops

        return lowered_ops()

    def compare(
        self, model: Model, path: str, options: TargetOptions, progress: Progress = SILENT
    ) -> Iterator[results.Row]:
        """Holds an artifact against its source: the compiled network's outputs against the integer graph's."""
        from qdeploy.backends.tvm import checking

        return checking.compare(model, Path(path))

    @property
    def integers(self) -> IntegerProof:
        """What was compiled was read by the compiler's eyes, and the object file is disassembled."""
        return TvmProof()

    @property
    def layers(self) -> LayerTimer:
        """Layers are compiled alone."""
        return TvmLayers()


class TvmProof(IntegerProof):
    """What was proven of an artifact: proof.json, with the instructions of its object file looked at again."""

    def integer_only(self, path: str | Path) -> Mapping[str, Any]:
        """The proof of an output.

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
        floats = instructions(kernels, machine) if kernels.is_file() else None
        return {**proof, "integer_only": proof["integer_only"] and not floats, "instructions": floats}


class TvmLayers(LayerTimer):
    """Compiles layers alone at every choice of bits, and times them on this machine."""

    def layer_times(
        self,
        layers: Sequence[tuple[LayerShape, npt.NDArray[np.float32]]],
        choices: Sequence[Widths],
        *,
        target: str = "host",
        threads: int = 1,
        progress: Progress = SILENT,
    ) -> LayerTimes:
        """Seconds of each layer at each choice.

        Args:
            layers: Which, with their weights.
            choices: Bits of weights and activations.
            target: One that this machine runs.
            threads: Of TVM's pool.
            progress: Told of layers and rounds.

        Raises:
            UnsupportedError: TVM is absent, the target is not of this machine, or a layer has no kernel.
        """
        from qdeploy.backends.tvm import targets, timing

        seconds = timing.layer_times(layers, choices, name=target, threads=threads, progress=progress)
        return LayerTimes(targets.target(target).name, tuple(seconds))


BACKEND = Tvm()
