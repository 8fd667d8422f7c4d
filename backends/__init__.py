"""The back door: one folder per target.

A backend is a module with `NAME`, `TITLE` and `lower(model, target, options, progress) -> Lowered`, listed here by name;
other people's register under the entry point group `qdeploy.backends`.
"""

BUILT_IN = {"onnx": "qdeploy.backends.onnx"}
"""Target name -> module."""
