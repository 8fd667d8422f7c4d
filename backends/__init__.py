"""The back door: one folder per target.

A backend is an object that satisfies `qdeploy.contracts.backends.Backend`; what only some targets can do (an output
that is one file, a proof of integers, a plan of memory, timed layers, logits of a text) is a part that it declares. It
is listed here by name; other people register an object or a row under the entry point group `qdeploy.backends`.
"""

from __future__ import annotations

from qdeploy.contracts.backends import BackendRow

BUILT_IN = (
    BackendRow("onnx", "qdeploy.backends.onnx:BACKEND", packages=("onnx",)),
    BackendRow("native", "qdeploy.backends.native:BACKEND", magic=b"qdeploy\n"),
    BackendRow("tvm", "qdeploy.backends.tvm:BACKEND", packages=("tvm",)),
)
"""The targets of this project; `magic` is what their outputs begin with, where they are files."""
