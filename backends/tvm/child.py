"""The process that runs TVM. `python -m qdeploy.backends.tvm.child` imports it, then reads the path of a folder.

The folder holds job.json, {"action": "compile" | "run" | "time", ...}, and what the action needs:

    compile   a program (program.py); writes model.so, kernels.o and kernels.json, proof.json into `out`
    run       inputs.npz, arrays "<trial>.<place>"; loads `library`, writes outputs.npz likewise
    compile_parts   each of the folders `parts` in this one as by compile, its output beside its program
    time_parts      loads model.so of each of `parts`, runs them in turns; {part: least seconds} in times.json

An error of the family goes to error.json with exit code 3; whatever LLVM does to the process is its exit code.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.backends.tvm.fork_pool import MOST, Work, cores, run_forked
from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    from qdeploy.backends.tvm.program import Program
    from qdeploy.backends.tvm.targets import Target


def main() -> int:
    """Imports TVM and does a job; without one, nothing."""
    absent = _import()
    path = sys.stdin.read()
    if not path:
        return 0
    folder = Path(path)
    job = json.loads((folder / "job.json").read_text())
    try:
        if absent:
            raise absent
        ACTIONS[job["action"]](folder, job)
    except QdeployError as error:
        facts = {name: getattr(error, name) for name in ("what", "where", "found", "allowed", "todo")}
        (folder / "error.json").write_text(json.dumps({"kind": type(error).__name__, **facts}))
        return 3
    return 0


def _import() -> QdeployError | None:
    """What stands in the way of TVM, if something does."""
    from qdeploy.backends.tvm import engine

    try:
        engine.check_versions()
        engine.tvm  # noqa: B018
    except QdeployError as error:
        return error
    return None


def _compile(folder: Path, job: dict[str, Any]) -> None:
    """The kernels of the library in parts and the bare form at the same time; see fork_pool.py."""
    from qdeploy.backends.tvm import emit
    from qdeploy.backends.tvm.program import load
    from qdeploy.backends.tvm.prove import Proof
    from qdeploy.backends.tvm.targets import target

    program, chosen, out = load(folder), target(job["target"]), Path(job["out"])
    emit.register_all(program)
    works: list[Work] = []
    if "library" in job["forms"]:
        own, *others = emit.parts(program, cores(MOST))
        works.append(partial(_network, program, own, chosen, folder / "network"))
        works += [partial(_part, program, part, chosen, folder / f"part{k}.o") for k, part in enumerate(others)]
    if "bare" in job["forms"]:
        works.append(partial(_bare, program, chosen, folder, out / "kernels.o"))
    proof = sum((Proof(**counts) for counts in run_forked(works)), Proof())
    if "library" in job["forms"]:
        _link(out / "model.so", [*(folder / "network").iterdir(), *folder.glob("part*.o")], chosen.compiler)
    (out / "proof.json").write_text(json.dumps(proof.json(), indent=1))


def _network(program: Program, own: Sequence[str], chosen: Target, objects: Path) -> dict[str, Any]:
    """Compiles `main` and its own part of the kernels to object files in a new folder."""
    from qdeploy.backends.tvm import emit
    from qdeploy.backends.tvm.prove import look_at_ir, look_at_module

    def keep(_: str, files: Sequence[str]) -> None:
        for file in files:
            shutil.move(file, objects)

    module = emit.network(program, emit.kernels(program, parallel=True, only=own))
    proof = look_at_module(module, known=emit.kernel_names(program).values())
    built = _built(module, chosen.llvm)
    proof += look_at_ir(built.mod.imports[0].inspect_source("ll"))
    objects.mkdir()
    built.export_library("", fcompile=keep)
    return asdict(proof)


def _part(program: Program, part: Sequence[str], chosen: Target, path: Path) -> dict[str, Any]:
    """Compiles a part of the library's kernels to an object file."""
    from qdeploy.backends.tvm import emit
    from qdeploy.backends.tvm.prove import look_at_ir, look_at_module

    module = emit.bare_module(emit.kernels(program, parallel=True, only=part))
    built = _built(module, chosen.llvm)
    built.mod.write_to_file(str(path), "o")
    return asdict(look_at_module(module) + look_at_ir(built.mod.inspect_source("ll")))


def _bare(program: Program, chosen: Target, folder: Path, path: Path) -> dict[str, Any]:
    """Compiles all kernels, each for one thread, to an object file; what the plan in C needs goes to kernels.json."""
    from qdeploy.backends.tvm import emit
    from qdeploy.backends.tvm.prove import look_at_ir, look_at_module

    module = emit.bare_module(emit.kernels(program, parallel=False))
    built = _built(module, chosen.llvm)
    text = built.mod.inspect_source("ll")
    built.mod.write_to_file(str(path), "o")
    sizes = {"kernels": emit.kernel_names(program), "workspace": workspace(text)}
    (folder / "kernels.json").write_text(json.dumps(sizes))
    return asdict(look_at_module(module) + look_at_ir(text))


def _built(module: Any, llvm: Mapping[str, Any]) -> Any:
    from qdeploy.backends.tvm.engine import tvm

    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        return tvm.compile(module, target=tvm.target.Target({**llvm, "opt-level": 2}))


def _link(path: Path, objects: Sequence[Path], compiler: str) -> None:
    from qdeploy.backends.tvm.engine import create_shared

    create_shared(str(path), [str(file) for file in objects], cc=compiler)


def workspace(text: str) -> int:
    """Bytes of scratch memory of the kernel that takes most of it, from the calls in its LLVM IR."""
    most = 0
    for function in re.split(r"^define ", text, flags=re.MULTILINE)[1:]:
        sizes = re.findall(r"call ptr %?[\w.]+\(i32 1, i32 %?[\w.]+, i64 (\d+), i32 ", function)
        most = max(most, sum(-(-int(size) // 64) * 64 for size in sizes))
    return most


def _run(folder: Path, job: dict[str, Any]) -> None:
    from qdeploy.backends.tvm.engine import relax, tvm

    loaded = tvm.runtime.load_module(job["library"])
    machine = relax.VirtualMachine(loaded, tvm.cpu())
    outputs = {}
    with np.load(folder / "inputs.npz") as arrays:
        for trial in range(job["trials"]):
            count = sum(name.startswith(f"{trial}.") for name in arrays.files)
            results = machine["main"](*(tvm.runtime.tensor(arrays[f"{trial}.{i}"]) for i in range(count)))
            outputs.update({f"{trial}.{i}": part.numpy() for i, part in enumerate(results)})
    np.savez(folder / "outputs.npz", **outputs)


def _compile_parts(folder: Path, job: dict[str, Any]) -> None:
    for part in job["parts"]:
        _compile(folder / part, {**job, "out": str(folder / part)})


def _time_parts(folder: Path, job: dict[str, Any]) -> None:
    from qdeploy.backends.tvm.engine import timer
    from qdeploy.backends.tvm.program import load

    rng, calls = np.random.default_rng(0), {}
    for part in job["parts"]:
        program = load(folder / part)
        inputs = [
            rng.integers(0, 16, buffer.shape).astype(buffer.dtype) for buffer in map(program.operand, program.inputs)
        ]
        calls[part] = timer(str(folder / part / "model.so"), inputs)
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(job["turns"]):
        for part, call in calls.items():
            least[part] = min(least[part], call())
    (folder / "times.json").write_text(json.dumps(least))


ACTIONS = {"compile": _compile, "run": _run, "compile_parts": _compile_parts, "time_parts": _time_parts}

if __name__ == "__main__":
    gc.disable()  # what lives for seconds would collect more than it frees
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking TVM down in order takes a quarter of a second
