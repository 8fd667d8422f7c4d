"""The one module that imports TVM: its names, as the rest of this room uses them, and the versions that work.

TVM renames its parts between releases (`tir` became `tirx`, `relay` is gone), and versions of its FFI that satisfy its
own requirement crash with it: tvm-ffi 0.1.15 in `Schedule.tensorize`. Both are therefore pinned exactly. This module is
imported in child processes only (child.py): an abort inside of LLVM then is one error message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qdeploy.errors import UnsupportedError

VERSIONS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
INSTALL = "pip install " + " ".join(f"{name}=={number}" for name, number in VERSIONS.items())


def check_versions() -> None:
    """Raises UnsupportedError where TVM is absent or not the version that this room is written for."""
    installed = {name: _version(name) for name in VERSIONS}
    if installed != VERSIONS:
        raise UnsupportedError(
            "the TVM backend needs TVM in exactly this version",
            found=", ".join(f"{name} {number or 'not installed'}" for name, number in installed.items()),
            allowed=", ".join(f"{name} {number}" for name, number in VERSIONS.items()),
            todo=INSTALL,
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def __getattr__(name: str) -> Any:
    """The names of TVM, imported at their first use."""
    if name not in _NAMES:
        raise AttributeError(name)
    check_versions()
    globals().update(_load())
    return globals()[name]


def timer(library: str, inputs: Sequence[Any], least_ms: int = 2) -> Callable[[], float]:
    """A function that runs a compiled network for at least `least_ms` and returns the seconds of one run.

    The loop is TVM's own, so that nothing of Python is timed.
    """
    tvm = __getattr__("tvm")
    machine = __getattr__("relax").VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())
    tensors = [tvm.runtime.tensor(array) for array in inputs]
    evaluate = machine.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=least_ms)
    return lambda: float(evaluate(*tensors).mean)


_NAMES = frozenset(
    {"tvm", "ir", "relax", "te", "tirx", "T", "Schedule", "SBlock", "TensorIntrin", "walk", "create_shared"}
)


def _load() -> dict[str, Any]:
    import tvm
    from tvm import ir, relax, s_tir, te, tirx
    from tvm.s_tir import TensorIntrin
    from tvm.script import tirx as script
    from tvm.support.cc import create_shared
    from tvm_ffi import structural

    return {
        "tvm": tvm,
        "ir": ir,
        "relax": relax,
        "te": te,
        "tirx": tirx,
        "T": script,
        "Schedule": s_tir.Schedule,
        "SBlock": s_tir.SBlock,
        "TensorIntrin": TensorIntrin,
        "walk": structural.structural_walk,
        "create_shared": create_shared,
    }
