"""The lossless proof of an import, at its three levels.

values         every code, scale, zero and table is identical
tensor bytes   every stored tensor comes back from its codes, byte for byte (proven as it is read: store/origin.py)
file bytes     and so do whole files: their head is kept as it is, and nothing else lies between the tensors
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qdeploy.errors import ProofError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer, QTensor, buffers
from qdeploy.progress import Progress
from qdeploy.store.origin import Origin

_SLAB_BYTES = 8 << 20


def prove(model: Model, names: Iterable[str], progress: Progress) -> None:
    """Reads what has not been read yet of some tensors, so that all their bytes are proven.

    Raises:
        ProofError: A stored tensor is part of a parameter, and yet was not proven by reading all of it.
    """
    origins = {(o.file, o.name): o for o in model.origins}
    waiting = {name: _unproven(model.tensors[name], origins) for name in names}
    waiting = {name: unproven for name, unproven in waiting.items() if unproven}
    progress.start(
        "proving what the target does not use", sum(o.nbytes for unproven in waiting.values() for o in unproven)
    )
    for name, unproven in waiting.items():
        for buffer in {b.key: b for b in buffers(model.tensors[name])}.values():
            _read_through(buffer)
        left = [o.name for o in unproven if not o.proven]
        if left:
            raise ProofError("not every byte of a tensor was shown to come back", where=name, found=", ".join(left))
        progress.advance(sum(o.nbytes for o in unproven), name)


def levels(model: Model) -> dict[str, dict[str, Any]]:
    """How much is proven, per level: {"values": {"proven", "of"}, "tensor bytes": ..., "file bytes": ...}."""
    used = {(p.file, p.name) for t in model.tensors.values() if t.source for p in t.source.tensors}
    origins = [o for o in model.origins if (o.file, o.name) in used]
    read = [o for o in origins if o.proven]
    exact = [o for o in read if not o.values_only]
    heads = [] if model.losses else [f.path for f in model.files if f.role in ("head", "rest")]
    whole = [path for path in heads if all(o.proven and not o.values_only for o in model.origins if o.file == path)]
    return {
        "values": {"proven": len(read), "of": len(origins)},
        "tensor bytes": {"proven": len(exact), "of": len(origins)},
        "file bytes": {"proven": len(whole), "of": len(heads)},
    }


def _unproven(tensor: QTensor, origins: dict[tuple[str, str], Origin]) -> list[Origin]:
    parts = tensor.source.tensors if tensor.source else ()
    known = [origins[(p.file, p.name)] for p in parts if (p.file, p.name) in origins]
    return [o for o in known if not o.proven]


def _read_through(buffer: Buffer) -> None:
    step = max(1, _SLAB_BYTES // max(1, buffer.row_bytes))
    for start in range(0, buffer.shape[0], step):
        buffer.read(start, min(start + step, buffer.shape[0]))
