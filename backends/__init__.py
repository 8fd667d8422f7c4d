"""The back door: one folder per target.

A backend is a module with `NAME`, `TITLE`, `Options`, `lower`, `check`, `compare`, `logits` and `logits_limit` (see
those of `backends/onnx/__init__.py`), listed here by name; other people's register under the entry point group
`qdeploy.backends`.
"""

BUILT_IN = {"onnx": "qdeploy.backends.onnx"}
"""Target name -> module."""
