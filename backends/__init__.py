"""The back door: one folder per target.

A backend is a module with `NAME`, `TITLE`, `Options`, `lower`, `check`, `compare`, `logits` and `logits_limit` (see
those of `backends/onnx/__init__.py`; `Options` takes `activations`, `requantize` and `jobs`, and what else it has is
asked for by name). Where its output is one file rather than a folder, it also has

    FILE                    the file's name while it is made
    MAGIC                   what it begins with, by which verify, diff and inspect know it
    conversion(path)        what the conversion that wrote it was asked for, as a folder's report would say
    describe(path)          what `inspect` shows
    damaged_pages(path)     how many checksums there are, and which of them are wrong

It is listed here by name; other people's register under the entry point group `qdeploy.backends`.
"""

BUILT_IN = {"onnx": "qdeploy.backends.onnx", "native": "qdeploy.backends.native", "tvm": "qdeploy.backends.tvm"}
"""Target name -> module."""
