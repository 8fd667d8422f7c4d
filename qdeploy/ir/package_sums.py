"""The checksums of a package: SHA-256 of every entry, every carried file and the manifest.

A buffer is compared with its checksum as a whole when the first of its bytes is asked for, and then no more; a sum that
is not there is an error. So what is converted from a package is what was written into it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.ir.package_form import CHECKSUMS_FORM
from qdeploy.ir.tensor import Array, Rows
from qdeploy.store.folder import Folder
from qdeploy.store.form import check
from qdeploy.store.safetensors import TensorEntry

CHECKSUMS = "checksums.json"
_STEP = 8 << 20


@dataclass(frozen=True)
class CheckedRows:
    """Rows whose bytes are checked once, before the first of them is given out."""

    rows: Rows
    prove: Callable[[], None]
    _done: list[bool] = field(default_factory=list, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop); BadFileError where the checksum of the whole differs."""
        with self._lock:
            if not self._done:
                self.prove()
                self._done.append(True)
        return self.rows.read(start, stop)


class Checksums:
    """checksums.json of an opened package.

    Raises:
        BadFileError: It is missing or of another form, or the manifest is not the one that was written.
    """

    def __init__(self, folder: Folder, manifest: str) -> None:
        self._folder = folder
        if not folder.has(CHECKSUMS):
            raise BadFileError(
                "the checksums of a package are missing",
                where=str(folder.path / CHECKSUMS),
                todo="Fetch the whole package, or pass --no-verify.",
            )
        self._sums: dict[str, Any] = folder.json(CHECKSUMS)
        check(self._sums, CHECKSUMS_FORM, CHECKSUMS)
        _compare("the manifest", manifest, self._sums.get("manifest"))

    def entry(self, file: str, entry: TensorEntry, rows: Rows) -> CheckedRows:
        """The rows of a shard's entry, checked when they are first read."""
        return CheckedRows(rows, lambda: self.check_entry(file, entry))

    def file(self, name: str, rows: Rows, size: int) -> CheckedRows:
        """The bytes of a carried file, checked when they are first read."""
        return CheckedRows(rows, lambda: self.check_file(name, size))

    def check_entry(self, file: str, entry: TensorEntry) -> None:
        """Raises BadFileError where the bytes of an entry are not those that were written."""
        count = entry.shape[0] if entry.shape else 1
        digest = _digest(
            lambda start, stop: entry.slab(0, start, stop), count, (entry.end - entry.begin) // max(1, count)
        )
        _compare(f"{file}: {entry.name}", digest, self._of(file, entry.name))

    def check_file(self, name: str, size: int) -> None:
        """The same for a carried file."""
        _compare(name, _digest(self._folder.rows(name).read, size, 1), self._of("files", name))

    def _of(self, group: str, name: str) -> str | None:
        sums = self._sums.get(group)
        checksum = sums.get(name) if isinstance(sums, dict) else None
        return checksum if isinstance(checksum, str) else None


def sha256_of(data: bytes) -> str:
    """As hex."""
    return hashlib.sha256(data).hexdigest()


def _digest(read: Callable[[int, int], Any], rows: int, row_bytes: int) -> str:
    digest, step = hashlib.sha256(), max(1, _STEP // max(1, row_bytes))
    for start in range(0, rows, step):
        slab = np.ascontiguousarray(read(start, min(start + step, rows)))
        digest.update(slab.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _compare(what: str, digest: str, wanted: object) -> None:
    if digest == wanted:
        return
    there = isinstance(wanted, str)
    raise BadFileError(
        "a checksum differs" if there else "a checksum is missing",
        where=what,
        found=digest[:16] + "...",
        allowed=str(wanted)[:16] + "..." if there else f"an entry in {CHECKSUMS}",
        todo="The package was changed or damaged; convert it again, or pass --no-verify to read it as it is.",
    )
