"""What the JSON files of a package must look like (`qdeploy.store.form`); what they mean stands in `ir/package.py`."""

from __future__ import annotations

from typing import Any

from qdeploy.store.form import AtLeast, Either

_SIZE = AtLeast(0)
_TENSORS = {str: (_SIZE, str)}

MANIFEST_FORM = {
    "format": int,
    "requires": [str],
    "model": {"format": str, "dialect": str, "notes": [str]},
    "config": {str: Any},
    "graph": Either(None, {str: Any}),
    "encodings": [Any],
    "tensors": _TENSORS,
    "constants": _TENSORS,
    "sources": {str: (str, str, {str: Any}, str, [_SIZE])},
    "stored": [(str, str, str, [_SIZE], _SIZE, _SIZE, str)],
    "files": {str: (str, _SIZE, _SIZE)},
    "extra": {str: Any},
}
"""The manifest."""
CHECKSUMS_FORM = {str: Either(str, {str: str})}
"""checksums.json: the manifest's own, and per shard and for "files" one of each part."""
