"""report.json of an output, read: what it must look like, whoever wrote it."""

from __future__ import annotations

import os
from typing import Any

from qdeploy.store.folder import Folder
from qdeploy.store.form import Either, check

REPORT = "report.json"
"""What every output that is a folder holds: the report of its conversion, by which it is known."""
_NUMBER = Either(float, None)
_ROW = {
    "shape?": [int],
    "encoding?": str,
    "bits?": float,
    "bytes?": int,
    "exact?": str,
    "snr_db?": float,
    "forms?": [{"form": str, "reason": str, "lossless": bool, "bytes": int}],
}
_FIELDS = {"qdeploy", "source", "target", "options", "summary", "tensors"}
REPORT_FORM = {
    "qdeploy": str,
    "source": {"format": str, "model_type": Any, ...: Any},
    "target": str,
    "options": {str: Any},
    "lossless": {str: {"proven": int, "of": int, ...: Any}},
    "summary": {"tensors": int, "parameters": int, "bytes": int, "bits per weight": float, ...: Any},
    "checks": [{"name": str, "kind": str, "error": _NUMBER, "limit": _NUMBER}],
    "notes": [str],
    "tensors": {str: _ROW},
    ...: Any,
}
"""What every version so far has written."""


def is_report(content: object) -> bool:
    """Whether JSON has the fields that the report of every version has."""
    return isinstance(content, dict) and content.keys() >= _FIELDS


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report in an output; BadFileError where it is missing, or none."""
    report = Folder(path).json(REPORT)
    check(report, REPORT_FORM, REPORT)
    content: dict[str, Any] = report
    return content
