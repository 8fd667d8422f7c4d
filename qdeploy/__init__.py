"""qdeploy: any quantized checkpoint, any edge target, and proof that nothing was lost.

    import qdeploy

    model = qdeploy.load("tiny-llama-gptq")                    # any readable checkpoint or package; nothing is read yet
    weight = model.tensors["model.layers.0.mlp.up_proj.weight"].decode()   # float32, the parameter's shape
    report = qdeploy.convert("tiny-llama-gptq", "out", to="onnx")
    assert report["lossless"]["tensor bytes"]["proven"] == report["lossless"]["tensor bytes"]["of"]

Importing this package imports nothing; the names below arrive when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdeploy import version

if TYPE_CHECKING:
    from qdeploy.allocation import allocate
    from qdeploy.conversion import convert, load
    from qdeploy.errors import QdeployError
    from qdeploy.ir.model import Model
    from qdeploy.ir.tensor import QTensor
    from qdeploy.latency import latency_table
    from qdeploy.native import Runtime
    from qdeploy.planning import plan
    from qdeploy.proof.compare import diff, verify

__version__ = version.VERSION

_WHERE = {
    "convert": "qdeploy.conversion",
    "load": "qdeploy.conversion",
    "verify": "qdeploy.proof.compare",
    "diff": "qdeploy.proof.compare",
    "plan": "qdeploy.planning",
    "allocate": "qdeploy.allocation",
    "latency_table": "qdeploy.latency",
    "Runtime": "qdeploy.native",
    "Model": "qdeploy.ir.model",
    "QTensor": "qdeploy.ir.tensor",
    "QdeployError": "qdeploy.errors",
}

__all__ = [
    "Model",
    "QTensor",
    "QdeployError",
    "Runtime",
    "__version__",
    "allocate",
    "convert",
    "diff",
    "latency_table",
    "load",
    "plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'qdeploy' has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = member = getattr(import_module(_WHERE[name]), name)
    return member


def __dir__() -> list[str]:
    return sorted(__all__)
