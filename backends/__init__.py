"""The back door: one folder per target.

A backend is a module with `NAME`, `TITLE`, `Options`, `lower`, `check`, `compare`, `logits` and `logits_limit` (see
those of `backends/onnx/__init__.py`), and `FILE` where its output is one file rather than a folder. It is listed here
by name; other people's register under the entry point group `qdeploy.backends`.
"""

BUILT_IN = {"onnx": "qdeploy.backends.onnx", "native": "qdeploy.backends.native"}
"""Target name -> module."""
