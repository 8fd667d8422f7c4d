"""The front door: one file per published format.

A format is a module with

    NAME, TITLE                       what it is called, and one line about it
    WRITES                            whether source files can be written back from its tensors
    sniff(folder) -> Sniff            how surely this folder or file is of this format, and why
    read(folder, progress) -> Model   tensors by their source names; nothing large is read yet
    recodings(source) -> tuple        how each source tensor is written back (only with WRITES)

and is listed here by name, so that nothing is imported before it is needed. Other people's formats register the same
kind of module under the entry point group `qdeploy.formats`.
"""

from __future__ import annotations

from typing import NamedTuple

BUILT_IN = {
    "safetensors": "qdeploy.formats.huggingface.safetensors",
    "gptq": "qdeploy.formats.huggingface.gptq",
    "awq": "qdeploy.formats.huggingface.awq",
    "autoround": "qdeploy.formats.huggingface.autoround",
    "bitstack": "qdeploy.formats.huggingface.bitstack",
    "gguf": "qdeploy.formats.gguf.reader",
    "onnx": "qdeploy.formats.onnx.reader",
    "tflite": "qdeploy.formats.tflite.reader",
    "hawq": "qdeploy.formats.networks.hawq",
    "apot": "qdeploy.formats.networks.apot",
    "lsq": "qdeploy.formats.networks.lsq",
    "package": "qdeploy.formats.package",
}
"""Format name -> module."""


class Sniff(NamedTuple):
    """A format's judgement of a folder: 0 (not mine) to 100 (declared to be mine), and the reason in a few words."""

    score: int
    reason: str = ""


NOT_MINE = Sniff(0)
