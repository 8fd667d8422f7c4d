"""Float checkpoints of Hugging Face: float32, float16 and bfloat16 in safetensors.

The folder is that of `checkpoint.py`, without a quantization_config. Every tensor is kept as it is. An output
projection that is tied to the embedding is simply absent; the architecture uses the embedding's tensor twice.
"""

from __future__ import annotations

from qdeploy.contracts.clues import INDEX
from qdeploy.errors import UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, assemble
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Source
from qdeploy.store.codec import Codec, verbatim
from qdeploy.store.folder import Folder

NAME = "safetensors"
TITLE = "Hugging Face checkpoint in float32, float16 or bfloat16 (safetensors, single file or sharded)"
WRITES = True

_CODED = {".Qidxs": "QuIP#", ".tlut": "QTIP", "_scaling_rotate_1": "PTQ1.61"}
"""Ends of names that only checkpoints of these formats have; they declare no method."""


def sniff(folder: Folder) -> Sniff:
    """Declared by the absence of a quantization method beside safetensors."""
    if folder.only:
        return Sniff(60, "a .safetensors file") if folder.only.endswith(".safetensors") else NOT_MINE
    if not (folder.has(INDEX) or any(n.endswith(".safetensors") for n in folder.names())):
        return NOT_MINE
    method = Checkpoint(folder).method
    return NOT_MINE if method else Sniff(90, "safetensors without a quantization method")


def read(folder: Folder) -> Model:
    """Opens the checkpoint; nothing but the headers is read yet.

    Raises:
        UnsupportedError: Codes of a format that is not read: they are no weights as they are.
    """
    checkpoint = Checkpoint(folder)
    for name in checkpoint.entries:
        for end, method in _CODED.items():
            if name.endswith(end):
                raise UnsupportedError(
                    "codes of a quantization that is not read",
                    where=name,
                    found=method,
                    allowed="floats",
                    todo="Save the weights as floats with its library; --recover auto looks for a grid in them.",
                )
    return assemble(checkpoint, NAME, ())


def codecs(source: Source) -> tuple[Codec, ...]:
    """Every tensor is its own bytes."""
    return (verbatim("data"),)
