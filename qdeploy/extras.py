"""Packages that only some jobs need: each missing one is a sentence with the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

from qdeploy.errors import UnsupportedError

EXTRAS = {
    "onnx": "onnx",
    "google": "onnx",
    "onnxruntime": "onnx",
    "tokenizers": "text",
    "jinja2": "chat",
    "llguidance": "serve",
    "matplotlib": "plot",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "tflite": "tflite",
    "flatbuffers": "tflite",
    "scipy": "allocate",
    "tvm": "tvm",
    "tvm_ffi": "tvm",
}
"""Module -> the extra of this distribution that brings it."""


def missing(module: str, purpose: str = "this") -> UnsupportedError:
    """The error for a package that is not installed.

    Args:
        module: As it is imported; of a submodule, the top counts.
        purpose: What needs it.
    """
    top = module.partition(".")[0]
    package = f"qdeploy[{EXTRAS[top]}]" if top in EXTRAS else top
    return UnsupportedError(
        f"{purpose} needs a package that is not installed: {top}", found=module, todo=f"pip install '{package}'"
    )


def require(*modules: str, purpose: str = "this") -> None:
    """Raises UnsupportedError for the first package that is not there; nothing is imported."""
    for module in modules:
        try:
            there = find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            raise missing(module, purpose)
