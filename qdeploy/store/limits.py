"""How much of something a file may declare: what describes a tensor takes more memory than the file spends on it."""

from __future__ import annotations

from qdeploy.errors import BadFileError

FEWEST, BYTES_EACH, MOST = 1 << 14, 2 << 10, 1 << 18
"""Tensors of a file: so many whatever its size, one more per so many bytes, and never more than so many."""


def most_tensors(file_bytes: int) -> int:
    """How many tensors a file of a size may hold."""
    return min(FEWEST + file_bytes // BYTES_EACH, MOST)


def refuse_too_many(count: int, file_bytes: int, where: str) -> None:
    """Raises BadFileError where a file declares more tensors than one of its size may; before any is described."""
    most = most_tensors(file_bytes)
    if count > most:
        raise BadFileError(
            "the file declares too many tensors", where=where, found=count, allowed=f"<= {most} for its size"
        )
