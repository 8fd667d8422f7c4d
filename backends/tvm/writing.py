"""Writing the artifact: plan, compile in a child process, lay out.

model.so     library for TVM's virtual machine: function `main`, the graph's inputs in order, a tuple of outputs
bare/        the bare form (bare.py)
proof.json   what the proof looked at and found (prove.py)
tvm.json     target, sizes of the free axes, and dtype, shape and quantization of every input and output
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdeploy.backends.tvm import bare, process
from qdeploy.backends.tvm.options import Choice, Lowered, Options
from qdeploy.backends.tvm.packing import is_small
from qdeploy.backends.tvm.plan import plan, unsupported
from qdeploy.backends.tvm.program import Program
from qdeploy.backends.tvm.targets import target
from qdeploy.errors import ProofError, UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights
from qdeploy.passes.shapes import chosen_axes
from qdeploy.progress import Progress

LIBRARY, BARE, PROOF, MANIFEST = "model.so", "bare", "proof.json", "tvm.json"


def can(graph: Graph) -> bool:
    """Whether every node of a graph has a kernel."""
    return not unsupported(graph)


def integer_model(model: Model) -> Model:
    """The model, if it is one of integers, or what `integer/integerize` makes of it."""
    if model.graph.meta.get("kind") == "integer" or can(model.graph):
        return model
    from qdeploy.integer.integerize import integerize

    return integerize(model)


def write(model: Model, folder: Path, options: Options, progress: Progress) -> Lowered:
    """See `qdeploy.backends.tvm.lower`."""
    chosen = target(options.target)
    forms = [form for form in options.forms if form == "bare" or _links(chosen.compiler, options)]
    network = integer_model(model)
    progress.start("compiling", 3, "steps")
    axes = chosen_axes(network.graph, options.axes)
    with tempfile.TemporaryDirectory() as temporary, process.Child() as child:
        job = Path(temporary)
        program = plan(network.graph, Weights(network), chosen.kernel, axes)
        program.save(job)
        progress.advance(1, "planned")
        child.run(job, {"action": "compile", "target": chosen.name, "forms": forms, "out": str(folder)})
        progress.advance(1, "compiled")
        files = [LIBRARY] if "library" in forms else []
        if "bare" in forms:
            files += _bare(program, json.loads((job / "kernels.json").read_text()), folder)
    proof = json.loads((folder / PROOF).read_text())
    if not proof["integer_only"]:
        raise ProofError(
            "the compiled network computes with more than integers",
            where=chosen.name,
            found="; ".join((proof["floats"] + proof["externs"])[:3]),
        )
    (folder / MANIFEST).write_text(json.dumps(_manifest(program, network, chosen.name, axes), indent=1))
    progress.advance(1, "proven")
    return Lowered(
        (*files, PROOF, MANIFEST),
        tuple(choices(network)),
        _notes(proof, options, forms),
        chosen.name,
        proof,
        network,
        axes,
    )


def _bare(program: Program, kernels: Mapping[str, Any], folder: Path) -> list[str]:
    out = folder / BARE
    out.mkdir()
    (folder / "kernels.o").rename(out / "kernels.o")
    return [f"{BARE}/{name}" for name in bare.write(program, kernels["kernels"], kernels["workspace"], out)]


def _links(compiler: str, options: Options) -> bool:
    """Whether a library can be linked; asking for nothing else where it cannot is an error."""
    if compiler and shutil.which(compiler):
        return True
    if "bare" not in options.forms:
        raise UnsupportedError(
            "no compiler links a library for this target",
            where=options.target,
            found=compiler or "none is known",
            todo="Install it, or ask for the form bare (--form bare).",
        )
    return False


def choices(model: Model) -> list[Choice]:
    """What became of every weight of a convolution or linear layer."""
    weights, by_name = Weights(model), {}
    for node in model.graph.nodes:
        if node.op not in ("IntegerConv", "IntegerLinear") or node.inputs[1] in by_name:
            continue
        name = node.inputs[1]
        if name not in weights:
            continue
        bits = 4 if is_small(weights[name]) else 8
        by_name[name] = Choice(
            name, f"int{bits}", "blocks of 16 channels for every instruction set", True, weights[name].size * bits // 8
        )
    return list(by_name.values())


def _manifest(program: Program, model: Model, name: str, axes: Mapping[str, int]) -> dict[str, Any]:
    quantization = model.graph.meta.get("quantization", {})

    def listed(buffers: list[str], shown: Mapping[str, str]) -> list[dict[str, Any]]:
        every = [(shown.get(b, b), program.operand(b)) for b in buffers]
        return [
            {
                "name": n,
                "dtype": buffer.dtype,
                "shape": list(buffer.shape),
                "quantization": quantization.get(n) if isinstance(quantization, Mapping) else None,
            }
            for n, buffer in every
        ]

    return {
        "target": name,
        "axes": dict(axes),
        "inputs": listed(program.inputs, {}),
        "outputs": listed(program.outputs, program.names),
    }


def _notes(proof: Mapping[str, Any], options: Options, forms: Sequence[str]) -> tuple[str, ...]:
    notes = [f"proven integer-only: {proof['nodes']} nodes and {proof['lines']} lines of LLVM IR without a float"]
    if proof["divisions"]:
        notes.append(f"{len(proof['divisions'])} integer divisions by numbers that are not constant")
    if set(forms) != set(options.forms):
        notes.append("no library: no compiler of this machine links one for the target")
    return tuple(notes)
